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
from quant.simd.packed import halves_from
from quant.simd.pairs import TWO_BY_TURNS, every_other_down, sixteen_nibbles, words_down
from quant.simd.unpack import byte_constant
from quant.simd.vectors import (
    alloca,
    as_i8,
    f16,
    load_i32x16,
    load_u8,
    load_u8_as_i32x16,
    load_u8x32_twice,
    load_u8x64,
    shift_halves,
    shift_lanes,
    splat_f16,
    store_f32x16,
    store_i8,
    store_u8x64,
    to_f32x16,
)
from quant.tile.panels import storage
from quant.tile.turned import put_bytes, row_words, turn


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


# --- tile.py: contract there --------------------------------------------------------------------

turn_64, turn_16 = turn(64), turn(16)
MORE = storage(range(4)).zero


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """A block of 16 rows."""
    words = alloca(1280)
    turn_16(rows, at, words)
    turn_64(rows, at + 16, words + 256)
    both = row_words(rows, at + 80)
    d = halves_from(both)
    minus_dmin = halves_from(both >> 16) * numba.float32(-1)
    for i in range(4):
        numbers = load_i32x16(words + 64 * i)
        put_bytes(numbers & 0x0F0F0F0F, d, s + 4 * i * s_stride, s_stride)
        put_bytes(numbers >> 4 & 0x0F0F0F0F, minus_dmin, o + 4 * i * s_stride, s_stride)
    for k in range(2):
        for m in range(8):
            v = load_u8x64(words + 256 + 512 * k + 64 * m)
            to = w + (8 * k + m // 4) * w_stride + m % 4 * 128
            for l in range(4):
                store_u8x64(to + 2 * l * w_stride, (v >> 2 * l & 3) + MORE)


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
    fill_16=fill_16,
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
