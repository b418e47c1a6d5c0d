"""IQ2_S: 256 weights in 82 bytes; words of 8 from a book of 1024, 8 sign bits each, scale per 16.

    | d: half | 32 x index, low 8 bits | 32 x signs: byte | 8 x index, high bits | 8 x scale: byte |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    high-bits byte k: index bits 8 and 9 of words 4 k .. 4 k + 3, lowest two bits first
    scale byte k: low nibble for weights 32 k .. 32 k + 15, high nibble for the next 16

Source: block_iq2_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_book import odd_steps_16, signed_dots_of_8s
from quant.quant_type import ONE_BY_ONE, Book, Pairs, QuantType
from quant.simd.lookups import (
    fields,
    fields_4,
    high_bits_2,
    load_quad,
    load_u8_as_i16,
    look_up_8x4,
    negate_where,
    next_four,
    odd_steps,
    quad_0,
    quad_1,
    quad_2,
    quad_3,
    table,
)
from quant.simd.pairs import load_two_f32, turn
from quant.simd.vbmi import (
    bit_fields,
    has_bit,
    load_2_by_turns,
    load_8_by_turns,
    load_nibbles_16,
)
from quant.simd.vectors import (
    as_u8,
    f16,
    load_u8,
    splat_f16,
    store_f32,
    store_i8,
    store_i16,
)
from quant.types import grids
from quant.types.books import book_table, look_up_1024

BOOK = table("iq2_s", grids.iq2_s)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p) * numba.float32(0.125)
    store_f32(s, odd_steps(d, fields_4(p + 74)))
    store_f32(s + 32, odd_steps(d, fields_4(p + 78)))
    signs = load_u8(p + 34)
    book = BOOK()
    for k in range(2):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_2(p + 66 + 4 * k)
        store_i8(q, negate_where(look_up_8x4(book, quad_0(i)), signs))
        signs = next_four(signs)
        store_i8(q + 32, negate_where(look_up_8x4(book, quad_1(i)), signs))
        signs = next_four(signs)
        store_i8(q + 64, negate_where(look_up_8x4(book, quad_2(i)), signs))
        signs = next_four(signs)
        store_i8(q + 96, negate_where(look_up_8x4(book, quad_3(i)), signs))
        signs = next_four(signs)
        q += 128


# --- matvec_book: contract there ------------------------------------------------------------------

FIELDS = book_table("iq2_s_fields", grids.iq2_s)
pairs_of_bits = bit_fields([0, 2, 4, 6, 8, 10, 12, 14])


def dots(p: int, r: int, y: int) -> tuple[Any, Any]:
    """Signs are whole bytes."""
    i = load_8_by_turns(p + 2, r + 2)
    high = pairs_of_bits(load_2_by_turns(p + 66, r + 66))
    k6, k7 = has_bit(i, 6), has_bit(i, 7)
    k8 = has_bit(high, 0)
    k9 = has_bit(high, 1)
    first = look_up_1024(i, FIELDS(), k6, k7, k8, k9)
    second = look_up_1024(i, FIELDS() + 1024, k6, k7, k8, k9)
    return signed_dots_of_8s(first, second, load_8_by_turns(p + 34, r + 34), y)


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 8 * (2 * scale + 1)."""
    eighth = numba.float32(0.125)
    return (
        odd_steps_16(f16(p) * eighth, load_nibbles_16(p + 74)),
        odd_steps_16(f16(r) * eighth, load_nibbles_16(r + 74)),
    )


# --- matvec_pairs: contract there -----------------------------------------------------------------


by_turns_4 = fields([0, 8, 16, 24, 4, 12, 20, 28], 15)


@inline
def prepare(p: int, z: int) -> None:
    """The numbers of the 32 words, 16 bits each; scales."""
    for k in range(2):
        i = load_u8_as_i16(p + 2 + 16 * k) | high_bits_2(p + 66 + 4 * k)
        store_i16(z + 32 * k, i)
    d = splat_f16(p) * numba.float32(0.125)
    store_f32(z + 64, odd_steps(d, by_turns_4(p + 74)))
    store_f32(z + 96, odd_steps(d, by_turns_4(p + 78)))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words."""
    return as_u8(look_up_8x4(BOOK(), load_quad(z + 8 * k)))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the sign bits."""
    return turn(y, p + 34 + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_S,
    decode=decode,
    weights=range(-43, 44),
    group=16,
    book=Book(dots=dots, scales=scales, signed=True),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_two_f32(64),
        turned=turned,
        prepare=prepare,
        notes=128,
        most=43,
    ),
    looped=max(ONE_BY_ONE, 2),
)
