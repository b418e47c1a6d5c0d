"""IQ1_S packed: 48 rows x 256 columns in 2,848 bytes, 59.33 a row (the file's 50 and 18.7 %).

    | 3 x 64 bytes of scales | 48 halves: d | 8 strips of 32 columns, 320 bytes each |

    weight = d / 8 * (2 * scale + 1) * (8 * trit + shift)        shift = 1 or -1
    scales, word r of part j: row 16 j + r; nibble k of it: the scale of strip k, 8 more where its
    shift is -1

Strips: packed_trios.py. The words of the code book are gone: their trits are read, not looked up.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.packed.kernels import AHEAD
from quant.packed.packed_type import PackedType
from quant.packed.trios import (
    EIGHTS,
    ROWS,
    STRIP,
    fill_columns,
    negate_columns,
    pack_trios,
    shift_of,
    strip_dots,
    trits,
    trits_of_shifted,
)
from quant.simd.packed import (
    LANES,
    eights,
    fma,
    load_bytes,
    load_floats,
    load_halves,
    load_ints,
    odd_number,
    put_u16,
    sign_of_bit_3,
    splat_float,
    splat_int,
    store_floats,
    to_floats,
)
from quant.simd.vectors import alloca, i64, prefetch_far, put_i32, u16
from quant.types import iq1_s

HALVES = 192  # where they begin
STRIPS = HALVES + 96
GROUP_BYTES = STRIPS + 8 * STRIP


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2848,) uint8 -> q (48, 256) int8, scales (48, 8) float32: the readable definition."""
    numbers = group[:HALVES].view(np.uint32)[:, None] >> np.arange(0, 32, 4, dtype=np.uint32)
    d = group[HALVES:STRIPS].view(np.float16).astype(np.float32) / np.float32(8)
    shift = np.where(numbers & 8, -1, 1).repeat(32, axis=1)
    q = 8 * trits(group[STRIPS:].reshape(8, STRIP)) + shift
    return q.astype(np.int8), (2 * (numbers & 7) + 1).astype(np.float32) * d[:, None]


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        p = i64(blocks + 8 * r)
        numbers = 0
        for k in range(8):
            numbers |= u16(p + 34 + 2 * k) >> 12 << 4 * k
        put_i32(out + 4 * r, numbers)
        put_u16(out + HALVES + 2 * r, u16(p))
    trits_of_shifted(q)
    pack_trios(q, out + STRIPS)


@inline
def add_plane(numbers: Any, d: Any, dot: Any, isum: Any, ys: Any, to: int) -> None:
    """One strip's product with 16 rows: `numbers` begin with the strip's nibble."""
    dot = fma(dot, eights(), sign_of_bit_3(numbers, isum))
    store_floats(to, fma(dot, odd_number(numbers) * d * ys, load_floats(to)))


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    eighth = numba.float32(0.125)
    minus = alloca(256)
    negate_columns(y, minus)
    for rows in range(0, 64, 4 * LANES):
        d0 = load_halves(p + HALVES + rows // 2) * eighth
        d1 = load_halves(p + HALVES + 32 + rows // 2) * eighth
        d2 = load_halves(p + HALVES + 64 + rows // 2) * eighth
        numbers0 = load_ints(p + rows)
        numbers1 = load_ints(p + 64 + rows)
        numbers2 = load_ints(p + 128 + rows)
        at = p + STRIPS + rows
        to = acc + rows
        if rows == 0:
            for line in range(0, STRIPS, 64):
                prefetch_far(p + AHEAD + line)
        for g in range(8):
            if rows == 0:
                for line in range(0, STRIP, 64):
                    prefetch_far(at + AHEAD + line)
            dot0, dot1, dot2 = strip_dots(at, y + 32 * g, minus + 32 * g)
            scale = splat_float(ys + 4 * g)
            isum = to_floats(splat_int(isums + 4 * g))
            add_plane(numbers0, d0, dot0, isum, scale, to)
            add_plane(numbers1, d1, dot1, isum, scale, to + 64)
            add_plane(numbers2, d2, dot2, isum, scale, to + 128)
            numbers0 = numbers0 >> 4
            numbers1 = numbers1 >> 4
            numbers2 = numbers2 >> 4
            at += STRIP
            to += 4 * ROWS


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    digits = EIGHTS() + 16 * plane
    for rows in range(0, 64, 4 * LANES):
        numbers = load_ints(p + 64 * plane + rows)
        d = load_halves(p + HALVES + 32 * plane + rows // 2) * numba.float32(0.125)
        for g in range(8):
            store_floats(s + g * s_stride + rows, odd_number(numbers >> 4 * g) * d)
            shift = shift_of(numbers, 4 * g + 3)
            strip = p + STRIPS + STRIP * g + rows
            signs = load_bytes(strip + 256)
            at = w + g * w_stride + rows
            for k in range(4):
                fill_columns(strip, k, signs, digits, shift, at + 256 * k)


PACKED = PackedType(
    source=iq1_s.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=5 if isa.PAIRS else 20,
    looped=4,
)
