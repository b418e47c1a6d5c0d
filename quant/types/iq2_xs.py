"""IQ2_XS: 256 weights in 74 bytes; words of 8 from a book of 512, 7 sign bits each, scale per 16.

    | d: half | 32 x 16 bits: sign(7) index(9) | 8 x scale: byte |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    a sign field has a bit per weight; the 8th bit is the parity of the seven
    scale byte k: low nibble for weights 32 k .. 32 k + 15, high nibble for the next 16

Source: block_iq2_xs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_book import odd_steps_16, signed_dots_of_8s
from quant.quant_type import Book, Pairs, QuantType
from quant.simd.lookups import (
    fields,
    fields_4,
    load_odd_u8,
    load_quad,
    look_up_8x4,
    negate_where,
    next_four,
    odd_steps,
    table,
    with_parity,
    words_8x4,
)
from quant.simd.pairs import load_two_f32, turn
from quant.simd.vbmi import (
    even_bytes_by_turns,
    has_bit,
    load_nibbles_16,
    odd_bytes_by_turns,
    parity_over_high_7,
)
from quant.simd.vectors import (
    as_u8,
    f16,
    load_i16,
    splat_f16,
    store_f32,
    store_i8,
    store_i16,
    store_u8,
    u16,
)
from quant.types import grids
from quant.types.books import book_table, look_up_512

BOOK = table("iq2_xs", grids.iq2_xs)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p) * numba.float32(0.125)
    store_f32(s, odd_steps(d, fields_4(p + 66)))
    store_f32(s + 32, odd_steps(d, fields_4(p + 70)))
    signs = with_parity(load_odd_u8(p + 2) >> 1)
    book = BOOK()
    for _ in range(8):
        v = words_8x4(
            book + 8 * (u16(p + 2) & 511),
            book + 8 * (u16(p + 4) & 511),
            book + 8 * (u16(p + 6) & 511),
            book + 8 * (u16(p + 8) & 511),
        )
        store_i8(q, negate_where(v, signs))
        signs = next_four(signs)
        p += 8
        q += 32


# --- matvec_book: contract there ------------------------------------------------------------------

FIELDS = book_table("iq2_xs_fields", grids.iq2_xs)


def dots(p: int, r: int, y: int) -> tuple[Any, Any]:
    """Even bytes: index bits 0-7; odd bytes: bit 8 and the signs."""
    i = even_bytes_by_turns(p + 2, r + 2)
    high = odd_bytes_by_turns(p + 2, r + 2)
    k6, k7 = has_bit(i, 6), has_bit(i, 7)
    k8 = has_bit(high, 0)
    first = look_up_512(i, FIELDS(), k6, k7, k8)
    second = look_up_512(i, FIELDS() + 512, k6, k7, k8)
    return signed_dots_of_8s(first, second, parity_over_high_7(high), y)


@inline
def scales(p: int, r: int) -> tuple[Any, Any]:
    """d / 8 * (2 * scale + 1)."""
    eighth = numba.float32(0.125)
    return (
        odd_steps_16(f16(p) * eighth, load_nibbles_16(p + 66)),
        odd_steps_16(f16(r) * eighth, load_nibbles_16(r + 66)),
    )


# --- matvec_pairs: contract there -----------------------------------------------------------------


by_turns_4 = fields([0, 8, 16, 24, 4, 12, 20, 28], 15)


@inline
def prepare(p: int, z: int) -> None:
    """The numbers of the 32 words, 16 bits each; signs; scales."""
    store_i16(z, load_i16(p + 2) & 511)
    store_i16(z + 32, load_i16(p + 34) & 511)
    store_u8(z + 64, with_parity(load_odd_u8(p + 2) >> 1))
    d = splat_f16(p) * numba.float32(0.125)
    store_f32(z + 96, odd_steps(d, by_turns_4(p + 66)))
    store_f32(z + 128, odd_steps(d, by_turns_4(p + 70)))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Four words."""
    return as_u8(look_up_8x4(BOOK(), load_quad(z + 8 * k)))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the sign bits."""
    return turn(y, z + 64 + 4 * k)


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_XS,
    decode=decode,
    weights=range(-43, 44),
    group=16,
    book=Book(dots=dots, scales=scales, signed=True),
    pairs=Pairs(
        weights_32=weights_32,
        scales=load_two_f32(96),
        turned=turned,
        prepare=prepare,
        notes=160,
        most=43,
    ),
    looped=3,
)
