"""Q4_0: 32 weights in 18 bytes.

    | d: half | 16 bytes of nibbles |        weight = d * (nibble - 8)

    low nibbles: weights 0..15, high nibbles: weights 16..31

Source: block_q4_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import halves_of_16, pair_of_16, split_nibbles
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles
from quant.simd.vectors import as_i8, f16, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    store_i8(q, as_i8(load_nibbles(p + 2)) - 8)
    store_f32(s, splat_f32(d))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it, 8 too large."""
    return split_nibbles(pair_of_16(p + 2, p + 20))


QUANT = QuantType(
    ggml_type=GGMLType.Q4_0,
    decode=decode,
    weights=range(-8, 8),
    direct=Direct32(weights_2=weights_2, scales_16=halves_of_16(18), zero=8),
)
