"""What is done to rows of float32: norms, SwiGLU, rounding to records.

Rows, weights and records begin at multiples of 16 bytes; a thread has 4 columns at a time.
Columns of a record behind the row's last are zeros. `_bits` are those of a float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.cuda.exponent import silu
from quant.cuda.intrinsics import (
    as_f32,
    as_u32,
    block_x,
    block_y,
    f32,
    fma,
    load_4,
    load_f32,
    put_shared_f32,
    quotient,
    root,
    shared,
    shared_f32,
    store_4,
    store_f32,
    swap_f32,
    sync,
    thread,
    u32,
)
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import device
from quant.cuda.quantize import quantize_4

THREADS = 1024  # one row's latency counts more than many rows' rate
COLUMNS = 1024  # a record has whole multiples
NORM_SHARED = 128  # bytes of a block: a number of each warp
ZERO = np.float32(0)


@device
def four(row: Any, column: Any, n_cols: Any) -> Any:
    """Columns column .. column + 3 of a row; zeros behind its last."""
    a = ZERO
    b = ZERO
    c = ZERO
    d = ZERO
    at = row + 4 * column
    if column + 3 < n_cols:
        words = load_4(at)
        a, b, c, d = as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3])
    elif column < n_cols:
        a = load_f32(at)
        if column + 1 < n_cols:
            b = load_f32(at + 4)
        if column + 2 < n_cols:
            c = load_f32(at + 8)
    return a, b, c, d


@device
def put_four(row: Any, column: Any, n_cols: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """The same columns of a row, as far as they are there."""
    at = row + 4 * column
    if column + 3 < n_cols:
        store_4(at, as_u32(a), as_u32(b), as_u32(c), as_u32(d))
    elif column < n_cols:
        store_f32(at, a)
        if column + 1 < n_cols:
            store_f32(at + 4, b)
        if column + 2 < n_cols:
            store_f32(at + 8, c)


@device
def sum_of_block(v: Any) -> Any:
    """Of all threads' numbers, the same bits in each. NORM_SHARED bytes from `shared()` on."""
    for lanes in (16, 8, 4, 2, 1):
        v = v + swap_f32(v, lanes)
    if thread() % 32 == 0:
        put_shared_f32(shared() + thread() // 32 * 4, v)
    sync()
    v = shared_f32(shared() + 4 * (thread() % 32))
    for lanes in (16, 8, 4, 2, 1):
        v = v + swap_f32(v, lanes)
    return v


def norm(x: int, x_stride: int, weight: int, n_cols: int, eps_bits: int, out: int, out_stride: int,
         q8: int, q8_stride: int, q16: int, q16_stride: int) -> None:  # fmt: skip
    """Row / sqrt(mean of its squares + eps) * weight -> out, q8, q16: those that are not 0.

    out may be x. All is not a number if one of a row is none or their squares exceed float32.
    Grid: rows; shared memory: NORM_SHARED.
    """
    t = block_x()
    row = x + x_stride * t
    a = ZERO
    b = ZERO
    c = ZERO
    d = ZERO
    for column in range(4 * thread(), n_cols, 4 * THREADS):
        v = four(row, column, n_cols)
        a, b, c, d = fma(v[0], v[0], a), fma(v[1], v[1], b), fma(v[2], v[2], c), fma(v[3], v[3], d)
    total = sum_of_block((a + b) + (c + d))
    squares = fma(f32(n_cols), as_f32(u32(eps_bits)), total)
    scale = root(quotient(f32(n_cols), squares)) + (total - total)  # + 0, or not a number
    n = (n_cols + COLUMNS - 1) // COLUMNS * COLUMNS
    for column in range(4 * thread(), n, 4 * THREADS):
        v, w = four(row, column, n_cols), four(weight, column, n_cols)
        here = scale if column < n_cols else ZERO  # zeros behind a row that is not a number
        a, b = v[0] * here * w[0], v[1] * here * w[1]
        c, d = v[2] * here * w[2], v[3] * here * w[3]
        if out:
            put_four(out + out_stride * t, column, n_cols, a, b, c, d)
        if q8:
            quantize_4(q8 + q8_stride * t, n, column, 1, a, b, c, d)
        if q16:
            quantize_4(q16 + q16_stride * t, n, column, 2, a, b, c, d)


def to_record(x: int, x_stride: int, n_cols: int, planes: int, out: int, out_stride: int) -> None:
    """Rows -> records of 1 or 2 planes. Grid: rows."""
    t = block_x()
    n = (n_cols + COLUMNS - 1) // COLUMNS * COLUMNS
    for column in range(4 * thread(), n, 4 * THREADS):
        v = four(x + x_stride * t, column, n_cols)
        quantize_4(out + out_stride * t, n, column, planes, v[0], v[1], v[2], v[3])


def swiglu(gate: int, up: int, stride: int, n_cols: int, plain: int, plain_stride: int,
           record: int, record_stride: int, planes: int) -> None:  # fmt: skip
    """silu(gate) * up -> float32 rows `plain` and records: those that are not 0.

    Grid: columns of a record / COLUMNS, rows.
    """
    t = block_y()
    column = COLUMNS * block_x() + 4 * thread()
    g, v = four(gate + stride * t, column, n_cols), four(up + stride * t, column, n_cols)
    a, b, c, d = silu(g[0]) * v[0], silu(g[1]) * v[1], silu(g[2]) * v[2], silu(g[3]) * v[3]
    if plain:
        put_four(plain + plain_stride * t, column, n_cols, a, b, c, d)
    if record:
        n = (n_cols + COLUMNS - 1) // COLUMNS * COLUMNS
        quantize_4(record + record_stride * t, n, column, planes, a, b, c, d)


NORM = Kernel(name="norm", function=norm, threads=THREADS)
RECORD = Kernel(name="to_record", function=to_record, threads=THREADS)
SWIGLU = Kernel(name="swiglu", function=swiglu, threads=COLUMNS // 4)
