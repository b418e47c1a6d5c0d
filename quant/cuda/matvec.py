"""Matrix x up to TOKENS activations with the CPU's bits: a thread per lane walks all steps.

A warp has 32 / LANES rows. `dense`: one matrix, all tokens. `chosen`: a matrix for each of some
items (experts in use), whose tokens are listed; an item's tokens come TOKENS at a time.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    block_x,
    block_y,
    dp4a,
    f32,
    fma,
    i32,
    load_4,
    load_f32,
    load_i32,
    load_i64,
    load_u32,
    shl,
    store_f32,
    swap_f32,
    thread,
    u32,
)

THREADS = 128
TOKENS: int = OPEN  # at a time
PLANES: int = OPEN  # of the records
LANES: int = OPEN
STEPS: int = OPEN
OFFSETS: bool = OPEN
ZERO: int = OPEN


def group(base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any) -> Any:
    """Open: the type's own."""


def dot_8(words: Any, x: Any) -> Any:
    """i32: 32 weights . int8 activations at x."""
    a, b, c, d = load_4(x)
    e, f, g, h = load_4(x + 16)
    v = dp4a(words[0], a, i32(0))
    v = dp4a(words[1], b, v)
    v = dp4a(words[2], c, v)
    v = dp4a(words[3], d, v)
    v = dp4a(words[4], e, v)
    v = dp4a(words[5], f, v)
    v = dp4a(words[6], g, v)
    return dp4a(words[7], h, v)


def dot_4(words: Any, x: Any) -> Any:
    """i32: 16 weights . int8 activations at x."""
    a, b, c, d = load_4(x)
    v = dp4a(words[0], a, i32(0))
    v = dp4a(words[1], b, v)
    v = dp4a(words[2], c, v)
    return dp4a(words[3], d, v)


def dot(words: Any, x: Any) -> Any:
    """Open: dot_8 or dot_4."""


def step(w: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any, at: Any, n: Any,
         count: Any, acc: Any, low: Any) -> None:  # fmt: skip
    """Add step j of a chunk to acc and low; j is a literal, and `group` sees it."""
    words, s, o = group(w, rows, chunks, row, chunk, j, lane)
    k = chunk * STEPS + j
    column = 256 * k + 256 // LANES * lane
    # a group's numbers, of 32 columns and of its own: what j adds is a constant of the load
    of_32 = PLANES * n + 32 * k + 4 * (8 * lane // LANES)
    own = PLANES * n + 4 * LANES * k + 4 * lane
    for t in range(TOKENS):
        if TOKENS == 1 or t < count:
            d = dot(words, at[t] + column)
            if PLANES == 2:
                d = i32(shl(u32(d), 8)) + dot(words, at[t] + n + column)
            if ZERO:
                total = load_i32(at[t] + own + (n // 2 if LANES == 8 else n // 8 * 5))
                d = i32(d) - i32(ZERO * total)
            scale = load_f32(at[t] + of_32)
            acc[t] = fma(f32(d), s * scale, acc[t])
            if OFFSETS:
                sums = load_f32(at[t] + own + (n // 8 if LANES == 8 else n // 4))
                low[t] = fma(o, sums, low[t])


def tile(w: Any, rows: Any, chunks: Any, row: Any, x: Any, x_stride: Any, n: Any, index: Any,
         first: Any, count: Any, out: Any, out_stride: Any, add: Any) -> None:  # fmt: skip
    """Row `row` times the `count` tokens from `first` on, at most TOKENS; by LANES threads.

    index: address of the tokens' rows of x (uint32), or 0: they are the tokens.
    """
    lane = thread() & (LANES - 1)
    here = row if row < rows else rows - 1
    acc = cuda.local.array(TOKENS, types.float32)
    low = cuda.local.array(TOKENS, types.float32)
    at = cuda.local.array(TOKENS, types.int64)
    for t in range(TOKENS):
        acc[t] = f32(0)
        low[t] = f32(0)
        token = first + (t if t < count else 0)
        at[t] = x + x_stride * (load_u32(index + 4 * token) if index else token)
    for chunk in range(chunks):
        step(w, rows, chunks, here, chunk, 0, lane, at, n, count, acc, low)
        if STEPS >= 2:
            step(w, rows, chunks, here, chunk, 1, lane, at, n, count, acc, low)
        if STEPS == 4:
            step(w, rows, chunks, here, chunk, 2, lane, at, n, count, acc, low)
            step(w, rows, chunks, here, chunk, 3, lane, at, n, count, acc, low)
    for t in range(TOKENS):
        v = acc[t]
        if OFFSETS:
            v = v + low[t]
        if LANES == 16:
            v = v + swap_f32(v, 8)
        v = v + swap_f32(v, 4)
        v = v + swap_f32(v, 2)
        v = v + swap_f32(v, 1)
        if t < count and lane == 0 and row < rows:
            to = out + out_stride * (first + t) + 4 * row
            store_f32(to, load_f32(to) + v if add else v)


def dense(w: int, rows: int, chunks: int, x: int, x_stride: int, n: int, tokens: int, out: int,
          out_stride: int, add: int) -> None:  # fmt: skip
    """out[t, row] (= or +=) row . x[t]. x: records of n columns. Grid: rows."""
    row = (block_x() * THREADS + thread()) // LANES
    tile(w, rows, chunks, row, x, x_stride, n, 0, 0, tokens, out, out_stride, add)


def chosen(table: int, items: int, used: int, starts: int, index: int, rows: int, chunks: int,
           x: int, x_stride: int, n: int, out: int, out_stride: int) -> None:  # fmt: skip
    """out[slot, row] = row of an item's matrix . x of the slot. Grid: rows, items at most.

    items (used[0],) uint32: numbers in `table` (int64: addresses of matrices); the slots of item i
    are starts[i] .. starts[i + 1] - 1 (uint32). index: the slots' rows of x, or 0: the slots.
    """
    item = block_y()
    if item >= load_u32(used):
        return
    row = (block_x() * THREADS + thread()) // LANES
    w = load_i64(table + 8 * load_u32(items + 4 * item))
    end = load_u32(starts + 4 * item + 4)
    for first in range(load_u32(starts + 4 * item), end, TOKENS):
        count = min(TOKENS, end - first)
        tile(w, rows, chunks, row, x, x_stride, n, index, first, count, out, out_stride, 0)
