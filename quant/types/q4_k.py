"""Q4_K: 256 weights in 144 bytes; 8 sub-blocks of 32 with a 6-bit scale and minimum each.

    | d: half | dmin: half | scales: 12 bytes | 128 bytes of nibbles |

    weight = (d * scale[j]) * nibble - dmin * min[j],   j = i // 32
    nibbles: 4 runs of 32 bytes; run k holds sub-block 2k in the low and 2k+1 in the high nibbles
    scales (bit 7 .. 0), a/b = scale/min, number = sub-block, capital = its upper two bits:
        byte 0-3:  A4 A4 a0 a0 a0 a0 a0 a0    (5, 6, 7 and 1, 2, 3 in the next bytes)
        byte 4-7:  B4 B4 b0 b0 b0 b0 b0 b0
        byte 8-11: b4 b4 b4 b4 a4 a4 a4 a4    (lower four bits of sub-blocks 4..7)

Source: block_q4_K and get_scale_min_k4 in llama.cpp (MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_lanes import GROUPS, words_of_two
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.packed import halves_from
from quant.simd.pairs import words_down
from quant.simd.unpack import byte_constant
from quant.simd.vectors import (
    alloca,
    as_i8,
    bytes_as_f32,
    load_i32x16,
    load_u8,
    load_u8x32_twice,
    load_u8x64,
    shift_halves,
    shift_lanes,
    splat_f16,
    store_f32x16,
    store_i8,
    twice_each,
    u32,
)
from quant.tile.panels import storage
from quant.tile.tile import fill_nibbles
from quant.tile.turned import put_bytes, turn


@inline
def scales(p: int, z: int) -> Any:
    """d * scale of the 8 sub-blocks (Q4_K and Q5_K)."""
    a = u32(p + 4)
    c = u32(p + 12)
    high = c & 0x0F0F0F0F | (a >> 6 & 0x03030303) << 4
    return bytes_as_f32(a & 0x3F3F3F3F | high << 32) * splat_f16(p)


@inline
def offsets(p: int, z: int) -> Any:
    """-dmin * min of the 8 sub-blocks (Q4_K and Q5_K)."""
    b = u32(p + 8)
    c = u32(p + 12)
    high = c >> 4 & 0x0F0F0F0F | (b >> 6 & 0x03030303) << 4
    return bytes_as_f32(b & 0x3F3F3F3F | high << 32) * (splat_f16(p + 2) * numba.float32(-1))


@inline
def scales_16(p: int) -> Any:
    """Scales, each twice."""
    return twice_each(scales(p, 0))


@inline
def offsets_16(p: int) -> Any:
    """Offsets, each twice."""
    return twice_each(offsets(p, 0))


@inline
def weights_64(p: int, k: int) -> Any:
    """Sub-blocks 2 k and 2 k + 1."""
    return shift_halves(load_u8x32_twice(p + 16 + 32 * k), 0, 4) & 15


low_and_high = byte_constant([15] * 32 + [240] * 32)
shifts = shift_lanes([0, 4] * 8)


@inline
def in_place(p: int, k: int) -> Any:
    """`weights_64` with the second sub-block 16 times too large."""
    return load_u8x32_twice(p + 16 + 32 * k) & low_and_high()


words = words_of_two([8 * (g // 4) + 4 * (g % 2) for g in GROUPS])
nibbles = byte_constant([15 << g // 2 % 2 * 4 for g in GROUPS for _ in range(4)])
lanes_down = shift_lanes([g // 2 % 2 * 4 for g in GROUPS])


@inline
def quad(p: int, m: int) -> Any:
    """Every other run of 32 is 16 times too large; contract in matvec_lanes.py."""
    return words(load_u8x64(p + 16), load_u8x64(p + 80), m) & nibbles()


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    store_f32x16(o, offsets_16(p))
    for k in range(4):
        v = load_u8(p + 16 + 32 * k)
        store_i8(q + 64 * k, as_i8(v & 15))
        store_i8(q + 64 * k + 32, as_i8(v >> 4))


turn_16 = turn(16)
nibbles_of_64 = fill_nibbles(storage(range(16)).zero)


@inline
def fill_scales(rows: int, at: int, s: int, o: int, stride: int) -> None:
    """Scales and offsets of 16 rows (Q4_K and Q5_K); see `scales` and `offsets`."""
    heads = alloca(256)
    turn_16(rows, at, heads)
    both = load_i32x16(heads)
    a = load_i32x16(heads + 64)
    b = load_i32x16(heads + 128)
    c = load_i32x16(heads + 192)
    d = halves_from(both)
    put_bytes(a & 0x3F3F3F3F, d, s, stride)
    put_bytes(c & 0x0F0F0F0F | (a >> 6 & 0x03030303) << 4, d, s + 4 * stride, stride)
    minus_dmin = halves_from(both >> 16) * numba.float32(-1)
    put_bytes(b & 0x3F3F3F3F, minus_dmin, o, stride)
    high = c >> 4 & 0x0F0F0F0F | (b >> 6 & 0x03030303) << 4
    put_bytes(high, minus_dmin, o + 4 * stride, stride)


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in tile.py."""
    fill_scales(rows, at, s, o, s_stride)
    nibbles_of_64(rows, at + 16, w, w_stride)
    nibbles_of_64(rows, at + 80, w + 4 * w_stride, w_stride)


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Contract in matvec_pairs.py."""
    v = load_u8(p + 16 + 32 * (k // 2))
    if k % 2:
        v = words_down(v, 4)
    return v & 15


QUANT = QuantType(
    ggml_type=GGMLType.Q4_K,
    decode=decode,
    weights=range(16),
    offsets=True,
    direct=Direct(
        weights_64=weights_64,
        scales_16=scales_16,
        offsets_16=offsets_16,
        in_place=in_place,
        shifts=shifts,
        quad=quad,
        lanes_down=lanes_down,
    ),
    fill_16=fill_16,
    pairs=Pairs(weights_32=weights_32, scales=scales, offsets=offsets, most=15),
)
