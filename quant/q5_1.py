"""Q5_1: 32 weights in 24 bytes.

    | d: half | m: half | fifth bits: 4 bytes | 16 bytes of nibbles |

    weight = d * (nibble + 16 * bit) + m
    low nibbles: weights 0..15, high nibbles: weights 16..31; bits: weight 0 in the lowest

Source: block_q5_1 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import load_nibbles
from quant.q4_1 import put_scale_and_minimum
from quant.quant_type import QuantType
from quant.simd import as_i8, store_i8
from quant.unpack import bit_mask


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    put_scale_and_minimum(p, s, o)
    store_i8(q, as_i8(load_nibbles(p + 8) | (bit_mask(p + 4) & 16)))


QUANT = QuantType(ggml_type=GGMLType.Q5_1, decode=decode, offsets=True)
