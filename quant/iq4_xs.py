"""IQ4_XS: 256 weights in 136 bytes; nibbles stand for IQ4_NL's 16 levels, a 6-bit scale per 32.

    | d: half | high scale bits: 16 bits | 4 x low scale nibbles: byte | 8 x 16 bytes of nibbles |

    weight = d * (scale - 32) * LEVELS[nibble]
    scale k: its low 4 bits are nibble k, its high 2 bits the bits 2 k and 2 k + 1; low ones first
    within 16 bytes: low nibbles are weights 0..15, high nibbles weights 16..31

Source: block_iq4_xs in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.iq4_nl import levels
from quant.jit import inline
from quant.lookups import fields_2, fields_4, store_f32_twice
from quant.quant_type import QuantType
from quant.simd import f16, store_i8, to_f32


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    scales = (fields_4(p + 4) | fields_2(p + 2) << 4) - 32
    for k in range(8):
        store_i8(q + 32 * k, levels(p + 8 + 16 * k))
    store_f32_twice(s, to_f32(scales) * f16(p))


QUANT = QuantType(
    ggml_type=GGMLType.IQ4_XS,
    decode=decode,
)
