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

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.kernels import PLANES
from quant.matvec.matvec_book import odd_steps_16, shifted_dot_of_trits
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
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
from quant.simd.pairs import by_turns_i32, dot_i16, load_two_f32, minus_7_or_9, sums_of_8
from quant.simd.unpack import load_u8_as_i32
from quant.simd.vbmi import (
    bit_fields,
    interleave_first,
    interleave_second,
    load_3_bits_16,
    load_4_by_turns,
    load_8_by_turns,
)
from quant.simd.vectors import (
    as_u8,
    i64,
    load_i16,
    load_i32x16,
    splat_u8,
    store_f32,
    store_i8,
    store_i16,
    store_i32,
)
from quant.types.books import halves_of_trits, weight_table
from quant.types.iq1_s import BOOK, FIELDS, UNSIGNED_BOOK


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
    """The numbers of the 32 words, 16 bits each; 8 * (delta - 1) of each, 16 bits; scales."""
    for k in range(2):
        i = load_u8_as_i16(p + 16 * k) | high_bits_4(p + 32 + 8 * k)
        store_i16(z + 32 * k, i)
        both = by_turns_i32(load_u8_as_i32(p + 32 + 8 * k))  # of two words: bits 3 and 7
        store_i16(z + 64 + 32 * k, minus_7_or_9((both >> 2 & 2) | (both & 0x80) << 10))
    d = block_scale(p) * numba.float32(0.125)
    store_f32(z + 128, odd_steps(d, by_turns_3(p + 48)))
    store_f32(z + 160, odd_steps(d, by_turns_3(p + 52)))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words, taken as 8 * (word + 1)."""
    return as_u8(look_up_8x4(UNSIGNED_BOOK(), load_quad(z + 8 * k)))


def order(x: int, c: int, n: int, u: int) -> None:
    """Sums of 8 activations, 16 bits each, by turns of two; plane by plane."""
    for plane in range(PLANES):
        for k in range(2):
            sums = sums_of_8(x + plane * n + c + 128 * k)
            store_i32(u + 64 * plane + 32 * k, by_turns_i32(sums))


def finish_both(z: int, u: int, d: Any, e: Any) -> tuple[Any, Any]:
    """Weights are 8 - 8 * delta too large."""
    first = load_i16(z + 64)
    second = load_i16(z + 96)
    v = dot_i16(first, load_i16(u))
    w = dot_i16(second, load_i16(u + 32))
    if PLANES == 2:
        v = (v << 8) + dot_i16(first, load_i16(u + 64))
        w = (w << 8) + dot_i16(second, load_i16(u + 96))
    return d + v, e + w


QUANT = QuantType(
    ggml_type=GGMLType.IQ1_M,
    decode=decode,
    weights=range(-9, 10, 2),
    group=16,
    book=Book(dots=dots, scales=scales, signed=False),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_two_f32(128),
        finish_both=finish_both,
        prepare=prepare,
        notes=192,
        order=order,
        ordered=128,
        most=16,
    ),
)
