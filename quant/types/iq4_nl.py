"""IQ4_NL: 32 weights in 18 bytes; nibbles stand for 16 unevenly spaced levels.

    | d: half | 16 bytes of nibbles |        weight = d * LEVELS[nibble]

    low nibbles: weights 0..15, high nibbles: weights 16..31

Source: block_iq4_nl and kvalues_iq4nl in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import halves_of_16, pair_of_16, split_nibbles
from quant.matvec.matvec_32 import levels as levels_of
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles, table
from quant.simd.vectors import f16, lookup16, splat_f32, store_f32, store_i8

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
BOOK = table("iq4", lambda: np.array(LEVELS, np.int8))
look_up = levels_of(LEVELS)


@inline
def levels(p: int) -> Any:
    """i8x32: the levels of 32 weights; p: their 16 bytes (IQ4_NL and IQ4_XS)."""
    return lookup16(BOOK(), load_nibbles(p))


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    store_i8(q, levels(p + 2))
    store_f32(s, splat_f32(d))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it, as `flip` gives them."""
    return look_up(split_nibbles(pair_of_16(p + 2, p + 20)))


QUANT = QuantType(
    ggml_type=GGMLType.IQ4_NL,
    decode=decode,
    direct=Direct32(
        weights_2=weights_2, scales_16=halves_of_16(18), zero=isa.FLIP, signed=isa.FLIP == 0
    ),
)
