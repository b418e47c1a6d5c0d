"""IQ3_XXS: 256 weights in 98 bytes; words of 4 from a book of 256, 7 sign bits per 8 weights.

    | d: half | 64 x index: byte | 8 x 32 bits: scale(4) sign3(7) sign2(7) sign1(7) sign0(7) |

    weight = d * (0.5 + scale) / 2 * word[i % 4] * sign          word in {4, 12, 20, ... 52, 62}
    a sign field has a bit per weight; the 8th bit is the parity of the seven

Source: block_iq3_xxs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_book import dots_of_4s
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
    look_up_8_bytes,
    negate_where,
    next_four,
    odd_steps,
    signs_of_7,
    store_f32_twice,
    table,
    words_4x8,
)
from quant.simd.pairs import load_one_f32, turn
from quant.simd.vbmi import (
    as_i32x16,
    bit_fields,
    has_bit,
    load_8_by_turns,
    parity_over_low_7,
    shift_right,
    two_by_turns,
)
from quant.simd.vectors import (
    as_u8,
    f16,
    load_i32,
    load_u8x64,
    splat_f16,
    store_f32,
    store_i8,
    store_u8,
    to_f32x16,
    u8,
)
from quant.types import grids
from quant.types.books import book_table, look_up_256, weight_table_3

BOOK = table("iq3_xxs", grids.iq3_xxs)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    fields = load_i32(p + 66)
    store_f32_twice(s, odd_steps(f16(p) * numba.float32(0.25), fields >> 28 & 15))
    signs = signs_of_7(fields)
    book = BOOK()
    for _ in range(8):
        v = words_4x8(
            book + 4 * u8(p + 2), book + 4 * u8(p + 3), book + 4 * u8(p + 4), book + 4 * u8(p + 5),
            book + 4 * u8(p + 6), book + 4 * u8(p + 7), book + 4 * u8(p + 8), book + 4 * u8(p + 9),
        )  # fmt: skip
        store_i8(q, negate_where(v, signs))
        signs = next_four(signs)
        p += 8
        q += 32


# --- matvec_book: contract there ------------------------------------------------------------------

VALUES = (4, 12, 20, 28, 36, 44, 52, 62)
FIELDS = book_table("iq3_xxs_fields", grids.iq3_xxs)
WEIGHTS = weight_table_3("iq3_xxs_weights", VALUES)
sign_fields = bit_fields([0, 7, 14, 21, 32, 39, 46, 53])


@inline
def halves(p: int) -> tuple[Any, Any]:
    """The halves of the 64 words of the block at p."""
    i = load_u8x64(p + 2)
    k6, k7 = has_bit(i, 6), has_bit(i, 7)
    return look_up_256(i, FIELDS(), k6, k7), look_up_256(i, FIELDS() + 256, k6, k7)


@inline
def signs_by_turns(p: int, r: int) -> Any:
    """A byte for two words."""
    return parity_over_low_7(sign_fields(load_8_by_turns(p + 66, r + 66)))


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 4 * (2 * scale + 1)."""
    n = shift_right(as_i32x16(load_8_by_turns(p + 66, r + 66)), 27) | 1
    quarter = numba.float32(0.25)
    s = to_f32x16(n) * two_by_turns(f16(p) * quarter, f16(r) * quarter)
    return s, s


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def prepare(p: int, z: int) -> None:
    """Signs, then scales."""
    fields = load_i32(p + 66)
    store_u8(z, signs_of_7(fields))
    store_f32(z + 32, odd_steps(splat_f16(p) * numba.float32(0.25), fields >> 28 & 15))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Eight words."""
    return as_u8(look_up_8_bytes(BOOK(), p + 2 + 8 * k))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the sign bits."""
    return turn(y, z + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ3_XXS,
    decode=decode,
    weights=range(-62, 63, 2),
    book=Book(
        dots=dots_of_4s,
        scales=scales,
        signed=True,
        names={"halves": halves, "signs_by_turns": signs_by_turns, "weights": WEIGHTS},
    ),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_one_f32(32),
        turned=turned,
        prepare=prepare,
        notes=64,
        most=62,
    ),
    looped=3,
)
