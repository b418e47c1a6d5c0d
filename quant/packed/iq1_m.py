"""IQ1_M packed: 48 rows x 256 columns in 3,136 bytes, 65.33 a row (the file's 56 and 16.7 %).

    | 3 x ( 64 bytes of shifts | 2 x 64 bytes of scales ) | 8 strips of 32 columns, 320 bytes each |

    weight = d / 8 * (2 * scale + 1) * (8 * trit + shift)        shift = 1 or -1
    part j, word r of each 64 bytes: row 16 j + r
    shifts: bit k set where the shift of columns 8 k .. 8 k + 7 is -1
    scales: word h has those of columns 128 h + 16 k .. + 15 in its bits 3 k .. 3 k + 2, k < 8;
            its upper 8 bits are the lower (h = 0) or upper byte of d, a half

Strips: packed_trios.py. Two sums of 8 activations with two shifts make 16 columns' share of the
shifts: one of four numbers that are the same for all rows.
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
    half_strip_dots,
    negate_columns,
    pack_trios,
    shift_of,
    trits,
    trits_of_shifted,
)
from quant.simd.packed import (
    LANES,
    eights,
    fma,
    halves_from,
    load_bytes,
    load_floats,
    load_ints,
    odd_number,
    one_of_4,
    signed_sums,
    splat_float,
    store_floats,
)
from quant.simd.vectors import alloca, i64, load_i8x64, prefetch_far, put_i32, store_f32x16
from quant.types import iq1_m

PLANE = 192  # bytes of shifts and scales of 16 rows
STRIPS = 3 * PLANE  # where they begin
GROUP_BYTES = STRIPS + 8 * STRIP


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3136,) uint8 -> q (48, 256) int8, scales (48, 16) float32: the readable definition."""
    words = group[:STRIPS].view(np.uint32).reshape(3, 3, 16).swapaxes(1, 2).reshape(48, 3)
    minus = words[:, :1] >> np.arange(32, dtype=np.uint32) & 1
    number = words[:, 1:, None] >> np.arange(0, 24, 3, dtype=np.uint32) & 7
    half = (words[:, 1] >> 24 | words[:, 2] >> 24 << 8).astype(np.uint16).view(np.float16)
    d = half.astype(np.float32) / np.float32(8)
    q = 8 * trits(group[STRIPS:].reshape(8, STRIP)) + np.where(minus, -1, 1).repeat(8, axis=1)
    return q.astype(np.int8), (2 * number.reshape(48, 16) + 1).astype(np.float32) * d[:, None]


@inline
def every_fourth_bit(x: int) -> int:
    """Bits 0, 4, 8 .. 60 of x as 16 bits."""
    x = x & 0x1111111111111111
    x = (x | x >> 3) & 0x0303030303030303
    x = (x | x >> 6) & 0x000F000F000F000F
    x = (x | x >> 12) & 0x000000FF000000FF
    return (x | x >> 24) & 0xFFFF


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        p = i64(blocks + 8 * r)
        at = out + r // 16 * PLANE + r % 16 * 4
        put_i32(at, every_fourth_bit(i64(p + 32) >> 3) | every_fourth_bit(i64(p + 40) >> 3) << 16)
        x = i64(p + 48)  # 4 x (12 bits of scales, 4 bits of d)
        low = x >> 12 & 0xF | x >> 24 & 0xF0
        high = x >> 44 & 0xF | x >> 56 & 0xF0
        put_i32(at + 64, x & 0xFFF | (x >> 16 & 0xFFF) << 12 | low << 24)
        put_i32(at + 128, x >> 32 & 0xFFF | (x >> 48 & 0xFFF) << 12 | high << 24)
    trits_of_shifted(q)
    pack_trios(q, out + STRIPS)


@inline
def eighth_of_d(p: int) -> Any:
    """D / 8 of the rows whose shifts and scales begin at p."""
    bits = load_ints(p + 64) >> 24 & 0xFF | load_ints(p + 128) >> 16 & 0xFF00
    return halves_from(bits) * numba.float32(0.125)


