"""IQ4_XS: 256 weights in 136 bytes; nibbles stand for IQ4_NL's 16 levels, a 6-bit scale per 32.

    | d: half | high scale bits: 16 bits | 4 x low scale nibbles: byte | 8 x 16 bytes of nibbles |

    weight = d * (scale - 32) * LEVELS[nibble]
    scale k: its low 4 bits are nibble k, its high 2 bits the bits 2 k and 2 k + 1; low ones first
    within 16 bytes: low nibbles are weights 0..15, high nibbles weights 16..31

Source: block_iq4_xs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.lookups import (
    fields_2,
    fields_4,
    load_nibbles_64,
    lookup16_64,
    store_f32_twice,
    table,
)
from quant.simd.pairs import magnitudes, turn_like
from quant.simd.vectors import f16, splat_f16, store_i8, to_f32, twice_each
from quant.types.iq4_nl import LEVELS, levels


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    scales = (fields_4(p + 4) | fields_2(p + 2) << 4) - 32
    for k in range(8):
        store_i8(q + 32 * k, levels(p + 8 + 16 * k))
    store_f32_twice(s, to_f32(scales) * f16(p))


ZERO = 128
UNSIGNED = table("iq4_unsigned", lambda: (np.array(LEVELS) + ZERO).astype(np.uint8))


@inline
def weights_64(p: int, k: int) -> Any:
    """Contract in matvec_64.py."""
    return lookup16_64(UNSIGNED(), load_nibbles_64(p + 8 + 32 * k))


@inline
def scales_16(p: int) -> Any:
    """Contract in matvec_64.py."""
    scales = (fields_4(p + 4) | fields_2(p + 2) << 4) - 32
    return twice_each(to_f32(scales) * f16(p))


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def magnitudes_32(p: int, z: int, k: int) -> Any:
    """Without signs."""
    return magnitudes(levels(p + 8 + 16 * k))


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """By the signs of the levels."""
    return turn_like(y, levels(p + 8 + 16 * k))


@inline
def scales(p: int, z: int) -> Any:
    """d * (scale - 32)."""
    return to_f32((fields_4(p + 4) | fields_2(p + 2) << 4) - 32) * splat_f16(p)


# up to 241: more than 64, which only VNNI multiplies exactly
direct = Direct(weights_64=weights_64, scales_16=scales_16, zero=ZERO)
QUANT = QuantType(
    ggml_type=GGMLType.IQ4_XS,
    decode=decode,
    direct=direct if isa.ISA in ("avx512vnni", "avxvnni") else None,
    pairs=Pairs(weights_32=magnitudes_32, scales=scales, turned=turned, most=127),
)
