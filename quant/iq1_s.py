"""IQ1_S: 256 weights in 50 bytes; ternary words of 8 from a book of 2048, a scale and shift per 32.

    | d: half | 32 x index, low 8 bits | 8 x 16 bits: shift(1) scale(3) high3(3) high2 high1 high0 |

    weight = d * (2 * scale + 1) * (word[i % 8] + delta)         word in {-1, 0, 1}
    delta = -1/8 where the shift bit is set, else 1/8; high: index bits 8..10 of four words

Here q = 8 * (word + delta), a whole number, and the scale is an eighth: no rounding, no offsets.

Source: block_iq1_s in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant import grids
from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import (
    as_bytes,
    load_u16_as_i32,
    look_up_8x4,
    next_four,
    odd_steps,
    opaque,
    spread_four,
    store_f32_twice,
    table,
    u8x4_as_u16,
)
from quant.quant_type import QuantType
from quant.simd import f16, store_i8, u16, zero_i32

BOOK = table("iq1", lambda: 8 * grids.iq1())
# times this, the bits 3 l .. 3 l + 2 of 12 come to stand at 16 l + 8, for l = 0..3
SPREAD = 1 << 8 | 1 << 21 | 1 << 34 | 1 << 47


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    fields = load_u16_as_i32(p + 34)
    store_f32_twice(s, odd_steps(f16(p), fields >> 12 & 7, numba.float32(0.125)))
    delta = as_bytes(zero_i32() - (fields >> 15) | 0x01010101)  # -1 or 1, four times
    book = BOOK()
    for k in range(8):
        high = (u16(p + 34 + 2 * k) & 0xFFF) * SPREAD & 0x0700070007000700
        v = look_up_8x4(book, opaque(u8x4_as_u16(p + 2 + 4 * k) | high))
        store_i8(q + 32 * k, v + spread_four(delta))
        delta = next_four(delta)


QUANT = QuantType(ggml_type=GGMLType.IQ1_S, decode=decode)
