"""IQ2_XXS: 256 weights in 66 bytes; words of 8 from a book of 256, 7 sign bits each, scale per 32.

    | d: half | 8 x ( 4 x index: 8 bits | 32 bits: scale(4) sign3(7) sign2(7) sign1(7) sign0(7) ) |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    a sign field has a bit per weight; the 8th bit is the parity of the seven

Source: block_iq2_xxs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    load_odd_i32,
    negate_where,
    next_four,
    odd_steps,
    signs_of_7,
    store_f32_twice,
    table,
    words_8x4,
)
from quant.quant_type import QuantType
from quant.simd import f16, store_i8, u8

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


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_XXS,
    decode=decode,
)
