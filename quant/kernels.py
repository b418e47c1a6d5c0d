"""The templates every quant type is built from: dequantise, matrix-vector, matrix-matrix.

A type supplies one function, its readable definition

    decode(p, q, s, o)    # p: address of a block; q: (size,) int8; s, o: (size/16,) float32

such that weight[i] = s[i // 16] * q[i] + o[i // 16], bit for bit what libggml's dequantize_row
gives. From it the templates below make C kernels `kernel(job, r0, r1)`; a job is a record of int64
in memory (`Job`), rows r0 <= r < r1 are computed. Types may bring faster kernels of their own under
the same contract.

Activations of `matvec` are int8 with one float32 scale per 32 columns, as one record per token:

    [ q: n x int8 | scale: n/32 x float32 | sums: n/16 x float32 ]   sums = scale * sum of 16 q

Sums are exact in int32 within 32 columns and float32 across them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numba

from quant.jit import inline
from quant.simd import (
    alloca,
    dot_i8,
    f32,
    fma,
    i64,
    load_f32,
    load_i8,
    load_i8_as_f32,
    pair_f32,
    prefetch,
    put_f32,
    splat_f32,
    store_f32,
    sum_f32,
    to_f32,
    zero_f32,
)


class Job(IntEnum):
    """Fields of a job record (int64 each); addresses in bytes."""

    KERNEL = 0  # address of the C kernel
    W = 1  # row 0 of the weights
    ROW_BYTES = 2
    N_ROWS = 3
    N_COLS = 4
    X = 5  # activations of token 0: a Q8 record (matvec) or float32 (matmul)
    X_STRIDE = 6  # bytes from token to token
    N_TOKENS = 7
    OUT = 8  # float32; out[t, r] at OUT + t * OUT_STRIDE + 4 * r
    OUT_STRIDE = 9
    KERNEL2 = 10  # fused gate+up: the same three fields for `up`
    W2 = 11
    ROW_BYTES2 = 12
    OUT_ROW0 = 13  # subtracted from r when the output is addressed


JOB_FIELDS = 16
_W, _ROW_BYTES, _N_COLS, _X, _X_STRIDE, _N_TOKENS, _OUT, _OUT_STRIDE, _ROW0 = (
    8 * int(f)
    for f in (
        Job.W, Job.ROW_BYTES, Job.N_COLS, Job.X, Job.X_STRIDE,
        Job.N_TOKENS, Job.OUT, Job.OUT_STRIDE, Job.OUT_ROW0,
    )
)  # fmt: skip

# open names of the templates, replaced by jit.c_kernel
SIZE = 256  # weights per block
BYTES = 0  # bytes per block


OFFSETS = True  # False: the type never writes o


def decode(p: int, q: int, s: int, o: int) -> None:
    """Open: replaced by the type's own."""


def decode_row(p: int, n_cols: int, out: int) -> None:
    """Open: `decode_quantised_row` or a float type's own."""


