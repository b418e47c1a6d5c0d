"""Matrices on their way: GGML bytes -> planes, and planes -> float32 rows."""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    block_x,
    block_y,
    f32,
    i32,
    load_i64,
    shl,
    shr,
    store_f32,
    thread,
)

THREADS = 128
LANES: int = OPEN
STEPS: int = OPEN
OFFSETS: bool = OPEN
ZERO: int = OPEN


def group(base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any) -> Any:
    """Open: the type's own."""


def pack(
    block: Any, count: Any, base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, lane: Any
) -> None:
    """Open: the type's `repack`."""


def repack(source: int, row_bytes: int, first: int, count: int, n_cols: int, block: int,
           size: int, to: int, rows: int, chunks: int, source_stride: int,
           to_stride: int) -> None:  # fmt: skip
    """Rows first .. first + count - 1 of a matrix of `rows` rows; a thread per (row, chunk, lane).

    source: of row `first`, row_bytes apart, in blocks of `block` columns and `size` bytes. Grid:
    threads, matrices that are source_stride and to_stride bytes apart.
    """
    source += source_stride * block_y()
    to += to_stride * block_y()
    at = block_x() * THREADS + thread()
    lane, at = at % LANES, at // LANES
    chunk, row = at % chunks, at // chunks
    if row >= count:
        return
    column = 256 * STEPS * chunk
    pack(
        source + row * row_bytes + column // block * size, min(n_cols - column, 256 * STEPS), to,
        rows, chunks, first + row, chunk, lane,
    )  # fmt: skip


def rows(
    w: int, n_rows: int, chunks: int, ids: int, n_cols: int, out: int, out_stride: int
) -> None:
    """out[t] = row ids[t] (int64). A thread per group of columns; grid: groups of a row, tokens."""
    at = block_x() * THREADS + thread()
    lane, j, chunk = at % LANES, at // LANES % STEPS, at // LANES // STEPS
    size = 256 // LANES
    column = 256 * (chunk * STEPS + j) + size * lane
    if chunk >= chunks or column >= n_cols:
        return
    words, s, o = group(w, n_rows, chunks, load_i64(ids + 8 * block_y()), chunk, j, lane)
    to = out + out_stride * block_y() + 4 * column
    for k in range(size // 4):
        for i in range(4):
            byte = i32(shl(shr(words[k], 8 * i), 24)) >> 24
            v = s * f32(i32(byte) - ZERO)
            if OFFSETS:
                v = v + o
            if column + 4 * k + i < n_cols:
                store_f32(to + 16 * k + 4 * i, v)
