"""MXFP4: 32 weights in 17 bytes; 4-bit floats (E2M1) under a power of two.

    | e: byte | 16 bytes of nibbles |        weight = 2^(e - 128) * LEVELS[nibble]

    low nibbles: weights 0..15, high nibbles: weights 16..31
    LEVELS are twice the E2M1 values, hence 2^(e - 128) where the MX standard has 2^(e - 127)

Source: block_mxfp4 and kvalues_mxfp4 in ggml-common.h (llama.cpp, MIT); OCP Microscaling 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import bytes_of_16, levels, pair_of_16, powers_of_2, split_nibbles
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles, table
from quant.simd.vectors import f32_from_bits, lookup16, splat_f32, store_f32, store_i8, u8

LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
BOOK = table("e2m1", lambda: np.array(LEVELS, np.int8))
look_up = levels(LEVELS)
exponents_16 = bytes_of_16(17)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    e = u8(p)
    # 2^-128 and 2^-127 are subnormal float32
    d = f32_from_bits((e - 1) << 23 if e > 1 else 0x200000 << e)
    store_i8(q, lookup16(BOOK(), load_nibbles(p + 1)))
    store_f32(s, splat_f32(d))


@inline
def scales_16(p: int) -> Any:
    """The scales of 16 blocks."""
    return powers_of_2(exponents_16(p))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it, as `flip` gives them."""
    return look_up(split_nibbles(pair_of_16(p + 1, p + 18)))


QUANT = QuantType(
    ggml_type=GGMLType.MXFP4,
    decode=decode,
    weights=range(-12, 13),
    direct=Direct32(weights_2=weights_2, scales_16=scales_16, zero=isa.FLIP, signed=isa.FLIP == 0),
)
