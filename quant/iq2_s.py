"""IQ2_S: 256 weights in 82 bytes; words of 8 from a book of 1024, 8 sign bits each, scale per 16.

    | d: half | 32 x index, low 8 bits | 32 x signs: byte | 8 x index, high bits | 8 x scale: byte |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    high-bits byte k: index bits 8 and 9 of words 4 k .. 4 k + 3, lowest two bits first
    scale byte k: low nibble for weights 32 k .. 32 k + 15, high nibble for the next 16

Source: block_iq2_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    fields_4,
    high_bits_2,
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
from quant.quant_type import QuantType
from quant.simd import f16, load_u8, store_f32, store_i8

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


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_S,
    decode=decode,
    group=16,
)
