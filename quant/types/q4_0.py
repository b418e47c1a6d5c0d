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
from quant.simd.packed import halves_from
from quant.simd.vectors import (
    alloca,
    as_i8,
    f16,
    load_i32x16,
    load_u8x64,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i8,
)
from quant.tile.panels import storage
from quant.tile.turned import between, put_nibbles, turn


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


turn_144 = turn(144)
MORE = storage(range(-8, 8)).zero - 8


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Eight blocks of 16 rows; contract in tile.py."""
    words = alloca(2304)
    turn_144(rows, at, words)
    for k in range(4):  # two blocks are nine words
        first = words + 576 * k
        store_f32x16(s, halves_from(load_i32x16(first)))
        store_f32x16(s + s_stride, halves_from(load_i32x16(first + 256) >> 16))
        for j in range(4):
            put_nibbles(between(first + 64 * j), MORE, w + 128 * j)
            put_nibbles(load_u8x64(first + 320 + 64 * j), MORE, w + w_stride + 128 * j)
        s += 2 * s_stride
        w += 2 * w_stride


QUANT = QuantType(
    ggml_type=GGMLType.Q4_0,
    decode=decode,
    weights=range(-8, 8),
    direct=Direct32(weights_2=weights_2, scales_16=halves_of_16(18), zero=8),
    fill_16=fill_16,
)
