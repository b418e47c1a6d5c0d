"""Q5_0: 32 weights in 22 bytes.

    | d: half | fifth bits: 4 bytes | 16 bytes of nibbles |

    weight = d * (nibble + 16 * bit - 16)
    low nibbles: weights 0..15, high nibbles: weights 16..31; bits: weight 0 in the lowest

Source: block_q5_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import bits_of_16, halves_of_16, pair_of_16, split_nibbles
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles
from quant.simd.unpack import bit_mask
from quant.simd.vectors import as_i8, f16, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    store_i8(q, as_i8(load_nibbles(p + 6) | (bit_mask(p + 2) & 16)) - 16)
    store_f32(s, splat_f32(d))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it, 16 too large."""
    return split_nibbles(pair_of_16(p + 6, p + 28)) | bits_of_16(p + 2, p + 24)


QUANT = QuantType(
    ggml_type=GGMLType.Q5_0,
    decode=decode,
    weights=range(-16, 16),
    direct=Direct32(weights_2=weights_2, scales_16=halves_of_16(22), zero=16),
)
