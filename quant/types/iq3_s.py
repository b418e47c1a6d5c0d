"""IQ3_S: 256 weights in 110 bytes; words of 4 from a book of 512, 8 sign bits per 8 weights.

    | d: half | 64 x index, low 8 bits | 8 x index, bit 8 | 32 x signs: byte | 4 x scales: byte |

    weight = d * (1 + 2 * scale) * word[i % 4] * sign            word in {1, 3, 5, ... 15}
    bit-8 byte k: bit j belongs to word 8 k + j
    scales: a nibble per 32 weights, low one first

Source: block_iq3_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_book import dots_of_4s, odd_steps_by_turns
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
    fields_4,
    high_bits_1,
    load_quad,
    load_u8_as_i16,
    look_up_4x8,
    negate_where,
    next_four,
    odd_steps,
    quad_0,
    quad_1,
    quad_2,
    quad_3,
    store_f32_twice,
    table,
)
from quant.simd.pairs import load_one_f32, turn
from quant.simd.vbmi import has_bit, load_8_by_turns, load_mask, load_nibbles_by_turns
from quant.simd.vectors import (
    as_u8,
    f16,
    load_u8,
    load_u8x64,
    splat_f16,
    store_f32,
    store_i8,
    store_i16,
)
from quant.types import grids
from quant.types.books import book_table, look_up_512, weight_table_3

BOOK = table("iq3_s", grids.iq3_s)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32_twice(s, odd_steps(f16(p), fields_4(p + 106)))
    signs = load_u8(p + 74)
    book = BOOK()
    for k in range(4):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_1(p + 66 + 2 * k)
        v = look_up_4x8(book, quad_0(i), quad_1(i))
        store_i8(q + 64 * k, negate_where(v, signs))
        signs = next_four(signs)
        v = look_up_4x8(book, quad_2(i), quad_3(i))
        store_i8(q + 64 * k + 32, negate_where(v, signs))
        signs = next_four(signs)


# --- matvec_book: contract there ------------------------------------------------------------------

VALUES = (1, 3, 5, 7, 9, 11, 13, 15)
FIELDS = book_table("iq3_s_fields", grids.iq3_s)
WEIGHTS = weight_table_3("iq3_s_weights", VALUES)


@inline
def halves(p: int) -> tuple[Any, Any]:
    """The halves of the 64 words of the block at p."""
    i = load_u8x64(p + 2)
    k6, k7 = has_bit(i, 6), has_bit(i, 7)
    k8 = load_mask(p + 66)
    return look_up_512(i, FIELDS(), k6, k7, k8), look_up_512(i, FIELDS() + 512, k6, k7, k8)


@inline
def signs_by_turns(p: int, r: int) -> Any:
    """A byte for two words."""
    return load_8_by_turns(p + 74, r + 74)


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d * (2 * scale + 1)."""
    s = odd_steps_by_turns(f16(p), f16(r), load_nibbles_by_turns(p + 106, r + 106))
    return s, s


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def prepare(p: int, z: int) -> None:
    """The numbers of the 64 words, 16 bits each; scales."""
    for k in range(4):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_1(p + 66 + 2 * k)
        store_i16(z + 32 * k, i)
    store_f32(z + 128, odd_steps(splat_f16(p), fields_4(p + 106)))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Eight words."""
    return as_u8(look_up_4x8(BOOK(), load_quad(z + 16 * k), load_quad(z + 16 * k + 8)))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the sign bits."""
    return turn(y, p + 74 + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ3_S,
    decode=decode,
    weights=range(-15, 16, 2),
    book=Book(
        dots=dots_of_4s,
        scales=scales,
        signed=True,
        names={"halves": halves, "signs_by_turns": signs_by_turns, "weights": WEIGHTS},
    ),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_one_f32(128),
        turned=turned,
        prepare=prepare,
        notes=160,
        most=15,
    ),
    looped=3,
)
