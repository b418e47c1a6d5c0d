"""Q8_0: 32 weights in 34 bytes.

    | d: half | 32 x int8 q |        weight = d * q

Source: block_q8_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.matvec.matvec_32 import flip, halves_of_16, pair_of_32
from quant.quant_type import Direct32, QuantType
from quant.simd.floats import LANES, fma_v, load_i8_v, load_v, splat_v
from quant.simd.packed import halves_from
from quant.simd.vectors import (
    alloca,
    f16,
    load_i8,
    load_i32x16,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i8,
    store_u8x64,
)
from quant.tile.panels import storage
from quant.tile.turned import add_bytes, between, turn


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p)
    store_i8(q, load_i8(p + 2))
    store_f32(s, splat_f32(d))


@inline
def dot_32(p: int, c: int, x: int, acc: Any) -> Any:
    """Acc + one block; contract in float_products.py. d * q is exact."""
    block = p + c // 32 * 34
    d = splat_v(f16(block))
    for i in range(0, 32, LANES):
        acc = fma_v(load_i8_v(block + 2 + i) * d, load_v(x + 4 * i), acc)
    return acc


@inline
def weights_2(p: int) -> Any:
    """The blocks at p and behind it, FLIP too large."""
    return flip(pair_of_32(p + 2, p + 36))


turn_272 = turn(272)
MORE = storage(range(-128, 128)).zero


@inline
def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Eight blocks of 16 rows; contract in tile.py."""
    words = alloca(4352)
    turn_272(rows, at, words)
    for k in range(4):  # two blocks are 17 words
        first = words + 1088 * k
        store_f32x16(s, halves_from(load_i32x16(first)))
        store_f32x16(s + s_stride, halves_from(load_i32x16(first + 512) >> 16))
        for j in range(8):
            store_u8x64(w + 128 * j, between(first + 64 * j) + MORE)
            add_bytes(first + 576 + 64 * j, MORE, w + w_stride + 128 * j)
        s += 2 * s_stride
        w += 2 * w_stride


QUANT = QuantType(
    ggml_type=GGMLType.Q8_0,
    decode=decode,
    dot_32=dot_32,
    fill_16=fill_16,
    direct=Direct32(
        weights_2=weights_2,
        scales_16=halves_of_16(34),
        zero=isa.FLIP,
        signed=isa.FLIP == 0,
        ahead=544,  # so many bytes for so little work: processors are ahead enough
    ),
)
