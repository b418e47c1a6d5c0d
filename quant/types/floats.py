"""F32, F16 and BF16: rows of plain numbers.

Both products take float32 activations; F16 and BF16 weights are widened, nothing is rounded.
Rows of 32 n columns only: the weight store pads others with zeros.
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import QuantType
from quant.simd.floats import LANES, fma_v, load_bf16_v, load_f16_v, load_v
from quant.simd.vectors import load_bf16, load_f16, load_f32, store_f32


@inline
def f32_row(p: int, n_cols: int, out: int) -> None:
    """n_cols float32 at p -> float32 at out."""
    for i in range(0, 4 * n_cols, 32):
        store_f32(out + i, load_f32(p + i))


@inline
def f16_row(p: int, n_cols: int, out: int) -> None:
    """n_cols halves at p -> float32 at out."""
    for i in range(0, 2 * n_cols, 16):
        store_f32(out + 2 * i, load_f16(p + i))


@inline
def bf16_row(p: int, n_cols: int, out: int) -> None:
    """n_cols bfloat16 at p -> float32 at out."""
    for i in range(0, 2 * n_cols, 16):
        store_f32(out + 2 * i, load_bf16(p + i))


@inline
def f32_dot(p: int, c: int, x: int, acc: Any) -> Any:
    """Acc + 32 columns from c; contract in float_products.py."""
    for i in range(0, 32, LANES):
        acc = fma_v(load_v(p + 4 * (c + i)), load_v(x + 4 * i), acc)
    return acc


@inline
def f16_dot(p: int, c: int, x: int, acc: Any) -> Any:
    """Acc + 32 columns from c."""
    for i in range(0, 32, LANES):
        acc = fma_v(load_f16_v(p + 2 * (c + i)), load_v(x + 4 * i), acc)
    return acc


@inline
def bf16_dot(p: int, c: int, x: int, acc: Any) -> Any:
    """Acc + 32 columns from c."""
    for i in range(0, 32, LANES):
        acc = fma_v(load_bf16_v(p + 2 * (c + i)), load_v(x + 4 * i), acc)
    return acc


F32 = QuantType(ggml_type=GGMLType.F32, decode_row=f32_row, dot_32=f32_dot)
F16 = QuantType(ggml_type=GGMLType.F16, decode_row=f16_row, dot_32=f16_dot)
BF16 = QuantType(ggml_type=GGMLType.BF16, decode_row=bf16_row, dot_32=bf16_dot)
