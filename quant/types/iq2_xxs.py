"""IQ2_XXS: 256 weights in 66 bytes; words of 8 from a book of 256, 7 sign bits each, scale per 32.

    | d: half | 8 x ( 4 x index: 8 bits | 32 bits: scale(4) sign3(7) sign2(7) sign1(7) sign0(7) ) |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    a sign field has a bit per weight; the 8th bit is the parity of the seven

Source: block_iq2_xxs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_book import signed_dots_of_8s
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
    load_odd_i32,
    look_up_4_bytes,
    negate_where,
    next_four,
    odd_steps,
    signs_of_7,
    store_f32_twice,
    table,
    words_8x4,
)
from quant.simd.pairs import load_one_f32, turn
from quant.simd.vbmi import (
    as_i32x16,
    bit_fields,
    evens_by_turns,
    has_bit,
    odds_by_turns,
    parity_over_low_7,
    shift_right,
    sum_pairs,
    two_by_turns,
)
from quant.simd.vectors import (
    as_u8,
    f16,
    splat_f16,
    store_f32,
    store_i8,
    store_u8,
    to_f32x16,
    u8,
)
from quant.types import grids
from quant.types.books import book_table, look_up_256

BOOK = table("iq2_xxs", grids.iq2_xxs)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    fields = load_odd_i32(p + 2)
    scales = odd_steps(f16(p) * numba.float32(0.125), fields >> 28 & 15)
    signs = signs_of_7(fields)
    book = BOOK()
    for _ in range(8):
        v = words_8x4(
            book + 8 * u8(p + 2), book + 8 * u8(p + 3), book + 8 * u8(p + 4), book + 8 * u8(p + 5)
        )
        store_i8(q, negate_where(v, signs))
        signs = next_four(signs)
        p += 8
        q += 32
    store_f32_twice(s, scales)


# --- matvec_book: contract there ------------------------------------------------------------------

FIELDS = book_table("iq2_xxs_fields", grids.iq2_xxs)
sign_fields = bit_fields([0, 7, 14, 21, 32, 39, 46, 53])


def dots(p: int, r: int, y: int) -> tuple[Any, Any]:
    """The words of 32 bits are indices and fields in turn."""
    i = evens_by_turns(p + 2, r + 2)
    k6, k7 = has_bit(i, 6), has_bit(i, 7)
    first = look_up_256(i, FIELDS(), k6, k7)
    second = look_up_256(i, FIELDS() + 256, k6, k7)
    signs = parity_over_low_7(sign_fields(odds_by_turns(p + 2, r + 2)))
    d, e = signed_dots_of_8s(first, second, signs, y)
    return sum_pairs(d, e), e


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 8 * (2 * scale + 1)."""
    n = shift_right(as_i32x16(odds_by_turns(p + 2, r + 2)), 27) | 1
    eighth = numba.float32(0.125)
    s = to_f32x16(n) * two_by_turns(f16(p) * eighth, f16(r) * eighth)
    return s, s


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def prepare(p: int, z: int) -> None:
    """Signs, then scales."""
    fields = load_odd_i32(p + 2)
    store_u8(z, signs_of_7(fields))
    store_f32(z + 32, odd_steps(splat_f16(p) * numba.float32(0.125), fields >> 28 & 15))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words."""
    return as_u8(look_up_4_bytes(BOOK(), p + 2 + 8 * k))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the sign bits."""
    return turn(y, z + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_XXS,
    decode=decode,
    weights=range(-43, 44),
    book=Book(dots=dots, scales=scales, signed=True),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_one_f32(32),
        turned=turned,
        prepare=prepare,
        notes=64,
        most=43,
    ),
    looped=3,
)
