"""TQ2_0: 256 weights in 66 bytes.

    | 64 bytes of bit pairs | d: half |        weight = d * (pair - 1)

    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1

Source: block_tq2_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.pairs import every_other_down, words_down
from quant.simd.unpack import byte_constant
from quant.simd.vectors import (
    as_i8,
    f16,
    load_u8,
    load_u8x32_twice,
    shift_halves,
    shift_lanes,
    splat_f16,
    splat_f32x16,
    store_f32x16,
    store_i8,
)
from quant.types.q2_k import lanes_down, quad_of_pairs


@inline
def scales_16(p: int) -> Any:
    """16 times d."""
    return splat_f32x16(f16(p + 64))


@inline
def weights_64(p: int, k: int) -> Any:
    """Weights 64 k .. 64 k + 63, 1 too large."""
    v = load_u8x32_twice(p + 32 * (k // 2))
    return shift_halves(v, 4 * (k % 2), 4 * (k % 2) + 2) & 3


first_two = byte_constant([3] * 32 + [12] * 32)
last_two = byte_constant([48] * 32 + [192] * 32)
shifts = shift_lanes([0, 2, 4, 6] * 4)


@inline
def in_place(p: int, k: int) -> Any:
    """`weights_64`, each run of 32 four times larger than the one before."""
    v = load_u8x32_twice(p + 32 * (k // 2))
    return v & last_two() if k % 2 else v & first_two()


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    for k in range(2):
        v = load_u8(p + 32 * k)
        for l in range(4):
            store_i8(q + 128 * k + 32 * l, as_i8(v >> 2 * l & 3) - 1)


# --- matvec_pairs: contract there -----------------------------------------------------------------


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """1 too large; every other run of 32 stands shifted by 2."""
    v = load_u8(p + 32 * (k // 4))
    if k % 4 >= 2:
        v = words_down(v, 4)
    return v & 12 if k % 2 else v & 3


@inline
def scales(p: int, z: int) -> Any:
    """8 times d."""
    return splat_f16(p + 64)


QUANT = QuantType(
    ggml_type=GGMLType.TQ2_0,
    decode=decode,
    weights=range(-1, 3),
    direct=Direct(
        weights_64=weights_64,
        scales_16=scales_16,
        zero=1,
        in_place=in_place,
        shifts=shifts,
        quad=quad_of_pairs,  # Q2_K's pairs lie alike
        lanes_down=lanes_down,
    ),
    pairs=Pairs(weights_32=weights_32, scales=scales, shifts=every_other_down, zero=1, most=12),
    looped=3,
)
