"""Q1_0: 128 weights in 18 bytes.

    | d: half | 16 bytes of bits, weight 0 in the lowest |        weight = bit ? d : -d

Source: block_q1_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import QuantType
from quant.simd.unpack import bit_mask
from quant.simd.vectors import as_i8, f16, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32(s, splat_f32(f16(p)))
    for k in range(4):
        store_i8(q + 32 * k, as_i8(bit_mask(p + 2 + 4 * k) & 2) - 1)


QUANT = QuantType(ggml_type=GGMLType.Q1_0, decode=decode, weights=range(-1, 2, 2))
