"""Q2_K packed: 64 rows x 256 columns in 5,376 bytes, 84 a row as in the file.

    | 64 halves: d | 64 halves: dmin | 4 sections of 64 columns, 1,280 bytes each |
    section: | 16 vectors of 4 columns, 64 bytes each | 4 x 64 bytes of scales |

    weight = (d * scale) * pair - dmin * min
    scales, part j: byte 4 r + i is (scale: low nibble, min: high nibble) of row 16 j + r and the
    section's columns 16 i .. 16 i + 15

Vectors: fours.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.packed.fours import (
    ROWS,
    SECTION,
    add_fields,
    fetch_part,
    field_dots,
    four_floats,
    four_halves,
    four_ints,
    pack_pairs,
    pairs,
    store_four,
)
from quant.packed.kernels import AHEAD, LOW
from quant.packed.packed_type import PackedType
from quant.simd.packed import (
    HALVES,
    LANES,
    WIDE,
    fma,
    four_in_turn,
    load_bytes,
    load_floats,
    load_halves,
    load_ints,
    nibble,
    opaque,
    put_u16,
    splat_float,
    store_bytes,
    store_floats,
    to_floats,
    zero_sums,
)
from quant.simd.vectors import alloca, i64, prefetch_far, put_i32, u16, u32
from quant.tile.panels import storage
from quant.types import q2_k

SECTIONS = 256  # where they begin
STRIDE = SECTION + 256
GROUP_BYTES = SECTIONS + 4 * STRIDE
SHARE = STRIDE // HALVES  # bytes to fetch with each half of a section
ZERO = storage(q2_k.QUANT.weights).zero  # of a tile


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(5376,) uint8 -> q (64, 256) int8, scales, offsets (64, 16): the readable definition."""
    d, dmin = group[:SECTIONS].view(np.float16).astype(np.float32).reshape(2, ROWS, 1)
    sections = group[SECTIONS:].reshape(4, STRIDE)
    q = pairs(sections[:, :SECTION].reshape(64, 64)).astype(np.int8)
    numbers = sections[:, SECTION:].reshape(4, ROWS, 4).swapaxes(0, 1).reshape(ROWS, 16)
    return q, d * (numbers & 15).astype(np.float32), -dmin * (numbers >> 4).astype(np.float32)


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        p = i64(blocks + 8 * r)
        put_u16(out + 2 * r, u16(p + 80))
        put_u16(out + 128 + 2 * r, u16(p + 82))
        for k in range(4):
            put_i32(out + SECTIONS + STRIDE * k + SECTION + 4 * r, u32(p + 4 * k))
    pack_pairs(q, out + SECTIONS, STRIDE)


@inline
def add_plane(
    numbers: Any, i: int, d: Any, dmin: Any, dot: Any, ys: Any, sum_: Any, to: int
) -> None:
    """16 columns' product with 16 rows; byte i of `numbers`: their scales and minima."""
    scale = nibble(numbers >> 8 * i) * d * ys
    low = fma(nibble(numbers >> 8 * i + 4) * dmin, sum_, load_floats(to + LOW))
    store_floats(to, fma(to_floats(dot), scale, load_floats(to)))
    store_floats(to + LOW, low)


@inline
def add_columns(
    i: int, p: int, numbers: Any, d: Any, dmin: Any, y: int, ys: int, sums: int, to: int
) -> None:
    """Columns 16 i .. 16 i + 15 of a section; i is a constant, numbers, d, dmin are by plane."""
    at = p + 256 * i
    x = y + 16 * i
    a, b, c, e = add_fields(at, x, zero_sums(), zero_sums(), zero_sums(), zero_sums())
    a, b, c, e = add_fields(at + 64, x + 4, a, b, c, e)
    a, b, c, e = add_fields(at + 128, x + 8, a, b, c, e)
    a, b, c, e = four_in_turn(*add_fields(at + 192, x + 12, a, b, c, e))
    dot0, dot1, dot2, dot3 = field_dots(a, b, c, e)
    scale = splat_float(ys + i // 2 * 4)
    sum_ = splat_float(sums + 4 * i)
    to += 4 * ROWS * i
    add_plane(numbers[0], i, d[0], dmin[0], dot0, scale, sum_, to)
    add_plane(numbers[1], i, d[1], dmin[1], dot1, scale, sum_, to + 64)
    add_plane(numbers[2], i, d[2], dmin[2], dot2, scale, sum_, to + 128)
    add_plane(numbers[3], i, d[3], dmin[3], dot3, scale, sum_, to + 192)


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    minus = numba.float32(-1)
    floats = alloca(512)  # d and -dmin
    for line in range(0, SECTIONS, 64):
        prefetch_far(p + AHEAD + line)
    for rows in range(0, 64, 4 * LANES):
        d = four_halves(p + rows // 2)
        m0, m1, m2, m3 = four_halves(p + 128 + rows // 2)
        dmin = m0 * minus, m1 * minus, m2 * minus, m3 * minus
        if not WIDE:
            store_four(floats + rows, d)
            store_four(floats + 256 + rows, dmin)
    for k in range(4):
        for rows in range(0, 64, 4 * LANES):
            section = p + SECTIONS + STRIDE * k
            at = opaque(section + rows)
            numbers = four_ints(at + SECTION)
            if not WIDE:
                d = four_floats(floats + rows)
                dmin = four_floats(floats + 256 + rows)
            x = opaque(y + 64 * k)
            scale = opaque(ys + 8 * k)
            sum_ = opaque(sums + 16 * k)
            to = opaque(acc + 16 * ROWS * k + rows)
            ahead = opaque(section + SHARE * (rows // 32))
            fetch_part(ahead, SHARE, 0)
            add_columns(0, at, numbers, d, dmin, x, scale, sum_, to)
            fetch_part(ahead, SHARE, 1)
            add_columns(1, at, numbers, d, dmin, x, scale, sum_, to)
            fetch_part(ahead, SHARE, 2)
            add_columns(2, at, numbers, d, dmin, x, scale, sum_, to)
            fetch_part(ahead, SHARE, 3)
            add_columns(3, at, numbers, d, dmin, x, scale, sum_, to)


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    for rows in range(0, 64, 4 * LANES):
        d = load_halves(p + 32 * plane + rows // 2)
        dmin = load_halves(p + 128 + 32 * plane + rows // 2) * numba.float32(-1)
        for g in range(16):
            section = p + SECTIONS + g // 4 * STRIDE + rows
            numbers = load_ints(section + SECTION + 64 * plane) >> g % 4 * 8
            store_floats(s + g * s_stride + rows, nibble(numbers) * d)
            store_floats(o + g * s_stride + rows, nibble(numbers >> 4) * dmin)
            for k in range(4):
                v = load_bytes(section + g % 4 * 256 + 64 * k) >> 2 * plane & 3
                store_bytes(w + g * w_stride + 128 * k + rows, v + ZERO)


PACKED = PackedType(
    source=q2_k.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=11 if isa.PAIRS else 32,
    looped=4,
)
