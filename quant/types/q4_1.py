"""Q4_1: 32 weights in 20 bytes.

    | d: half | m: half | 16 bytes of nibbles |        weight = d * nibble + m

    low nibbles: weights 0..15, high nibbles: weights 16..31

Source: block_q4_1 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import halves_of_16, pair_of_16, split_nibbles
from quant.quant_type import Direct32, QuantType
from quant.simd.lookups import load_nibbles
from quant.simd.vectors import as_i8, f16, splat_f32, store_f32, store_i8

scales_16 = halves_of_16(20)


@inline
def put_scale_and_minimum(p: int, s: int, o: int) -> None:
    """D and m, for both halves of the block (Q4_1 and Q5_1)."""
    store_f32(s, splat_f32(f16(p)))
    store_f32(o, splat_f32(f16(p + 2)))


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    put_scale_and_minimum(p, s, o)
    store_i8(q, as_i8(load_nibbles(p + 4)))


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it."""
    return split_nibbles(pair_of_16(p + 4, p + 24))


@inline
def offsets_16(p: int) -> Any:
    """The minima of 16 blocks."""
    return scales_16(p + 2)


QUANT = QuantType(
    ggml_type=GGMLType.Q4_1,
    decode=decode,
    weights=range(16),
    offsets=True,
    direct=Direct32(weights_2=weights_2, scales_16=scales_16, offsets_16=offsets_16),
)
