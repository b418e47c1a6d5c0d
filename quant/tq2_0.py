"""TQ2_0: 256 weights in 66 bytes.

    | 64 bytes of bit pairs | d: half |        weight = d * (pair - 1)

    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1

Source: block_tq2_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import as_i8, f16, load_u8, splat_f32, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    scale = splat_f32(f16(p + 64))
    store_f32(s, scale)
    store_f32(s + 32, scale)
    for k in range(2):
        v = load_u8(p + 32 * k)
        for l in range(4):
            store_i8(q + 128 * k + 32 * l, as_i8(v >> 2 * l & 3) - 1)


QUANT = QuantType(ggml_type=GGMLType.TQ2_0, decode=decode)
