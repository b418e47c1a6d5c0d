"""Q5_1: 32 weights in 24 bytes.

    | d: half | m: half | fifth bits: 4 bytes | 16 bytes of nibbles |

    weight = d * (nibble + 16 * bit) + m
    low nibbles: weights 0..15, high nibbles: weights 16..31; bits: weight 0 in the lowest

Source: block_q5_1 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import bits_of_16, halves_of_16, pair_of_16, split_nibbles
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles
from quant.simd.unpack import bit_mask
from quant.simd.vectors import as_i8, store_i8
from quant.types.q4_1 import put_scale_and_minimum

scales_16 = halves_of_16(24)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    put_scale_and_minimum(p, s, o)
    store_i8(q, as_i8(load_nibbles(p + 8) | (bit_mask(p + 4) & 16)))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it."""
    return split_nibbles(pair_of_16(p + 8, p + 32)) | bits_of_16(p + 4, p + 28)


@inline
def offsets_16(p: int) -> Any:
    """The minima of 16 blocks."""
    return scales_16(p + 2)


QUANT = QuantType(
    ggml_type=GGMLType.Q5_1,
    decode=decode,
    weights=range(32),
    offsets=True,
    direct=Direct32(weights_2=weights_2, scales_16=scales_16, offsets_16=offsets_16),
)
