"""Q6_K: 256 weights in 210 bytes; 16 sub-blocks of 16 with an 8-bit scale each.

    | 128 bytes of nibbles | 64 bytes of upper bit pairs | 16 x scale: int8 | d: half |

    weight = d * scale[j] * (nibble + 16 * pair - 32),   j = i // 16
    half k = 0, 1: weights 128 k .. + 127, nibble bytes 64 k .. + 63, pair bytes 32 k .. + 31
    its weights 32 l .. + 31: nibble bytes 32 (l % 2) .. + 31 of these, low (l < 2) or high nibbles;
    bits 2 l and 2 l + 1 of the pair bytes

Source: block_q6_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import Direct, QuantType
from quant.simd import (
    as_i8,
    f16,
    join_f32,
    load_i8_as_f32,
    load_u8,
    load_u8x32_twice,
    load_u8x64,
    store_f32x16,
    store_i8,
)
from quant.unpack import move_halves

first_pairs, second_pairs = move_halves(4, 2, 48), move_halves(0, -2, 48)


@inline
def scales_16(p: int) -> Any:
    """d * scale of the 16 sub-blocks."""
    d = f16(p + 208)
    return join_f32(load_i8_as_f32(p + 192) * d, load_i8_as_f32(p + 200) * d)


@inline
def weights_64(p: int, k: int) -> Any:
    """Weights 64 k .. 64 k + 63, 32 too large."""
    nibbles = load_u8x64(p + 64 * (k // 2)) >> 4 * (k % 2) & 15
    pairs = load_u8x32_twice(p + 128 + 32 * (k // 2))
    return nibbles | (first_pairs(pairs) if k % 2 == 0 else second_pairs(pairs))


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    for k in range(2):
        a = load_u8(p + 64 * k)
        b = load_u8(p + 64 * k + 32)
        v = load_u8(p + 128 + 32 * k)
        store_i8(q + 128 * k, as_i8(a & 15 | (v & 3) << 4) - 32)
        store_i8(q + 128 * k + 32, as_i8(b & 15 | (v & 12) << 2) - 32)
        store_i8(q + 128 * k + 64, as_i8(a >> 4 | v & 48) - 32)
        store_i8(q + 128 * k + 96, as_i8(b >> 4 | (v & 192) >> 2) - 32)


QUANT = QuantType(
    ggml_type=GGMLType.Q6_K,
    decode=decode,
    group=16,
    direct=Direct(weights_64=weights_64, scales_16=scales_16, zero=32),
)