@inline
def add_plane(shifts: Any, scales: Any, d: Any, dot: Any, by_shift: int, ys: Any, to: int) -> None:
    """The product of 16 columns with 16 rows; shifts and scales begin with those columns'."""
    dot = fma(dot, eights(), one_of_4(by_shift, shifts))
    store_floats(to, fma(dot, odd_number(scales) * d * ys, load_floats(to)))


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    minus = alloca(256)
    negate_columns(y, minus)
    by_shift = alloca(256)  # per 16 columns: what their two shifts contribute, for each of 4 cases
    for k in range(4):
        store_f32x16(by_shift + 64 * k, signed_sums(load_i8x64(y + 64 * k)))
    for rows in range(0, 64, 4 * LANES):
        d0 = eighth_of_d(p + rows)
        d1 = eighth_of_d(p + PLANE + rows)
        d2 = eighth_of_d(p + 2 * PLANE + rows)
        shifts0 = load_ints(p + rows)
        shifts1 = load_ints(p + PLANE + rows)
        shifts2 = load_ints(p + 2 * PLANE + rows)
        at = p + STRIPS + rows
        to = acc + rows
        x = by_shift
        if rows == 0:
            for line in range(0, STRIPS, 64):
                prefetch_far(p + AHEAD + line)
        for half in range(2):
            scales0 = load_ints(p + 64 + 64 * half + rows)
            scales1 = load_ints(p + PLANE + 64 + 64 * half + rows)
            scales2 = load_ints(p + 2 * PLANE + 64 + 64 * half + rows)
            for strip in range(4 * half, 4 * half + 4):
                if rows == 0:
                    for line in range(0, STRIP, 64):
                        prefetch_far(at + AHEAD + line)
                signs = load_bytes(at + 256)
                scale = splat_float(ys + 4 * strip)
                dot0, dot1, dot2 = half_strip_dots(at, signs, 0, y + 32 * strip, minus + 32 * strip)
                add_plane(shifts0, scales0, d0, dot0, x, scale, to)
                add_plane(shifts1, scales1, d1, dot1, x, scale, to + 64)
                add_plane(shifts2, scales2, d2, dot2, x, scale, to + 128)
                dot0, dot1, dot2 = half_strip_dots(at, signs, 2, y + 32 * strip, minus + 32 * strip)
                add_plane(shifts0 >> 2, scales0 >> 3, d0, dot0, x + 16, scale, to + 192)
                add_plane(shifts1 >> 2, scales1 >> 3, d1, dot1, x + 16, scale, to + 256)
                add_plane(shifts2 >> 2, scales2 >> 3, d2, dot2, x + 16, scale, to + 320)
                shifts0 = shifts0 >> 4
                shifts1 = shifts1 >> 4
                shifts2 = shifts2 >> 4
                scales0 = scales0 >> 6
                scales1 = scales1 >> 6
                scales2 = scales2 >> 6
                at += STRIP
                to += 8 * ROWS
                x += 32


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    digits = EIGHTS() + 16 * plane
    for rows in range(0, 64, 4 * LANES):
        own = p + PLANE * plane + rows
        d = eighth_of_d(own)
        shifts = load_ints(own)
        for g in range(16):
            number = odd_number(load_ints(own + 64 + g // 8 * 64) >> 3 * (g % 8))
            store_floats(s + g * s_stride + rows, number * d)
        for g in range(8):
            strip = p + STRIPS + STRIP * g + rows
            signs = load_bytes(strip + 256)
            at = w + 2 * g * w_stride + rows
            for k in range(4):
                shift = shift_of(shifts, 4 * g + k)
                to = at + k // 2 * w_stride + k % 2 * 256
                fill_columns(strip, k, signs, digits, shift, to)


PACKED = PackedType(
    source=iq1_m.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=5 if isa.PAIRS else 32,
    looped=4,
)
