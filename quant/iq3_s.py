"""IQ3_S: 256 weights in 110 bytes; words of 4 from a book of 512, 8 sign bits per 8 weights.

    | d: half | 64 x index, low 8 bits | 8 x index, bit 8 | 32 x signs: byte | 4 x scales: byte |

    weight = d * (1 + 2 * scale) * word[i % 4] * sign            word in {1, 3, 5, ... 15}
    bit-8 byte k: bit j belongs to word 8 k + j
    scales: a nibble per 32 weights, low one first

Source: block_iq3_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    fields_4,
    look_up_4x8,
    negate_where,
    next_four,
    odd_steps,
    opaque,
    store_f32_twice,
    table,
    u8x4_as_u16,
)
from quant.quant_type import QuantType
from quant.simd import f16, load_u8, store_i8, u8

BOOK = table("iq3_s", grids.iq3_s)
# times this, the bits l of a byte come to stand at 16 l + 8, for l = 0..3
SPREAD = 1 << 8 | 1 << 23 | 1 << 38 | 1 << 53
BIT_8 = 0x0100010001000100


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32_twice(s, odd_steps(f16(p), fields_4(p + 106), numba.float32(1)))
    signs = load_u8(p + 74)
    book = BOOK()
    for k in range(8):
        high = u8(p + 66 + k)
        i = u8x4_as_u16(p + 2 + 8 * k) | high * SPREAD & BIT_8
        j = u8x4_as_u16(p + 6 + 8 * k) | (high >> 4) * SPREAD & BIT_8
        v = look_up_4x8(book, opaque(i), opaque(j))
        store_i8(q + 32 * k, negate_where(v, signs))
        signs = next_four(signs)


QUANT = QuantType(ggml_type=GGMLType.IQ3_S, decode=decode)
