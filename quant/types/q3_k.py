"""Q3_K: 256 weights in 110 bytes; 16 sub-blocks of 16 with a 6-bit scale each.

    | 32 bytes of third bits | 64 bytes of bit pairs | scales: 12 bytes | d: half |

    weight = d * (scale[j] - 32) * (pair + 4 * bit - 4),   j = i // 16
    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1
    third bits: the same weights' are bit 4 k + l of the 32 bytes
    scale bytes 0-7: low nibbles belong to scales 0..7, high nibbles to 8..15
    scale bytes 8-11, byte b: bits 2 r and 2 r + 1 are the upper two bits of scale 4 r + b

Source: block_q3_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import ONE_BY_ONE, Direct, Pairs, QuantType
from quant.simd.lookups import fields
from quant.simd.pairs import every_other_down, signed_bytes_by_turns, words_down, words_up
from quant.simd.unpack import load_u8_as_i32, move_halves
from quant.simd.vectors import (
    as_i8,
    f16,
    i64,
    join_f32,
    load_u8,
    load_u8x32_twice,
    shift_halves,
    splat_f16,
    splat_f32,
    store_f32x16,
    store_i8,
    to_f32,
    u32,
)

third_0, third_1, third_2, third_3 = (move_halves(2 - 2 * k, 1 - 2 * k, 4) for k in range(4))
upper_0_to_7 = fields([0, 8, 16, 24, 2, 10, 18, 26], 3)
upper_8_to_15 = fields([4, 12, 20, 28, 6, 14, 22, 30], 3)


@inline
def scales_16(p: int) -> Any:
    """d * (scale - 32) of the 16 sub-blocks."""
    d = f16(p + 108)
    x = load_u8_as_i32(p + 96)
    first = (x & 15 | upper_0_to_7(p + 104) << 4) - 32
    second = (x >> 4 | upper_8_to_15(p + 104) << 4) - 32
    return join_f32(to_f32(first) * d, to_f32(second) * d)


@inline
def weights_64(p: int, k: int) -> Any:
    """Weights 64 k .. 64 k + 63, 4 too large."""
    v = shift_halves(load_u8x32_twice(p + 32 + 32 * (k // 2)), 4 * (k % 2), 4 * (k % 2) + 2)
    bits = load_u8x32_twice(p)
    if k == 0:
        third = third_0(bits)
    elif k == 1:
        third = third_1(bits)
    elif k == 2:
        third = third_2(bits)
    else:
        third = third_3(bits)
    return v & 3 | third


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    bits = load_u8(p)
    for k in range(2):
        v = load_u8(p + 32 + 32 * k)
        for l in range(4):
            third = (bits >> (4 * k + l) & 1) << 2
            store_i8(q + 128 * k + 32 * l, as_i8(v >> 2 * l & 3 | third) - 4)


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """4 too large; every other run of 32 stands shifted by 2."""
    v = load_u8(p + 32 + 32 * (k // 4))
    if k % 4 >= 2:
        v = words_down(v, 4)
    third = load_u8(p)
    to = 4 if k % 2 else 2
    if k < to:
        third = words_up(third, to - k)
    elif k > to:
        third = words_down(third, k - to)
    return v & 12 | third & 16 if k % 2 else v & 3 | third & 4


@inline
def scales(p: int, z: int) -> tuple[Any, Any]:
    """d * (scale - 32)."""
    low = i64(p + 96)
    upper = u32(p + 104)
    first = upper & 0x03030303 | (upper >> 2 & 0x03030303) << 32
    second = upper >> 4 & 0x03030303 | (upper >> 6 & 0x03030303) << 32
    a, b = signed_bytes_by_turns(
        low & 0x0F0F0F0F0F0F0F0F | first << 4, low >> 4 & 0x0F0F0F0F0F0F0F0F | second << 4
    )
    d = splat_f16(p + 108)
    zero = splat_f32(numba.float32(32))
    return (a - zero) * d, (b - zero) * d


QUANT = QuantType(
    ggml_type=GGMLType.Q3_K,
    decode=decode,
    weights=range(-4, 4),
    group=16,
    direct=Direct(weights_64=weights_64, scales_16=scales_16, zero=4),
    pairs=Pairs(weights_32=weights_32, scales=scales, shifts=every_other_down, zero=4, most=28),
    looped=max(ONE_BY_ONE, 2),
)
