"""Q5_K: 256 weights in 176 bytes; 8 sub-blocks of 32 with a 6-bit scale and minimum each.

    | d: half | dmin: half | scales: 12 bytes | 32 bytes of fifth bits | 128 bytes of nibbles |

    weight = (d * scale[j]) * (nibble + 16 * bit) - dmin * min[j],   j = i // 32
    nibbles and scales as in Q4_K; the fifth bits of sub-block j are bit j of the 32 bytes

Source: block_q5_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.pairs import words_down, words_up
from quant.simd.unpack import move_halves
from quant.simd.vectors import (
    alloca,
    as_i8,
    load_u8,
    load_u8x32_twice,
    load_u8x64,
    shift_halves,
    store_f32x16,
    store_i8,
    store_u8x64,
)
from quant.tile.panels import storage
from quant.tile.turned import turn
from quant.types.q4_k import fill_scales, offsets, offsets_16, scales, scales_16

fifth_0, fifth_1, fifth_2, fifth_3 = (move_halves(4 - 2 * k, 3 - 2 * k, 16) for k in range(4))


@inline
def weights_64(p: int, k: int) -> Any:
    """Sub-blocks 2 k and 2 k + 1."""
    bits = load_u8x32_twice(p + 16)
    if k == 0:
        fifth = fifth_0(bits)
    elif k == 1:
        fifth = fifth_1(bits)
    elif k == 2:
        fifth = fifth_2(bits)
    else:
        fifth = fifth_3(bits)
    return shift_halves(load_u8x32_twice(p + 48 + 32 * k), 0, 4) & 15 | fifth


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    store_f32x16(o, offsets_16(p))
    bits = load_u8(p + 16)
    for k in range(4):
        v = load_u8(p + 48 + 32 * k)
        store_i8(q + 64 * k, as_i8(v & 15 | (bits >> 2 * k & 1) << 4))
        store_i8(q + 64 * k + 32, as_i8(v >> 4 | (bits >> (2 * k + 1) & 1) << 4))


turn_128, turn_32 = turn(128), turn(32)
MORE = storage(range(32)).zero


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """A block of 16 rows; contract in tile.py."""
    fill_scales(rows, at, s, o, s_stride)
    words = alloca(2560)
    turn_32(rows, at + 16, words)
    turn_128(rows, at + 48, words + 512)
    for k in range(4):
        for m in range(8):
            v = load_u8x64(words + 512 + 512 * k + 64 * m)
            bits = load_u8x64(words + 64 * m) >> 2 * k
            to = w + 2 * k * w_stride + 128 * m
            store_u8x64(to, (v & 15 | (bits & 1) << 4) + MORE)
            store_u8x64(to + w_stride, (v >> 4 | (bits & 2) << 3) + MORE)


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Contract in matvec_pairs.py."""
    v = load_u8(p + 48 + 32 * (k // 2))
    if k % 2:
        v = words_down(v, 4)
    fifth = load_u8(p + 16)
    if k < 4:
        fifth = words_up(fifth, 4 - k)
    elif k > 4:
        fifth = words_down(fifth, k - 4)
    return v & 15 | fifth & 16


QUANT = QuantType(
    ggml_type=GGMLType.Q5_K,
    decode=decode,
    weights=range(32),
    offsets=True,
    fill_16=fill_16,
    direct=Direct(
        weights_64=weights_64,
        scales_16=scales_16,
        offsets_16=offsets_16,
    ),
    pairs=Pairs(weights_32=weights_32, scales=scales, offsets=offsets, most=31),
)
