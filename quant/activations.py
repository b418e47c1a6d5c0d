"""float32 activations -> Q8 records: int8 with one float32 scale per 32 columns.

    [ q: n x int8 | scale: n/32 x float32 | sums: n/16 x float32 ]   n a multiple of 32

    scale = max|x| / 127 of the 32 columns;  q = round(x / scale), ties to even, |q| <= 127
    sums[g] = scale * (sum of 16 q): what offsets and minima of the weights are multiplied by

Finer than llama.cpp's one scale per 256 columns (Q8_K) and exact float32 scales where it keeps
halves (Q8_0): the rounding error of a product is about 0.73 of its. A row of zeros has scale 0.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import prange

from quant.jit import inline, kernel
from quant.simd import (
    abs_f32,
    f32,
    load_f32,
    max_f32,
    maximum_f32,
    put_f32,
    round_f32,
    s8,
    splat_f32,
    store_i8x8,
    sum_f32,
)


def record_bytes(n: int) -> int:
    """Bytes of one Q8 record of n columns, rounded up to 64."""
    return -(-(n + n // 8 + n // 4) // 64) * 64


@inline
def quantize_32(x: int, n: int, record: int, column: int) -> None:
    """Columns column .. column+31 of one record from 32 float32 at x."""
    a = load_f32(x)
    b = load_f32(x + 32)
    c = load_f32(x + 64)
    d = load_f32(x + 96)
    top = maximum_f32(max_f32(max_f32(abs_f32(a), abs_f32(b)), max_f32(abs_f32(c), abs_f32(d))))
    scale = top / numba.float32(127)
    inverse = numba.float32(0)
    if scale > numba.float32(0):
        inverse = numba.float32(127) / top
    a = round_f32(a * inverse)
    b = round_f32(b * inverse)
    c = round_f32(c * inverse)
    d = round_f32(d * inverse)
    store_i8x8(record + column, a)
    store_i8x8(record + column + 8, b)
    store_i8x8(record + column + 16, c)
    store_i8x8(record + column + 24, d)
    put_f32(record + n + column // 8, scale)
    sums = record + n + n // 8 + column // 4
    put_f32(sums, scale * sum_f32(a + b))
    put_f32(sums + 4, scale * sum_f32(c + d))


@kernel(parallel=True)
def quantize_rows(x: int, x_stride: int, n: int, n_rows: int, out: int, out_stride: int) -> None:
    """n_rows rows of n float32 -> Q8 records; strides in bytes. Parallel over rows."""
    for r in prange(n_rows):
        for c in range(0, n, 32):
            quantize_32(x + r * x_stride + 4 * c, n, out + r * out_stride, c)


@kernel()
def quantize_row(x: int, n: int, out: int) -> None:
    """One row of n float32 -> its Q8 record, on the calling thread."""
    for c in range(0, n, 32):
        quantize_32(x + 4 * c, n, out, c)


@inline
def dequantize_record(record: int, n: int, out: int) -> None:
    """The float32 values that a Q8 record stands for."""
    for c in range(0, n, 32):
        scale = f32(record + n + c // 8)
        for i in range(32):
            put_f32(out + 4 * (c + i), scale * numba.float32(s8(record + c + i)))


def quantize(x: np.ndarray) -> np.ndarray:
    """Q8 records of x: (..., n) float32 -> (..., record_bytes(n)) uint8."""
    x = np.ascontiguousarray(x, np.float32)
    n = x.shape[-1]
    if n % 32:
        raise ValueError(f"row of {n} activations is not a multiple of 32")
    rows = x.size // n
    out = np.empty((*x.shape[:-1], record_bytes(n)), np.uint8)
    for r in range(rows):
        quantize_row(x.ctypes.data + 4 * n * r, n, out.ctypes.data + out.shape[-1] * r)
    return out


def record_values(records: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(q (..., n) int8, scales (..., n/32) float32) of Q8 records; for tests and reading along."""
    q = records[..., :n].view(np.int8)
    scales = np.ascontiguousarray(records[..., n : n + n // 8]).view(np.float32)
    return q, scales
