"""TQ1_0 packed: 48 rows x 256 columns in 2,656 bytes, 55.33 a row (the file's 54 and 2.5 %).

    | 48 halves: d | 8 strips of 32 columns, 320 bytes each |        weight = d * trit

Strips: packed_trios.py. Any byte of a file is taken in: its digits are what `decode` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.packed.kernels import AHEAD
from quant.packed.packed_type import PackedType
from quant.packed.trios import (
    DIGITS,
    ROWS,
    STRIP,
    fill_columns,
    negate_columns,
    pack_trios,
    strip_dots,
    trits,
)
from quant.simd.packed import (
    LANES,
    fma,
    load_bytes,
    load_floats,
    load_halves,
    put_u16,
    splat_float,
    store_floats,
    zero_bytes,
)
from quant.simd.vectors import alloca, i64, prefetch, u16
from quant.tile.panels import storage
from quant.types import tq1_0

STRIPS = 96  # where they begin
GROUP_BYTES = STRIPS + 8 * STRIP
ZERO = storage(tq1_0.QUANT.weights).zero  # of a tile


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2656,) uint8 -> trits (48, 256) int8, scales (48, 8) float32: the readable definition."""
    d = group[:STRIPS].view(np.float16).astype(np.float32)
    return trits(group[STRIPS:].reshape(8, STRIP)), np.repeat(d[:, None], 8, axis=1)


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        put_u16(out + 2 * r, u16(i64(blocks + 8 * r) + 52))
    pack_trios(q, out + STRIPS)


@inline
def add_dots(dot0: Any, dot1: Any, dot2: Any, d0: Any, d1: Any, d2: Any, ys: int, to: int) -> None:
    """The sums of three planes + a strip's dots, of one token."""
    scale = splat_float(ys)
    store_floats(to, fma(dot0, d0 * scale, load_floats(to)))
    store_floats(to + 64, fma(dot1, d1 * scale, load_floats(to + 64)))
    store_floats(to + 128, fma(dot2, d2 * scale, load_floats(to + 128)))


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    minus = alloca(256)
    negate_columns(y, minus)
    for rows in range(0, 64, 4 * LANES):
        d0 = load_halves(p + rows // 2)
        d1 = load_halves(p + 32 + rows // 2)
        d2 = load_halves(p + 64 + rows // 2)
        at = p + STRIPS + rows
        to = acc + rows
        for g in range(8):
            if rows == 0:
                for line in range(0, STRIP, 64):
                    prefetch(at + AHEAD + line)
            dot0, dot1, dot2 = strip_dots(at, y + 32 * g, minus + 32 * g)
            add_dots(dot0, dot1, dot2, d0, d1, d2, ys + 4 * g, to)
            at += STRIP
            to += 4 * ROWS


@inline
def add_two(
    p: int, y: int, ys: int, isums: int, sums: int, acc: int, other: int, more: int
) -> None:
    """Contract in packed_kernels.py; as add_step."""
    minus = alloca(512)
    negate_columns(y, minus)
    negate_columns(y + other, minus + 256)
    for rows in range(0, 64, 4 * LANES):
        d0 = load_halves(p + rows // 2)
        d1 = load_halves(p + 32 + rows // 2)
        d2 = load_halves(p + 64 + rows // 2)
        at = p + STRIPS + rows
        to = acc + rows
        for g in range(8):
            if rows == 0:
                for line in range(0, STRIP, 64):
                    prefetch(at + AHEAD + line)
            # both before anything is stored: what is unpacked then serves both
            dot0, dot1, dot2 = strip_dots(at, y + 32 * g, minus + 32 * g)
            dot3, dot4, dot5 = strip_dots(at, y + other + 32 * g, minus + 256 + 32 * g)
            add_dots(dot0, dot1, dot2, d0, d1, d2, ys + 4 * g, to)
            add_dots(dot3, dot4, dot5, d0, d1, d2, ys + other + 4 * g, to + more)
            at += STRIP
            to += 4 * ROWS


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    digits = DIGITS() + 16 * plane
    for rows in range(0, 64, 4 * LANES):
        d = load_halves(p + 32 * plane + rows // 2)
        for g in range(8):
            store_floats(s + g * s_stride + rows, d)
            strip = p + STRIPS + STRIP * g + rows
            signs = load_bytes(strip + 256)
            at = w + g * w_stride + rows
            for k in range(4):
                fill_columns(strip, k, signs, digits, zero_bytes() + ZERO, at + 256 * k)


PACKED = PackedType(
    source=tq1_0.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    add_two=add_two,
    fill_plane=fill_plane,
    few=5 if isa.PAIRS else 32,
)