def decode_quantised_row(p: int, n_cols: int, out: int) -> None:
    """Dequantise a row to float32; one rounding in s * q and one in + o, like libggml."""
    q = alloca(256)
    s = alloca(64)
    o = alloca(64)
    for _ in range(n_cols // SIZE):
        decode(p, q, s, o)
        for g in range(SIZE // 16):
            scale = splat_f32(f32(s + 4 * g))
            offset = splat_f32(f32(o + 4 * g))
            if OFFSETS:
                store_f32(out, load_i8_as_f32(q + 16 * g) * scale + offset)
                store_f32(out + 32, load_i8_as_f32(q + 16 * g + 8) * scale + offset)
            else:
                store_f32(out, load_i8_as_f32(q + 16 * g) * scale)
                store_f32(out + 32, load_i8_as_f32(q + 16 * g + 8) * scale)
            out += 64
        p += BYTES


def dequantize(job: int, r0: int, r1: int) -> None:
    """Rows r0..r1 to float32: out (n_rows, n_cols), row r at OUT + (r - OUT_ROW0) * OUT_STRIDE."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    out, stride, row0 = i64(job + _OUT), i64(job + _OUT_STRIDE), i64(job + _ROW0)
    for r in range(r0, r1):
        decode_row(w + r * row_bytes, n, out + (r - row0) * stride)


def matvec(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as Q8 records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    q = alloca(256)
    s = alloca(64)
    o = alloca(64)
    for t in range(i64(job + _N_TOKENS)):
        x = i64(job + _X) + t * i64(job + _X_STRIDE)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1):
            p = w + r * row_bytes
            y = x
            ys = x + n
            sums = x + n + n // 8
            acc = zero_f32()
            low = zero_f32()
            for _ in range(n // SIZE):
                prefetch(p + 2048)
                decode(p, q, s, o)
                for g in range(SIZE // 32):
                    scale = pair_f32(f32(s + 8 * g), f32(s + 8 * g + 4)) * f32(ys)
                    d = to_f32(dot_i8(load_i8(q + 32 * g), load_i8(y)))
                    acc = fma(d, scale, acc)
                    y += 32
                    ys += 4
                if OFFSETS:
                    if SIZE % 128 == 0:
                        for g in range(SIZE // 128):
                            low = fma(load_f32(o + 32 * g), load_f32(sums + 32 * g), low)
                    else:
                        for g in range(SIZE // 32):
                            pair = pair_f32(f32(o + 8 * g), f32(o + 8 * g + 4))
                            other = pair_f32(f32(sums + 8 * g), f32(sums + 8 * g + 4))
                            low = fma(pair * splat_f32(numba.float32(0.25)), other, low)
                    sums += SIZE // 4
                p += BYTES
            put_f32(out + 4 * r, sum_f32(acc + low))


TILE_ROWS = 8
TILE_COLS = 512


@inline
def _tile(w: int, x: int, x_stride: int, n: int, out: int, out_stride: int, add: bool) -> None:
    """out[t, 0..3] (+)= 4 weight rows . x[t] for 3 tokens; w: rows of TILE_COLS float32."""
    a = zero_f32(); b = zero_f32(); c = zero_f32(); d = zero_f32()  # fmt: skip
    e = zero_f32(); f = zero_f32(); g = zero_f32(); h = zero_f32()  # fmt: skip
    i = zero_f32(); j = zero_f32(); k = zero_f32(); l = zero_f32()  # fmt: skip
    for col in range(0, 4 * n, 32):
        y0 = load_f32(x + col)
        y1 = load_f32(x + x_stride + col)
        y2 = load_f32(x + 2 * x_stride + col)
        v = load_f32(w + col)
        a = fma(v, y0, a); b = fma(v, y1, b); c = fma(v, y2, c)  # fmt: skip
        v = load_f32(w + 4 * TILE_COLS + col)
        d = fma(v, y0, d); e = fma(v, y1, e); f = fma(v, y2, f)  # fmt: skip
        v = load_f32(w + 8 * TILE_COLS + col)
        g = fma(v, y0, g); h = fma(v, y1, h); i = fma(v, y2, i)  # fmt: skip
        v = load_f32(w + 12 * TILE_COLS + col)
        j = fma(v, y0, j); k = fma(v, y1, k); l = fma(v, y2, l)  # fmt: skip
    _put4(out, a, d, g, j, add)
    _put4(out + out_stride, b, e, h, k, add)
    _put4(out + 2 * out_stride, c, f, i, l, add)


@inline
def _put4(out: int, a: Any, b: Any, c: Any, d: Any, add: bool) -> None:
    if add:
        put_f32(out, f32(out) + sum_f32(a))
        put_f32(out + 4, f32(out + 4) + sum_f32(b))
        put_f32(out + 8, f32(out + 8) + sum_f32(c))
        put_f32(out + 12, f32(out + 12) + sum_f32(d))
    else:
        put_f32(out, sum_f32(a))
        put_f32(out + 4, sum_f32(b))
        put_f32(out + 8, sum_f32(c))
        put_f32(out + 12, sum_f32(d))


@inline
def _one(w: int, x: int, n: int, out: int, add: bool) -> None:
    """out (+)= one weight row . one token."""
    a = zero_f32()
    b = zero_f32()
    for col in range(0, 4 * n - 32, 64):
        a = fma(load_f32(w + col), load_f32(x + col), a)
        b = fma(load_f32(w + col + 32), load_f32(x + col + 32), b)
    if n % 16:
        a = fma(load_f32(w + 4 * n - 32), load_f32(x + 4 * n - 32), a)
    if add:
        put_f32(out, f32(out) + sum_f32(a + b))
    else:
        put_f32(out, sum_f32(a + b))


def matmul(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . x[t], x float32 (n_tokens, n_cols): a tile of rows is decoded once.

    Tiles of 8 rows x 512 columns stay in L1 while all tokens pass over them.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    x, x_stride, n_tokens = i64(job + _X), i64(job + _X_STRIDE), i64(job + _N_TOKENS)
    stride = i64(job + _OUT_STRIDE)
    tile = alloca(16384)  # TILE_ROWS * TILE_COLS * 4
    for top in range(r0, r1, TILE_ROWS):
        rows = min(TILE_ROWS, r1 - top)
        out0 = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
        for c0 in range(0, n, TILE_COLS):
            cols = min(TILE_COLS, n - c0)
            for r in range(rows):
                start = w + (top + r) * row_bytes + (c0 // SIZE) * BYTES
                decode_row(start, cols, tile + r * 4 * TILE_COLS)
            y = x + 4 * c0
            out = out0
            t = 0
            while t < n_tokens:
                if t + 3 <= n_tokens:
                    r = 0
                    while r + 4 <= rows:
                        _tile(
                            tile + r * 4 * TILE_COLS, y, x_stride, cols, out + 4 * r, stride, c0 > 0
                        )
                        r += 4
                    for rr in range(r, rows):
                        for tt in range(3):
                            _one(
                                tile + rr * 4 * TILE_COLS,
                                y + tt * x_stride,
                                cols,
                                out + tt * stride + 4 * rr,
                                c0 > 0,
                            )
                    step = 3
                else:
                    for rr in range(rows):
                        _one(tile + rr * 4 * TILE_COLS, y, cols, out + 4 * rr, c0 > 0)
                    step = 1
                t += step
                y += step * x_stride
                out += step * stride
