"""IQ1_M: 256 weights in 56 bytes; ternary words of 8 from a book of 2048, a scale per 16.

    | 32 x index, low 8 bits | 32 x nibble: shift(1) index bits 8..10 | 4 x 16 bits: scales |

    weight = d * (2 * scale + 1) * (word[i % 8] + delta)         word in {-1, 0, 1}
    delta = -1/8 where the shift bit is set, else 1/8; nibbles: low one first
    scales word k: d(4) scale3(3) scale2(3) scale1(3) scale0(3), for weights 64 k .. 64 k + 63
    d: half, its bits 4 k .. 4 k + 3 are those of word k

Here q = 8 * (word + delta), a whole number, and the scale is an eighth: no rounding, no offsets.

Source: block_iq1_m in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.books import halves_of_trits, weight_table
from quant.ggml import GGMLType
from quant.iq1_s import BOOK, FIELDS, UNSIGNED_BOOK
from quant.jit import inline
from quant.kernels import PLANES
from quant.lookups import (
    f16_from_bits,
    fields,
    fields_3,
    high_bits_4,
    i16_as_bytes,
    load_quad,
    load_u8_as_i16,
    look_up_8x4,
    next_four,
    odd_steps,
    quad_0,
    quad_1,
    quad_2,
    quad_3,
    spread_four,
)
from quant.matvec_book import odd_steps_16, shifted_dot_of_trits
from quant.quant_type import Book, Pairs, QuantType
from quant.simd import (
    as_u8,
    i64,
    load_i32x16,
    splat_u8,
    store_f32,
    store_i8,
    store_i16,
    store_u8,
)
from quant.simd_pairs import load_spread, load_two_f32
from quant.simd_vbmi import (
    bit_fields,
    interleave_first,
    interleave_second,
    load_3_bits_16,
    load_4_by_turns,
    load_8_by_turns,
)


@inline
def block_scale(p: int) -> Any:
    """d of the block at p."""
    words = i64(p + 48)
    return f16_from_bits(
        words >> 12 & 0xF | words >> 24 & 0xF0 | words >> 36 & 0xF00 | words >> 48 & 0xF000
    )


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = block_scale(p) * numba.float32(0.125)
    store_f32(s, odd_steps(d, fields_3(p + 48)))
    store_f32(s + 32, odd_steps(d, fields_3(p + 52)))
    pairs = load_u8_as_i16(p + 32)
    delta = splat_u8(1) - (i16_as_bytes(pairs & 8 | pairs << 4 & 0x800) >> 2)  # -1 or 1
    book = BOOK()
    for k in range(2):
        i = load_u8_as_i16(p + 16 * k) | high_bits_4(p + 32 + 8 * k)
        store_i8(q, look_up_8x4(book, quad_0(i)) + spread_four(delta))
        delta = next_four(delta)
        store_i8(q + 32, look_up_8x4(book, quad_1(i)) + spread_four(delta))
        delta = next_four(delta)
        store_i8(q + 64, look_up_8x4(book, quad_2(i)) + spread_four(delta))
        delta = next_four(delta)
        store_i8(q + 96, look_up_8x4(book, quad_3(i)) + spread_four(delta))
        delta = next_four(delta)
        q += 128


# --- matvec_book: contract there ------------------------------------------------------------------

IQ1_M_WEIGHTS = weight_table(
    "iq1_m_weights",
    lambda i: 8 * (i & 3) + 2 - 2 * (i >> 4 & 1),
    lambda i: 2 * (i & 12) + 2 - 2 * (i >> 4 & 1),
)
nibbles = bit_fields([0, 4, 8, 12, 16, 20, 24, 28])


def dots(p: int, r: int, y: int) -> tuple[Any, Any]:
    """Weights are taken as 8 * (word + delta) + 9, 0 .. 18."""
    i = load_8_by_turns(p, r)
    high = nibbles(load_4_by_turns(p + 32, r + 32))
    first, second = halves_of_trits(i, high, FIELDS())
    shift = high << 1
    weights = IQ1_M_WEIGHTS()
    sums = load_i32x16(y + 256 * PLANES + 64) * 9
    fields = interleave_first(first, second)
    d = shifted_dot_of_trits(fields, interleave_first(shift, shift), y, weights)
    fields = interleave_second(first, second)
    e = shifted_dot_of_trits(fields, interleave_second(shift, shift), y, weights)
    return d - sums, e - sums


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 8 * (2 * scale + 1)."""
    eighth = numba.float32(0.125)
    return (
        odd_steps_16(block_scale(p) * eighth, load_3_bits_16(p + 48)),
        odd_steps_16(block_scale(r) * eighth, load_3_bits_16(r + 48)),
    )


# --- matvec_pairs: contract there -----------------------------------------------------------------


by_turns_3 = fields([0, 6, 16, 22, 3, 9, 19, 25], 7)


@inline
def prepare(p: int, z: int) -> None:
    """The numbers of the 32 words, 16 bits each; 8 * delta + 1 of each, a byte; scales."""
    for k in range(2):
        i = load_u8_as_i16(p + 16 * k) | high_bits_4(p + 32 + 8 * k)
        store_i16(z + 32 * k, i)
    pairs = load_u8_as_i16(p + 32)
    store_u8(z + 64, splat_u8(2) - (i16_as_bytes(pairs & 8 | pairs << 4 & 0x800) >> 2))
    d = block_scale(p) * numba.float32(0.125)
    store_f32(z + 96, odd_steps(d, by_turns_3(p + 48)))
    store_f32(z + 128, odd_steps(d, by_turns_3(p + 52)))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words, taken as 8 * (word + delta) + 9."""
    w = look_up_8x4(UNSIGNED_BOOK(), load_quad(z + 8 * k))
    return as_u8(w) + load_spread(z + 64 + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ1_M,
    decode=decode,
    group=16,
    book=Book(dots=dots, scales=scales, signed=False),
    pairs=Pairs(
        weights_32=weights_32, scales=load_two_f32(96), prepare=prepare, notes=160, zero=9, most=18
    ),
)
