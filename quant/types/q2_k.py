"""Q2_K: 256 weights in 84 bytes; 16 sub-blocks of 16 with a 4-bit scale and minimum each.

    | 16 x (scale: low nibble, min: high nibble) | 64 bytes of bit pairs | d: half | dmin: half |

    weight = (d * scale[j]) * pair - dmin * min[j],   j = i // 16
    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1

Source: block_q2_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

import numba

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_lanes import GROUPS, words_of
from quant.quant_type import Direct, Pairs, QuantType
from quant.simd.pairs import TWO_BY_TURNS, every_other_down, sixteen_nibbles, words_down
from quant.simd.unpack import byte_constant
from quant.simd.vectors import (
    as_i8,
    f16,
    load_u8,
    load_u8_as_i32x16,
    load_u8x32_twice,
    load_u8x64,
    shift_halves,
    shift_lanes,
    splat_f16,
    store_f32x16,
    store_i8,
    to_f32x16,
)


@inline
def scales_16(p: int) -> Any:
    """d * scale of the 16 sub-blocks."""
    return to_f32x16(load_u8_as_i32x16(p) & 15) * f16(p + 80)


@inline
def offsets_16(p: int) -> Any:
    """-dmin * min of the 16 sub-blocks."""
    return to_f32x16(load_u8_as_i32x16(p) >> 4) * -f16(p + 82)


@inline
def weights_64(p: int, k: int) -> Any:
    """Weights 64 k .. 64 k + 63."""
    v = load_u8x32_twice(p + 16 + 32 * (k // 2))
    return shift_halves(v, 4 * (k % 2), 4 * (k % 2) + 2) & 3


first_two = byte_constant([3] * 32 + [12] * 32)
last_two = byte_constant([48] * 32 + [192] * 32)
shifts = shift_lanes([0, 0, 2, 2, 4, 4, 6, 6] * 2)


@inline
def in_place(p: int, k: int) -> Any:
    """`weights_64`, each run of 32 four times larger than the one before."""
    v = load_u8x32_twice(p + 16 + 32 * (k // 2))
    return v & last_two() if k % 2 else v & first_two()


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    store_f32x16(o, offsets_16(p))
    for k in range(2):
        v = load_u8(p + 16 + 32 * k)
        for l in range(4):
            store_i8(q + 128 * k + 32 * l, as_i8((v >> 2 * l) & 3))


# --- matvec_lanes: contract there -----------------------------------------------------------------

words = words_of([8 * (g // 8) + 4 * (g % 2) for g in GROUPS])
fields = byte_constant([3 << g // 2 % 4 * 2 for g in GROUPS for _ in range(4)])
lanes_down = shift_lanes([g // 2 % 4 * 2 for g in GROUPS])


@inline
def quad_of_pairs(p: int, m: int) -> Any:
    """`quad` of 64 bytes of pairs: every run of 32 four times larger than the one before."""
    return words(load_u8x64(p), m) & fields()


@inline
def quad(p: int, m: int) -> Any:
    """Contract in matvec_lanes.py."""
    return quad_of_pairs(p + 16, m)


# --- matvec_pairs: contract there -----------------------------------------------------------------

low_nibbles = sixteen_nibbles(0, TWO_BY_TURNS)
high_nibbles = sixteen_nibbles(4, [*range(16)])


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Every other run of 32 stands shifted by 2."""
    v = load_u8(p + 16 + 32 * (k // 4))
    if k % 4 >= 2:
        v = words_down(v, 4)
    return v & 12 if k % 2 else v & 3


@inline
def scales(p: int, z: int) -> tuple[Any, Any]:
    """d * scale."""
    d = splat_f16(p + 80)
    a, b = low_nibbles(p)
    return a * d, b * d


@inline
def offsets(p: int, z: int) -> tuple[Any, Any]:
    """-dmin * min."""
    dmin = splat_f16(p + 82) * numba.float32(-1)
    a, b = high_nibbles(p)
    return a * dmin, b * dmin


QUANT = QuantType(
    ggml_type=GGMLType.Q2_K,
    decode=decode,
    weights=range(4),
    group=16,
    offsets=True,
    direct=Direct(
        weights_64=weights_64,
        scales_16=scales_16,
        offsets_16=offsets_16,
        in_place=in_place,
        shifts=shifts,
        quad=quad,
        lanes_down=lanes_down,
    ),
    pairs=Pairs(
        weights_32=weights_32, scales=scales, offsets=offsets, shifts=every_other_down, most=12
    ),
)
