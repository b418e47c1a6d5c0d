"""Q8_0: 32 weights in 34 bytes.

    | d: half | 32 x int8 q |        weight = d * q

Source: block_q8_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import f16, load_i8, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    store_i8(q, load_i8(p + 2))
    store_f32(s, splat_f32(d))


QUANT = QuantType(ggml_type=GGMLType.Q8_0, decode=decode)
