"""Products with float32 activations: routers, the per-head matrices of MLA, float models.

`matvec_f32` (one token) and `matmul_f32` (many) agree bit for bit: column c of a row goes to lane
c mod LANES of one vector, in ascending order with one rounding per product and sum; then the lanes
form the tree of simd_float.py. So decoding and prefill agree, whatever the batch and the threads.

Weights are used as `dequantize` gives them. Types that can be widened in registers bring

    dot_32(p, c, x, acc)    # acc + columns c .. c + 31 of the row at p . 32 floats at x

and stream through it, eight rows at a time; for the others eight rows are decoded to a tile first.
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    SIZE,
    decode_row,
    token_at,
)
from quant.simd.floats import (
    PART,
    V_BYTES,
    fma_v,
    load_v,
    store_8,
    store_part_0,
    store_part_1,
    store_part_2,
    store_part_3,
    store_v,
    zero_v,
)
from quant.simd.vectors import alloca, f32, i64, prefetch, put_f32
from quant.tile.float_tiles import DOTS_BYTES, dots, fold_rows_8

ROWS = 8  # at a time
TILE_COLS = 512
TILE_TOKENS = 128
AHEAD = 4096  # bytes that short rows are asked for in advance
_TILE_ROW = 4 * TILE_COLS


def dot_32(p: int, c: int, x: int, acc: Any) -> Any:
    """Open: the type's own."""


@inline
def _put_rows(out: int, sums: Any, rows: int, spare: int) -> None:
    """The first `rows` of eight sums."""
    if rows >= ROWS:
        store_8(out, sums)
    else:
        store_8(spare, sums)
        for i in range(rows):
            put_f32(out + 4 * i, f32(spare + 4 * i))


@inline
def _put_fours(out: int, stride: int, sums: Any, tokens: int, rows: int, spare: int) -> None:
    """The first `rows` of four sums of one token -> out, and those of the next, if there is one."""
    store_8(spare, sums)
    for k in range(min(2, tokens)):
        for i in range(rows):
            put_f32(out + k * stride + 4 * i, f32(spare + 16 * k + 4 * i))


def matvec_f32(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . x[t], x float32; weights are widened in registers."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    spare = alloca(64)
    # Eight short rows at a time are no pattern that hardware prefetches; long ones are.
    group = ROWS * row_bytes
    ahead = (AHEAD + group - 1) // group * group if group < 4 * AHEAD else 0
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1, ROWS):
            rows = r1 - r
            p0 = w + r * row_bytes
            p1 = p0 + min(1, rows - 1) * row_bytes
            p2 = p0 + min(2, rows - 1) * row_bytes
            p3 = p0 + min(3, rows - 1) * row_bytes
            p4 = p0 + min(4, rows - 1) * row_bytes
            p5 = p0 + min(5, rows - 1) * row_bytes
            p6 = p0 + min(6, rows - 1) * row_bytes
            p7 = p0 + min(7, rows - 1) * row_bytes
            a0 = zero_v(); a1 = zero_v(); a2 = zero_v(); a3 = zero_v()  # fmt: skip
            a4 = zero_v(); a5 = zero_v(); a6 = zero_v(); a7 = zero_v()  # fmt: skip
            for c in range(0, n, 32):
                y = x + 4 * c
                if ahead:
                    far = ahead + c // SIZE * BYTES + c % SIZE * BYTES // SIZE
                    prefetch(p0 + far)
                    prefetch(p1 + far)
                    prefetch(p2 + far)
                    prefetch(p3 + far)
                    prefetch(p4 + far)
                    prefetch(p5 + far)
                    prefetch(p6 + far)
                    prefetch(p7 + far)
                a0 = dot_32(p0, c, y, a0)
                a1 = dot_32(p1, c, y, a1)
                a2 = dot_32(p2, c, y, a2)
                a3 = dot_32(p3, c, y, a3)
                a4 = dot_32(p4, c, y, a4)
                a5 = dot_32(p5, c, y, a5)
                a6 = dot_32(p6, c, y, a6)
                a7 = dot_32(p7, c, y, a7)
            _put_rows(out + 4 * r, fold_rows_8(a0, a1, a2, a3, a4, a5, a6, a7), rows, spare)


