"""NVFP4: 64 weights in 36 bytes; 4-bit floats (E2M1) with an 8-bit float scale per 16.

    | 4 x scale: UE4M3 byte | 4 x 8 bytes of nibbles |        weight = scale / 2 * LEVELS[nibble]

    within 8 bytes: low nibbles are weights 0..7, high nibbles weights 8..15
    UE4M3: 4 bits of exponent (bias 7), 3 of mantissa, bit 7 ignored; 0x7F means 0
    LEVELS are twice the E2M1 values, hence scale / 2

Source: block_nvfp4 in ggml-common.h, ggml_ue4m3_to_fp32 in ggml-impl.h (llama.cpp, MIT).
"""

from __future__ import annotations

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import QuantType
from quant.simd.lookups import load_nibbles
from quant.simd.unpack import halves_from_bits, load_u8_as_i32, swap_middle
from quant.simd.vectors import lookup16, store_f32, store_i8, zero_i32
from quant.types.mxfp4 import BOOK


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py. Writes 8 scales, of which 4 count."""
    x = load_u8_as_i32(p)
    x = x & ((zero_i32() - (x ^ 0x7F)) >> 31)  # 0x7F -> 0
    # as a half with the same mantissa, which is too small by 2^(15 - 7)
    store_f32(s, halves_from_bits((x & 0x7F) << 7) * numba.float32(128))
    for k in range(2):
        store_i8(q + 32 * k, lookup16(BOOK(), swap_middle(load_nibbles(p + 4 + 16 * k))))


QUANT = QuantType(ggml_type=GGMLType.NVFP4, decode=decode, group=16, weights=range(-12, 13))
