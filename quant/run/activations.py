"""float32 activations -> records of int8 (Q8) or of two int8 planes (Q16), one per token.

    [ planes | scale: n/32 | sums32: n/32 | sums16: n/16 | isum32: n/32 | isum16: n/16 | words |
      slack ]

    planes  Q8: n x int8, value = scale * q;  Q16: hi: n x int8, lo: n x int8,
            value = scale * (256 hi + lo);  n is a multiple of 32
    scale   float32. Q8: max|x| / 127 of the 32 columns, q = round(x / scale), ties to even,
            |q| <= 127;  Q16: hi as in Q8, lo = 256ths of the rest, scale 256 times smaller
    isum    int32: the sum of the integer values of 32 or 16 columns
    sums    float32: scale * isum, what offsets and minima of the weights are multiplied by
    words   Q16, where `isa.PAIRS`: the integer values as n x int16, from a multiple of 64 on;
            of four the second and third change places: what tile.py multiplies

Q8 is finer than llama.cpp's one scale per 256 columns (Q8_K): the rounding error of a product is
about 0.73 of its. Q16 has 1/256 of the error of Q8 for one more dot product per weight. Routed
experts, which are most of the work, take Q8; everything else takes Q16: what reaches the router
decides which experts run, and that is where rounding hurts. 32 columns of zeros, or of values whose
inverse float32 cannot hold (|x| < TINY), have scale 0. Where a column is infinite or not a number,
the scale is not a number, and with it every product.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline, kernel, task
from quant.run.fields import I64, Fields, write
from quant.run.pool import Pool
from quant.simd.vectors import (
    abs_f32,
    fma,
    i64,
    load_f32,
    max_f32,
    maximum_f32,
    min_f32,
    put_f32,
    put_i32,
    round_f32,
    splat_f32,
    store_i8x8,
    store_i16x8,
    sum_f32,
    zero_f32,
)

TINY = 1e-33  # also 1/256 of its 127th is a normal float32


def record_bytes(n: int, planes: int = 1) -> int:
    """Bytes of one record of n columns (planes: 1 for Q8, 2 for Q16): 64 x (8 k + 5).

    Kernels read whole steps of 256 columns, so a record ends with slack. A tile's tokens, one
    record after the other, do not meet in the same sets of L1.
    """
    last = words_offset(n) + 2 * n if isa.PAIRS and planes == 2 else planes * n + n // 8 * 7
    lines = -(-(last + 256) // 64)
    return (lines + (5 - lines) % 8) * 64


@inline
def words_offset(n: int) -> int:
    """Where the words of a Q16 record begin."""
    return (2 * n + n // 8 * 7 + 63) // 64 * 64


def empty_records(shape: tuple[int, ...], n: int, planes: int) -> np.ndarray:
    """Room for records: (*shape, record_bytes) uint8, each at a multiple of 64 bytes.

    A vector that crosses a cache line is loaded in two steps.
    """
    size = record_bytes(n, planes)
    room = np.empty(math.prod(shape) * size + 63, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + math.prod(shape) * size].reshape(*shape, size)


@inline
def quantize_32(x: int, n: int, record: int, column: int, planes: int) -> None:
    """Columns column .. column+31 of one record from 32 float32 at x."""
    a = load_f32(x)
    b = load_f32(x + 32)
    c = load_f32(x + 64)
    d = load_f32(x + 96)
    top = maximum_f32(max_f32(max_f32(abs_f32(a), abs_f32(b)), max_f32(abs_f32(c), abs_f32(d))))
    scale = numba.float32(0)
    inverse = numba.float32(0)
    if top > numba.float32(TINY):
        scale = top / numba.float32(127)
        inverse = numba.float32(127) / top
    ha = round_f32(a * inverse)
    hb = round_f32(b * inverse)
    hc = round_f32(c * inverse)
    hd = round_f32(d * inverse)
    store_i8x8(record + column, ha)
    store_i8x8(record + column + 8, hb)
    store_i8x8(record + column + 16, hc)
    store_i8x8(record + column + 24, hd)
    if planes == 2:
        scale = scale * numba.float32(1 / 256)
        la = _rest(a * inverse, ha)
        lb = _rest(b * inverse, hb)
        lc = _rest(c * inverse, hc)
        ld = _rest(d * inverse, hd)
        store_i8x8(record + n + column, la)
        store_i8x8(record + n + column + 8, lb)
        store_i8x8(record + n + column + 16, lc)
        store_i8x8(record + n + column + 24, ld)
        whole = numba.float32(256)
        ha = fma(ha, splat_f32(whole), la)
        hb = fma(hb, splat_f32(whole), lb)
        hc = fma(hc, splat_f32(whole), lc)
        hd = fma(hd, splat_f32(whole), ld)
        if isa.PAIRS:
            words = record + words_offset(n) + 2 * column
            store_i16x8(words, ha)
            store_i16x8(words + 16, hb)
            store_i16x8(words + 32, hc)
            store_i16x8(words + 48, hd)
    at = record + planes * n + column // 8
    first = sum_f32(ha + hb)  # whole numbers below 2^24: exact in any order
    second = sum_f32(hc + hd)
    scale = scale + ((first + second) - (first + second))  # + 0
    put_f32(at, scale)
    put_f32(at + n // 8, scale * (first + second))
    put_i32(at + n // 2, np.int64(first + second))
    at = record + planes * n + column // 4
    put_f32(at + n // 4, scale * first)
    put_f32(at + n // 4 + 4, scale * second)
    put_i32(at + n // 8 * 5, np.int64(first))
    put_i32(at + n // 8 * 5 + 4, np.int64(second))


@inline
def _rest(x: Any, whole: Any) -> Any:
    """256ths of x - whole, at most 127 either way: `dot_i8` cannot negate -128."""
    most = splat_f32(numba.float32(127))
    rest = round_f32((x - whole) * numba.float32(256))
    return max_f32(min_f32(rest, most), zero_f32() - most)


class Quantize(Fields):
    """Fields of `quantize_task`."""

    X = I64  # (N,) float32 of a row
    X_STRIDE = I64
    N = I64
    OUT = I64  # its record
    OUT_STRIDE = I64
    PLANES = I64


@task
def quantize_task(context: int, index: int, thread: int) -> None:
    """One row. context: `Quantize`."""
    x = i64(context + Quantize.X) + index * i64(context + Quantize.X_STRIDE)
    n = i64(context + Quantize.N)
    out = i64(context + Quantize.OUT) + index * i64(context + Quantize.OUT_STRIDE)
    for c in range(0, n, 32):
        quantize_32(x + 4 * c, n, out, c, i64(context + Quantize.PLANES))


def quantize_rows(pool: Pool, x: np.ndarray, out: np.ndarray, planes: int) -> None:
    """X (T, n) float32 -> records out (T, record_bytes) uint8, in parallel over rows."""
    context = write(
        Quantize, X=x.ctypes.data, X_STRIDE=x.strides[0], N=x.shape[1], OUT=out.ctypes.data,
        OUT_STRIDE=out.strides[0], PLANES=planes,
    )  # fmt: skip
    pool.run(quantize_task.address, context.ctypes.data, len(x))


@kernel()
def quantize_row(x: int, n: int, out: int, planes: int) -> None:
    """One row of n float32 -> its record, on the calling thread."""
    for c in range(0, n, 32):
        quantize_32(x + 4 * c, n, out, c, planes)


def quantize(x: np.ndarray, planes: int = 1) -> np.ndarray:
    """Records of x: (..., n) float32 -> (..., record_bytes(n, planes)) uint8."""
    x = np.ascontiguousarray(x, np.float32)
    n = x.shape[-1]
    if n % 32:
        raise ValueError(f"row of {n} activations is not a multiple of 32")
    out = empty_records(x.shape[:-1], n, planes)
    for r in range(x.size // n):
        quantize_row(x.ctypes.data + 4 * n * r, n, out.ctypes.data + out.shape[-1] * r, planes)
    return out


def record_values(records: np.ndarray, n: int, planes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(q (..., n) int32, scales (..., n/32) float32) of records; for tests and reading along."""
    q = records[..., :n].view(np.int8).astype(np.int32)
    if planes == 2:
        q = 256 * q + records[..., n : 2 * n].view(np.int8)
    start = planes * n
    scales = np.ascontiguousarray(records[..., start : start + n // 8]).view(np.float32)
    return q, scales