def few_f32(job: int, r0: int, r1: int) -> None:
    """`matvec_f32` for a few tokens: four rows are read once for every four of them."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, stride = i64(job + _N_TOKENS), i64(job + _OUT_STRIDE)
    spare = alloca(64)
    for r in range(r0, r1, 4):
        rows = min(4, r1 - r)
        p0 = w + r * row_bytes
        p1 = p0 + min(1, rows - 1) * row_bytes
        p2 = p0 + min(2, rows - 1) * row_bytes
        p3 = p0 + min(3, rows - 1) * row_bytes
        for t in range(0, n_tokens, 4):
            last = n_tokens - 1
            x0 = token_at(job, t)
            x1 = token_at(job, min(t + 1, last))
            x2 = token_at(job, min(t + 2, last))
            x3 = token_at(job, min(t + 3, last))
            a0 = zero_v(); a1 = zero_v(); a2 = zero_v(); a3 = zero_v()  # fmt: skip
            b0 = zero_v(); b1 = zero_v(); b2 = zero_v(); b3 = zero_v()  # fmt: skip
            c0 = zero_v(); c1 = zero_v(); c2 = zero_v(); c3 = zero_v()  # fmt: skip
            d0 = zero_v(); d1 = zero_v(); d2 = zero_v(); d3 = zero_v()  # fmt: skip
            for c in range(0, n, 32):
                to = 4 * c
                a0 = dot_32(p0, c, x0 + to, a0); b0 = dot_32(p0, c, x1 + to, b0)  # fmt: skip
                c0 = dot_32(p0, c, x2 + to, c0); d0 = dot_32(p0, c, x3 + to, d0)  # fmt: skip
                a1 = dot_32(p1, c, x0 + to, a1); b1 = dot_32(p1, c, x1 + to, b1)  # fmt: skip
                c1 = dot_32(p1, c, x2 + to, c1); d1 = dot_32(p1, c, x3 + to, d1)  # fmt: skip
                a2 = dot_32(p2, c, x0 + to, a2); b2 = dot_32(p2, c, x1 + to, b2)  # fmt: skip
                c2 = dot_32(p2, c, x2 + to, c2); d2 = dot_32(p2, c, x3 + to, d2)  # fmt: skip
                a3 = dot_32(p3, c, x0 + to, a3); b3 = dot_32(p3, c, x1 + to, b3)  # fmt: skip
                c3 = dot_32(p3, c, x2 + to, c3); d3 = dot_32(p3, c, x3 + to, d3)  # fmt: skip
            out = i64(job + _OUT) + t * stride + 4 * (r - i64(job + _ROW0))
            sums = fold_rows_8(a0, a1, a2, a3, b0, b1, b2, b3)
            _put_fours(out, stride, sums, n_tokens - t, rows, spare)
            sums = fold_rows_8(c0, c1, c2, c3, d0, d1, d2, d3)
            _put_fours(out + 2 * stride, stride, sums, n_tokens - t - 2, rows, spare)


def matvec_f32_tiled(job: int, r0: int, r1: int) -> None:
    """`matvec_f32` for any type: eight rows are decoded, then multiplied."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    tile = alloca(16384)  # ROWS * _TILE_ROW
    at = alloca(512)  # ROWS accumulators
    spare = alloca(64)
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1, ROWS):
            rows = min(ROWS, r1 - r)
            for i in range(ROWS):
                store_v(at + i * V_BYTES, zero_v())
            for c0 in range(0, n, TILE_COLS):
                cols = min(TILE_COLS, n - c0)
                for i in range(rows):
                    start = w + (r + i) * row_bytes + c0 // SIZE * BYTES
                    decode_row(start, cols, tile + i * _TILE_ROW)
                y = x + 4 * c0
                for h in range(0, ROWS, 4):
                    q = tile + h * _TILE_ROW
                    e = at + h * V_BYTES
                    a0 = load_v(e)
                    a1 = load_v(e + V_BYTES)
                    a2 = load_v(e + 2 * V_BYTES)
                    a3 = load_v(e + 3 * V_BYTES)
                    for i in range(0, 4 * cols, V_BYTES):
                        v = load_v(y + i)
                        a0 = fma_v(load_v(q + i), v, a0)
                        a1 = fma_v(load_v(q + _TILE_ROW + i), v, a1)
                        a2 = fma_v(load_v(q + 2 * _TILE_ROW + i), v, a2)
                        a3 = fma_v(load_v(q + 3 * _TILE_ROW + i), v, a3)
                    store_v(e, a0)
                    store_v(e + V_BYTES, a1)
                    store_v(e + 2 * V_BYTES, a2)
                    store_v(e + 3 * V_BYTES, a3)
            sums = fold_rows_8(
                load_v(at),
                load_v(at + V_BYTES),
                load_v(at + 2 * V_BYTES),
                load_v(at + 3 * V_BYTES),
                load_v(at + 4 * V_BYTES),
                load_v(at + 5 * V_BYTES),
                load_v(at + 6 * V_BYTES),
                load_v(at + 7 * V_BYTES),
            )
            _put_rows(out + 4 * r, sums, rows, spare)


