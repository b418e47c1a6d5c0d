"""IQ3_XXS: 256 weights in 98 bytes; words of 4 from a book of 256, 7 sign bits per 8 weights.

    | d: half | 64 x index: byte | 8 x 32 bits: scale(4) sign3(7) sign2(7) sign1(7) sign0(7) |

    weight = d * (0.5 + scale) / 2 * word[i % 4] * sign          word in {4, 12, 20, ... 52, 62}
    a sign field has a bit per weight; the 8th bit is the parity of the seven

Source: block_iq3_xxs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    negate_where,
    next_four,
    odd_steps,
    signs_of_7,
    store_f32_twice,
    table,
    words_4x8,
)
from quant.quant_type import QuantType
from quant.simd import f16, load_i32, store_i8, u8

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


QUANT = QuantType(
    ggml_type=GGMLType.IQ3_XXS,
    decode=decode,
)
