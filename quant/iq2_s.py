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
    half_steps,
    look_up_8x4,
    negate_where,
    next_four,
    opaque,
    table,
    u8x4_as_u16,
)
from quant.quant_type import QuantType
from quant.simd import f16, load_u8, store_f32, store_i8, u8

BOOK = table("iq2_s", grids.iq2_s)
# times this, the bits 2 l and 2 l + 1 of a byte come to stand at 16 l + 8, for l = 0..3
SPREAD = 1 << 8 | 1 << 22 | 1 << 36 | 1 << 50


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    quarter = numba.float32(0.25)
    store_f32(s, half_steps(d, fields_4(p + 74), quarter))
    store_f32(s + 32, half_steps(d, fields_4(p + 78), quarter))
    signs = load_u8(p + 34)
    book = BOOK()
    for k in range(8):
        high = u8(p + 66 + k) * SPREAD & 0x0300030003000300
        v = look_up_8x4(book, opaque(u8x4_as_u16(p + 2 + 4 * k) | high))
        store_i8(q + 32 * k, negate_where(v, signs))
        signs = next_four(signs)


QUANT = QuantType(ggml_type=GGMLType.IQ2_S, decode=decode)
