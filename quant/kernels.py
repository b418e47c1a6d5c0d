"""The templates every quant type is built from: dequantise, matrix-vector, matrix-matrix.

A type supplies one function, its readable definition

    decode(p, q, s, o)    # p: address of a block; q: (size,) int8; s, o: (size/16,) float32

such that weight[i] = s[i // 16] * q[i] + o[i // 16], bit for bit what libggml's dequantize_row
gives. s and o are written as whole vectors: there is room for 8 floats even where a block has
fewer. From it the templates below make C kernels `kernel(job, r0, r1)`; a job is a record of int64
in memory (`Job`), rows r0 <= r < r1 are computed. Types may bring faster kernels of their own under
the same contract.

Activations are float32, or records of one or two int8 planes with a float32 scale per 32 columns
(activations.py). A product of a quantised row with a record is defined to the last bit, so that
every kernel of a type (one token or many, native or packed bytes, any instruction set, any number
of threads) gives the same:

    group = the columns that share a scale: 32, or 16 (GROUP, a constant of the type)
    step  = 256 columns, 256 / GROUP lanes; lane g holds columns GROUP g .. of every step
    dot   = the exact sum of weight * activation over a group (Q16: 256 * dot(hi) + dot(lo))

    acc[g] = fma(float32(dot), s * scale of the activations, acc[g])      from step to step
    low[g] = fma(o, sums of the activations, low[g])                      types with offsets
    result = halves of (acc + low) added until one lane is left

"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from quant.compiler.jit import OPEN, inline
from quant.simd.vectors import (
    alloca,
    dot_i8x64,
    evens,
    f32,
    fma_16,
    high_half,
    i64,
    join_f32,
    load_f32,
    load_f32x8_twice,
    load_f32x16,
    load_i8_as_f32,
    load_i8x64,
    low_half,
    prefetch,
    put_f32,
    put_i64,
    splat_f32,
    splat_i8,
    store_f32,
    store_i8,
    sums_16,
    sums_32,
    to_f32x16,
    tree_sum_8,
    tree_sum_16,
    twice_each,
    zero_f32x16,
)


class Job(IntEnum):
    """Fields of a job record (int64 each); addresses in bytes."""

    KERNEL = 0  # address of the C kernel
    W = 1  # row 0 of the weights
    ROW_BYTES = 2
    N_ROWS = 3
    N_COLS = 4
    X = 5  # activations of token 0: a record, or float32
    X_STRIDE = 6  # bytes from token to token
    N_TOKENS = 7
    OUT = 8  # float32; out[t, r] at OUT + t * OUT_STRIDE + 4 * r
    OUT_STRIDE = 9
    KERNEL2 = 10  # fused gate+up: the fields of `up` that differ from `gate`
    W2 = 11
    ROW_BYTES2 = 12
    X2 = 13
    X_STRIDE2 = 14
    OUT_KIND = 15  # fused gate+up: an `Activation`, how `down` wants its input
    OUT_ROW0 = 16  # subtracted from r when the output is addressed
    INDEX = 17  # byte offsets of tokens from X (int64), or 0: token t lies at X + t * X_STRIDE
    INDEX2 = 18
    PANELS = 19  # matmul: the same activations as a panel (panels.py)
    PANELS2 = 20


class Activation(IntEnum):
    """How activations are stored."""

    FLOAT = 0  # float32 as computed
    Q8 = 1  # records of one int8 plane
    Q16 = 2  # records of two


JOB_FIELDS = 21
(
    _KERNEL, _W, _ROW_BYTES, _N_ROWS, _N_COLS, _X, _X_STRIDE, _N_TOKENS, _OUT, _OUT_STRIDE,
    _KERNEL2, _W2, _ROW_BYTES2, _X2, _X_STRIDE2, _OUT_KIND, _ROW0, _INDEX, _INDEX2,
    _PANELS, _PANELS2,
) = (8 * int(f) for f in Job)  # fmt: skip


# open names of the templates, filled in by jit.bind
SIZE: int = OPEN  # weights per block
BYTES: int = OPEN  # bytes per block
OFFSETS: bool = OPEN  # False: the type never writes o
PLANES: int = OPEN  # int8 planes of the activation records
GROUP: int = OPEN  # columns that share a scale
STEP = 256  # columns


@inline
def token_at(job: int, t: int) -> int:
    """Address of the activations of token t."""
    index = i64(job + _INDEX)
    return i64(job + _X) + (i64(index + 8 * t) if index else t * i64(job + _X_STRIDE))


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


def decode_step(p: int, blocks: int, q: int, s: int, o: int) -> None:
    """The next `blocks` blocks, at most 256 columns; what is missing of these becomes zero."""
    for i in range(blocks):
        decode(p + i * BYTES, q + i * SIZE, s + i * (SIZE // 4), o + i * (SIZE // 4))
    for i in range(blocks, STEP // SIZE):
        for c in range(0, SIZE, 32):
            at = i * SIZE + c
            store_i8(q + at, splat_i8(0))
            put_i64(s + at // 4, 0)
            put_i64(o + at // 4, 0)


def dot_64(q: int, y: int, n: int) -> Any:
    """i32x16 of 64 weights at q . activations at y; open because PLANES is."""
    v = load_i8x64(q)
    d = dot_i8x64(v, load_i8x64(y))
    if PLANES == 2:
        d = (d << 8) + dot_i8x64(v, load_i8x64(y + n))
    return d


def matvec(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records; two rows at a time."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    q = alloca(512)
    s = alloca(192)  # two rows of 16 floats, and what a decode may write beyond
    o = alloca(192)
    tail = alloca(64)
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1, 2):
            step = row_bytes if r + 1 < r1 else 0  # the last row of an odd number: twice
            p = w + r * row_bytes
            y = x
            ys = x + PLANES * n
            a = zero_f32x16()  # GROUP 32: lanes 0-7 for the first row, 8-15 for the second
            b = zero_f32x16()
            low_a = zero_f32x16()
            low_b = zero_f32x16()
            for c in range(0, n, STEP):
                blocks = min(STEP, n - c) // SIZE
                for line in range(0, STEP // SIZE * BYTES, 64):
                    prefetch(p + 2 * row_bytes + line)
                    prefetch(p + 3 * row_bytes + line)
                decode_step(p, blocks, q, s, o)
                decode_step(p + step, blocks, q + 256, s + 64, o + 64)
                d0 = dot_64(q, y, n)
                d1 = dot_64(q + 64, y + 64, n)
                d2 = dot_64(q + 128, y + 128, n)
                d3 = dot_64(q + 192, y + 192, n)
                e0 = dot_64(q + 256, y, n)
                e1 = dot_64(q + 320, y + 64, n)
                e2 = dot_64(q + 384, y + 128, n)
                e3 = dot_64(q + 448, y + 192, n)
                scales, sums32 = ys, ys + n // 8
                if n - c < STEP:  # beyond the end lies something else, perhaps no number
                    scales, sums32 = tail, tail + 32
                    for k in range(8):
                        inside = 32 * k < n - c
                        put_f32(scales + 4 * k, f32(ys + 4 * k) if inside else np.float32(0))
                        put_f32(
                            sums32 + 4 * k, f32(ys + n // 8 + 4 * k) if inside else np.float32(0)
                        )
                if GROUP == 16:
                    scale = twice_each(load_f32(scales))
                    a = fma_16(to_f32x16(sums_16(d0, d1, d2, d3)), load_f32x16(s) * scale, a)
                    b = fma_16(to_f32x16(sums_16(e0, e1, e2, e3)), load_f32x16(s + 64) * scale, b)
                    if OFFSETS:
                        sums = load_f32x16(ys + n // 4 + c // 8)
                        low_a = fma_16(load_f32x16(o), sums, low_a)
                        low_b = fma_16(load_f32x16(o + 64), sums, low_b)
                else:
                    scale = join_f32(evens(load_f32x16(s)), evens(load_f32x16(s + 64)))
                    scale = scale * load_f32x8_twice(scales)
                    a = fma_16(to_f32x16(sums_32(d0, d1, d2, d3, e0, e1, e2, e3)), scale, a)
                    if OFFSETS:
                        offset = join_f32(evens(load_f32x16(o)), evens(load_f32x16(o + 64)))
                        low_a = fma_16(offset, load_f32x8_twice(sums32), low_a)
                y += STEP
                ys += STEP // 8
                p += STEP // SIZE * BYTES
            put_results(out + 4 * r, step > 0, a, b, low_a, low_b)


def put_results(out: int, both: bool, a: Any, b: Any, low_a: Any, low_b: Any) -> None:
    """Sum the lanes of two rows and store them, or only the first; open because GROUP is."""
    if OFFSETS:
        a = a + low_a
        b = b + low_b
    if GROUP == 16:
        if both:
            put_f32(out + 4, tree_sum_16(b))
        put_f32(out, tree_sum_16(a))
    else:
        if both:
            put_f32(out + 4, tree_sum_8(high_half(a)))
        put_f32(out, tree_sum_8(low_half(a)))
