"""IQ1_S: 256 weights in 50 bytes; ternary words of 8 from a book of 2048, a scale and shift per 32.

    | d: half | 32 x index, low 8 bits | 8 x 16 bits: shift(1) scale(3) high3(3) high2 high1 high0 |

    weight = d * (2 * scale + 1) * (word[i % 8] + delta)         word in {-1, 0, 1}
    delta = -1/8 where the shift bit is set, else 1/8; high: index bits 8..10 of four words

Here q = 8 * (word + delta), a whole number, and the scale is an eighth: no rounding, no offsets.

Source: block_iq1_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.kernels import PLANES
from quant.matvec.matvec_book import dots_of_trits, odd_steps_by_turns
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
    as_bytes,
    high_bits_3,
    load_quad,
    load_u8_as_i16,
    load_u16_as_i32,
    look_up_8x4,
    next_four,
    odd_steps,
    quad_0,
    quad_1,
    quad_2,
    quad_3,
    spread_four,
    store_f32_twice,
    table,
)
from quant.simd.pairs import load_one_f32
from quant.simd.vbmi import (
    bit_fields,
    load_4_by_turns,
    load_8_by_turns,
    load_u16_by_turns,
    shift_right,
    sum_pairs,
)
from quant.simd.vectors import (
    as_u8,
    f16,
    load_i32,
    load_i32x16,
    splat_f16,
    store_f32,
    store_i8,
    store_i16,
    store_i32,
    zero_i32,
)
from quant.types import grids
from quant.types.books import trit_table, weight_table

BOOK = table("iq1", lambda: 8 * grids.iq1())


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    fields = load_u16_as_i32(p + 34)
    store_f32_twice(s, odd_steps(f16(p) * numba.float32(0.125), fields >> 12 & 7))
    delta = as_bytes(zero_i32() - (fields >> 15) | 0x01010101)  # -1 or 1, four times
    book = BOOK()
    for k in range(2):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_3(p + 34 + 8 * k)
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

FIELDS = trit_table("iq1_fields", grids.iq1)
IQ1_WEIGHTS = weight_table(
    "iq1_weights", lambda i: 8 * (i & 3), lambda i: 2 * (i & 12), lambda i: i >> 1 & 24
)
threes_of_bits = bit_fields([0, 3, 6, 9, 16, 19, 22, 25])


def dots(p: int, r: int, y: int) -> tuple[Any, Any]:
    """Weights are taken as 8 * (word + 1), 0 .. 16: 8 - 8 * delta too large."""
    i = load_8_by_turns(p + 2, r + 2)
    high = threes_of_bits(load_4_by_turns(p + 34, r + 34))
    d, e = dots_of_trits(i, high, y, FIELDS(), IQ1_WEIGHTS())
    shift = shift_right(load_u16_by_turns(p + 34, r + 34), 15)
    d = sum_pairs(d, e) - (shift + shift + 7) * load_i32x16(y + 256 * PLANES + 64)
    return d, d


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 8 * (2 * scale + 1)."""
    n = shift_right(load_u16_by_turns(p + 34, r + 34), 12) & 7
    eighth = numba.float32(0.125)
    s = odd_steps_by_turns(f16(p) * eighth, f16(r) * eighth, n)
    return s, s


# --- matvec_pairs: contract there -----------------------------------------------------------------


UNSIGNED_BOOK = table("iq1_unsigned", lambda: 8 * (grids.iq1() + 1))


@inline
def prepare(p: int, z: int) -> None:
    """The numbers of the 32 words, 16 bits each; scales; what 8 * weights are too large by."""
    for k in range(2):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_3(p + 34 + 8 * k)
        store_i16(z + 32 * k, i)
    fields = load_u16_as_i32(p + 34)
    store_f32(z + 64, odd_steps(splat_f16(p) * numba.float32(0.125), fields >> 12 & 7))
    store_i32(z + 96, (fields >> 15 << 1) + 7)


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words, taken as 8 * (word + 1)."""
    return as_u8(look_up_8x4(UNSIGNED_BOOK(), load_quad(z + 8 * k)))


@inline
def finish(z: int, u: int, d: Any, at: int) -> Any:
    """Weights are 8 - 8 * delta too large."""
    return d - load_i32(z + 96) * load_i32(at)


QUANT = QuantType(
    ggml_type=GGMLType.IQ1_S,
    decode=decode,
    weights=range(-9, 10, 2),
    book=Book(dots=dots, scales=scales, signed=False),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_one_f32(64),
        finish=finish,
        prepare=prepare,
        notes=128,
        most=16,
    ),
)
