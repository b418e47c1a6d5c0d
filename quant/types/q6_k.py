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

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.packed import halves_from
from quant.simd.pairs import signed_bytes_by_turns, words_down, words_up
from quant.simd.unpack import move_halves
from quant.simd.vectors import (
    alloca,
    as_i8,
    f16,
    i64,
    join_f32,
    load_i8_as_f32,
    load_i32x16,
    load_u8,
    load_u8x32_twice,
    load_u8x64,
    splat_f16,
    store_f32x16,
    store_i8,
    store_u8x64,
    to_f32x16,
)
from quant.tile.panels import storage
from quant.tile.turned import row_words, turn

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


# --- tile.py: contract there --------------------------------------------------------------------

turn_192, turn_16 = turn(192), turn(16)
MORE = storage(range(-32, 32)).zero - 32


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """A block of 16 rows."""
    words = alloca(3328)
    turn_192(rows, at, words)
    turn_16(rows, at + 192, words + 3072)
    d = halves_from(row_words(rows, at + 206) >> 16)
    for i in range(4):
        scales = load_i32x16(words + 3072 + 64 * i)
        for j in range(4):
            store_f32x16(s + (4 * i + j) * s_stride, to_f32x16(scales << 24 - 8 * j >> 24) * d)
    for k in range(2):
        for m in range(8):
            a = load_u8x64(words + 1024 * k + 64 * m)
            b = load_u8x64(words + 1024 * k + 512 + 64 * m)
            v = load_u8x64(words + 2048 + 512 * k + 64 * m)
            to = w + (8 * k + m // 4) * w_stride + m % 4 * 128
            store_u8x64(to, (a & 15 | (v & 3) << 4) + MORE)
            store_u8x64(to + 2 * w_stride, (b & 15 | (v & 12) << 2) + MORE)
            store_u8x64(to + 4 * w_stride, (a >> 4 | v & 48) + MORE)
            store_u8x64(to + 6 * w_stride, (b >> 4 | v >> 2 & 48) + MORE)


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """32 too large."""
    v = load_u8(p + 64 * (k // 4) + 32 * (k % 2))
    upper = load_u8(p + 128 + 32 * (k // 4))
    if k % 4 == 0:
        upper = words_up(upper, 4)
    elif k % 4 == 1:
        upper = words_up(upper, 2)
    elif k % 4 == 3:
        upper = words_down(upper, 2)
    if k % 4 >= 2:
        v = words_down(v, 4)
    return v & 15 | upper & 48


@inline
def scales(p: int, z: int) -> tuple[Any, Any]:
    """d * scale."""
    d = splat_f16(p + 208)
    a, b = signed_bytes_by_turns(i64(p + 192), i64(p + 200))
    return a * d, b * d


QUANT = QuantType(
    ggml_type=GGMLType.Q6_K,
    decode=decode,
    weights=range(-32, 32),
    group=16,
    fill_16=fill_16,
    direct=Direct(weights_64=weights_64, scales_16=scales_16, zero=32),
    pairs=Pairs(weights_32=weights_32, scales=scales, zero=32, most=63),
)
