"""Q2_0: 64 weights in 18 bytes.

    | d: half | 16 bytes of bit pairs, weight 0 in the lowest |        weight = d * (pair - 1)

Source: block_q2_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import QuantType
from quant.simd.lookups import as_bytes
from quant.simd.unpack import load_u8_as_i32
from quant.simd.vectors import as_i8, f16, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32(s, splat_f32(f16(p)))
    for k in range(2):
        x = load_u8_as_i32(p + 2 + 8 * k)
        pairs = (x | x << 6 | x << 12 | x << 18) & 0x03030303
        store_i8(q + 32 * k, as_i8(as_bytes(pairs)) - 1)


QUANT = QuantType(ggml_type=GGMLType.Q2_0, decode=decode, weights=range(-1, 3))