@inline
def _put_quads(out: int, stride: int, sums: Any, tokens: int, rows: int, spare: int) -> None:
    """Quarter k of `sums` -> out + k * stride, for k < tokens; the first `rows` of PART sums."""
    if tokens >= 4 and rows >= PART:
        store_part_0(out, sums)
        store_part_1(out + stride, sums)
        store_part_2(out + 2 * stride, sums)
        store_part_3(out + 3 * stride, sums)
    else:
        store_v(spare, sums)
        for k in range(min(4, tokens)):
            for i in range(min(PART, rows)):
                put_f32(out + k * stride + 4 * i, f32(spare + 4 * (k * PART + i)))


def matmul_f32(job: int, r0: int, r1: int) -> None:
    """`matvec_f32` for many tokens: a tile of rows is decoded once for up to 128 of them.

    Tiles of 8 rows x 512 columns stay in L1; accumulators wait in memory where a row has more.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, stride = i64(job + _N_TOKENS), i64(job + _OUT_STRIDE)
    tile = alloca(16384)  # ROWS * _TILE_ROW
    accs = alloca(65536)  # TILE_TOKENS * ROWS * 64
    spare = alloca(64)
    for top in range(r0, r1, ROWS):
        rows = min(ROWS, r1 - top)
        out0 = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
        for t0 in range(0, n_tokens, TILE_TOKENS):
            t1 = min(n_tokens, t0 + TILE_TOKENS)
            for c0 in range(0, n, TILE_COLS):
                cols = min(TILE_COLS, n - c0)
                begin = c0 == 0
                end = c0 + cols == n
                for r in range(rows):
                    start = w + (top + r) * row_bytes + c0 // SIZE * BYTES
                    decode_row(start, cols, tile + r * _TILE_ROW)
                at = accs
                for t in range(t0, t1, 4):
                    y0 = token_at(job, t) + 4 * c0
                    y1 = token_at(job, min(t + 1, t1 - 1)) + 4 * c0
                    y2 = token_at(job, min(t + 2, t1 - 1)) + 4 * c0
                    y3 = token_at(job, min(t + 3, t1 - 1)) + 4 * c0
                    for r in range(0, rows, PART):
                        q = tile + r * _TILE_ROW
                        s = dots(y0, y1, y2, y3, q, _TILE_ROW, 4 * cols, at, begin, end)
                        if end:
                            out = out0 + t * stride + 4 * r
                            _put_quads(out, stride, s, t1 - t, rows - r, spare)
                        at += DOTS_BYTES
