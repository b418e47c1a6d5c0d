"""IQ2_XS: 256 weights in 74 bytes; words of 8 from a book of 512, 7 sign bits each, scale per 16.

    | d: half | 32 x 16 bits: sign(7) index(9) | 8 x scale: byte |

    weight = d * (0.5 + scale) / 4 * word[i % 8] * sign          word in {8, 25, 43}
    a sign field has a bit per weight; the 8th bit is the parity of the seven
    scale byte k: low nibble for weights 32 k .. 32 k + 15, high nibble for the next 16

Source: block_iq2_xs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    fields_4,
    load_odd_u8,
    negate_where,
    next_four,
    odd_steps,
    table,
    with_parity,
    words_8x4,
)
from quant.quant_type import QuantType
from quant.simd import f16, store_f32, store_i8, u16

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


QUANT = QuantType(
    ggml_type=GGMLType.IQ2_XS,
    decode=decode,
    group=16,
)
