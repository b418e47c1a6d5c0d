"""IQ1_M: 256 weights in 56 bytes; ternary words of 8 from a book of 2048, a scale per 16.

    | 32 x index, low 8 bits | 32 x nibble: shift(1) index bits 8..10 | 4 x 16 bits: scales |

    weight = d * (2 * scale + 1) * (word[i % 8] + delta)         word in {-1, 0, 1}
    delta = -1/8 where the shift bit is set, else 1/8; nibbles: low one first
    scales word k: d(4) scale3(3) scale2(3) scale1(3) scale0(3), for weights 64 k .. 64 k + 63
    d: half, its bits 4 k .. 4 k + 3 are those of word k

Here q = 8 * (word + delta), a whole number, and the scale is an eighth: no rounding, no offsets.

Source: block_iq1_m in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant.ggml import GGMLType
from quant.iq1_s import BOOK
from quant.jit import inline
from quant.lookups import (
    f16_from_bits,
    fields_3,
    i16_as_bytes,
    load_u8_as_i16,
    look_up_8x4,
    next_four,
    odd_steps,
    opaque,
    spread_four,
    u8x4_as_u16,
)
from quant.quant_type import QuantType
from quant.simd import i64, splat_u8, store_f32, store_i8, u16

# times this, the nibbles l of 16 bits come to stand at 16 l + 8, for l = 0..3; nibbles that meet
# another copy's are not asked for, and with 3 bits each no carry leaves them
SPREAD = 1 << 8 | 1 << 20 | 1 << 32 | 1 << 44


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    words = i64(p + 48)
    d = f16_from_bits(
        words >> 12 & 0xF | words >> 24 & 0xF0 | words >> 36 & 0xF00 | words >> 48 & 0xF000
    )
    eighth = numba.float32(0.125)
    store_f32(s, odd_steps(d, fields_3(p + 48), eighth))
    store_f32(s + 32, odd_steps(d, fields_3(p + 52), eighth))
    pairs = load_u8_as_i16(p + 32)
    delta = splat_u8(1) - (i16_as_bytes(pairs & 8 | pairs << 4 & 0x800) >> 2)  # -1 or 1
    book = BOOK()
    for k in range(8):
        high = (u16(p + 32 + 2 * k) & 0x7777) * SPREAD & 0x0700070007000700
        v = look_up_8x4(book, opaque(u8x4_as_u16(p + 4 * k) | high))
        store_i8(q + 32 * k, v + spread_four(delta))
        delta = next_four(delta)


QUANT = QuantType(ggml_type=GGMLType.IQ1_M, decode=decode)
