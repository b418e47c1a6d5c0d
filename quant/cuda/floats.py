"""Float32 activations: any matrix times them (`heads`), and matrices of plain numbers in VRAM.

A float type's rows lie one after the other, padded with zeros to chunks of CHUNK columns: 16 bytes
a lane. It brings `numbers(address)`: the 4 or 8 numbers of a lane as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    as_f32,
    block_x,
    block_y,
    block_z,
    f32,
    fma,
    load_4,
    load_f32,
    load_i64,
    load_u16,
    load_u32,
    permute,
    shl,
    store_f32,
    store_u32,
    swap_f32,
    thread,
    u32,
)
from quant.cuda.ptx import device
from quant.ggml import GGMLType

THREADS = 128
CHUNK = 128  # columns
LANES: int = OPEN
STEPS: int = OPEN
COLUMNS: int = OPEN  # of a lane in a step
OFFSETS: bool = OPEN
ZERO: int = OPEN
TOKENS: int = OPEN  # at a time
AHEAD: int = OPEN  # see `ahead`


@dataclass(frozen=True, kw_only=True)
class FloatType:
    """As PlaneType, of a float type."""

    ggml_type: GGMLType
    width: int
    numbers: Any
    steps: int = 1

    @property
    def lanes(self) -> int:
        """Threads of a row."""
        return CHUNK * self.width // 16

    def chunks(self, n_cols: int) -> int:
        """Of a row."""
        return -(-n_cols // CHUNK)

    def n_bytes(self, n_rows: int, n_cols: int) -> int:
        """Of a matrix; a multiple of 256."""
        return n_rows * self.chunks(n_cols) * CHUNK * self.width


# --- products -------------------------------------------------------------------------------------


def walk(w: Any, rows: Any, chunks: Any, row: Any, lane: Any, at: Any, n_cols: Any, count: Any,
         acc: Any) -> None:  # fmt: skip
    """Open: add a lane's columns of a row times those at `at` (`count` are wanted) to acc."""


def dot(found: Any, x: Any, v: Any) -> Any:
    """Open: dot_4 to dot_32."""


def heads(w: int, w_stride: int, rows: int, chunks: int, x: int, x_stride: int, x_head: int,
          n_cols: int, tokens: int, out: int, out_stride: int, out_head: int,
          add: int) -> None:  # fmt: skip
    """out[t, head, row] (= or +=) row of the matrix of a head . x[t, head], float32.

    Grid: rows, heads, tokens / TOKENS. Strides are bytes: w_stride from matrix to matrix, each in
    planes (or rows) of its own; x, x_stride and x_head are multiples of 16. Every weight is what
    `rows` gives; a chain of fused multiply-adds a lane, then halves of lanes.
    """
    lane = thread() & (LANES - 1)
    row = (block_x() * THREADS + thread()) // LANES
    head, first = block_y(), TOKENS * block_z()
    count = min(TOKENS, tokens - first)
    at = cuda.local.array(TOKENS, types.int64)
    for t in range(TOKENS):
        at[t] = x + x_stride * (first + (t if t < count else 0)) + x_head * head
    products(
        w + w_stride * head, rows, chunks, row, lane, at, n_cols, count,
        out + out_stride * first + out_head * head, out_stride, add,
    )  # fmt: skip


def chosen(table: int, items: int, used: int, starts: int, index: int, rows: int, chunks: int,
           x: int, x_stride: int, n_cols: int, out: int, out_stride: int) -> None:  # fmt: skip
    """As matvec.chosen, of float32 activations."""
    item = block_y()
    if item >= load_u32(used):
        return
    at_row = block_x() * THREADS + thread()
    lane, row = at_row % LANES, at_row // LANES
    w = load_i64(table + 8 * load_u32(items + 4 * item))
    end = load_u32(starts + 4 * item + 4)
    at = cuda.local.array(TOKENS, types.int64)
    for first in range(load_u32(starts + 4 * item), end, TOKENS):
        count = min(TOKENS, end - first)
        for t in range(TOKENS):
            slot = first + (t if t < count else 0)
            at[t] = x + x_stride * (load_u32(index + 4 * slot) if index else slot)
        to = out + out_stride * first
        products(w, rows, chunks, row, lane, at, n_cols, count, to, out_stride, 0)


def products(w: Any, rows: Any, chunks: Any, row: Any, lane: Any, at: Any, n_cols: Any, count: Any,
             out: Any, out_stride: Any, add: Any) -> None:  # fmt: skip
    """Row `row` times `count` tokens whose activations are `at`."""
    here = row if row < rows else rows - 1
    acc = cuda.local.array(TOKENS, types.float32)
    for t in range(TOKENS):
        acc[t] = f32(0)
    walk(w, rows, chunks, here, lane, at, n_cols, count, acc)
    for t in range(TOKENS):
        v = acc[t]
        if LANES == 32:
            v = v + swap_f32(v, 16)
        if LANES >= 16:
            v = v + swap_f32(v, 8)
        v = v + swap_f32(v, 4)
        v = v + swap_f32(v, 2)
        v = v + swap_f32(v, 1)
        if t < count and lane == 0 and row < rows:
            to = out + out_stride * t + 4 * row
            store_f32(to, load_f32(to) + v if add else v)


@device
def dot_4(found: Any, x: Any, v: Any) -> Any:
    """Weights times as many float32 at x, added to v one after the other."""
    a, b, c, d = load_4(x)
    v = fma(found[0], as_f32(a), v)
    v = fma(found[1], as_f32(b), v)
    v = fma(found[2], as_f32(c), v)
    return fma(found[3], as_f32(d), v)


@device
def dot_8(found: Any, x: Any, v: Any) -> Any:
    """As dot_4."""
    return dot_4(found[4:], x + 16, dot_4(found[:4], x, v))


@device
def dot_16(found: Any, x: Any, v: Any) -> Any:
    """As dot_4."""
    return dot_8(found[8:], x + 32, dot_8(found[:8], x, v))


@device
def dot_32(found: Any, x: Any, v: Any) -> Any:
    """As dot_4."""
    return dot_16(found[16:], x + 64, dot_16(found[:16], x, v))


DOTS = {4: dot_4, 8: dot_8, 16: dot_16, 32: dot_32}


# --- of quantised types ---------------------------------------------------------------------------


def group(base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any) -> Any:
    """Open: the type's own."""


def weight(word: Any, i: Any, s: Any, o: Any) -> Any:
    """Byte i of four that are 128 too large: on top of 2 ** 23 it is a float's last byte."""
    number = as_f32(permute(word, u32(0x4B000000), u32(0x7440 + i)))
    v = s * (number - f32(8388608 + 128 + ZERO))
    return v + o if OFFSETS else v


def weights_4(word: Any, s: Any, o: Any) -> Any:
    """Those of a word."""
    word = u32(word) ^ u32(0x80808080)
    first = weight(word, 0, s, o), weight(word, 1, s, o)
    return first + (weight(word, 2, s, o), weight(word, 3, s, o))


def weights_16(words: Any, s: Any, o: Any) -> Any:
    """Those of 4 words."""
    a, b, c, d = words
    return weights_4(a, s, o) + weights_4(b, s, o) + weights_4(c, s, o) + weights_4(d, s, o)


def weights_32(words: Any, s: Any, o: Any) -> Any:
    """Those of 8 words."""
    return weights_16(words[:4], s, o) + weights_16(words[4:], s, o)


def widen(words: Any, s: Any, o: Any) -> Any:
    """Open: weights_16 or weights_32."""


def walk_groups(w: Any, rows: Any, chunks: Any, row: Any, lane: Any, at: Any, n_cols: Any,
                count: Any, acc: Any) -> None:  # fmt: skip
    """`walk` of a quantised type."""
    for step in range(chunks * STEPS):
        column = COLUMNS * (LANES * step + lane)
        if column < n_cols:
            words, s, o = group(w, rows, chunks, row, step // STEPS, step % STEPS, lane)
            found = widen(words, s, o)
            for t in range(TOKENS):
                if t < count:  # also keeps the loads of all tokens from being in flight at once
                    acc[t] = dot(found, at[t] + 4 * column, acc[t])


# --- of float types -------------------------------------------------------------------------------


def numbers(address: Any) -> Any:
    """Open: the type's own."""


def ahead(columns: int, tokens: int) -> int:
    """AHEAD: chunks whose loads are under way together, as far as registers reach."""
    return (32 if tokens == 1 else 8) // columns


def walk_numbers(w: Any, rows: Any, chunks: Any, row: Any, lane: Any, at: Any, n_cols: Any,
                 count: Any, acc: Any) -> None:  # fmt: skip
    """`walk` of a float type."""
    w += 16 * (LANES * row * chunks + lane)
    whole = n_cols // CHUNK
    many = whole // AHEAD * AHEAD
    for chunk in range(0, many, AHEAD):
        for i in range(AHEAD):
            add_chunk(w, chunk + i, lane, at, acc)
    for chunk in range(many, whole):
        add_chunk(w, chunk, lane, at, acc)
    if whole < chunks:
        found = numbers(w + 16 * LANES * whole)
        for t in range(TOKENS):
            if t < count:
                for i in range(COLUMNS):  # behind the last, zeros times it
                    column = min(CHUNK * whole + COLUMNS * lane + i, n_cols - 1)
                    acc[t] = fma(found[i], load_f32(at[t] + 4 * column), acc[t])


def add_chunk(w: Any, chunk: Any, lane: Any, at: Any, acc: Any) -> None:
    """A whole chunk of a row, whose lane begins at w."""
    found = numbers(w + 16 * LANES * chunk)
    for t in range(TOKENS):
        acc[t] = dot(found, at[t] + 4 * (CHUNK * chunk + COLUMNS * lane), acc[t])


# --- float types on their way: see arrange.py ---------------------------------------------------


def repack(source: int, row_bytes: int, first: int, count: int, n_cols: int, block: int,
           size: int, to: int, rows: int, chunks: int, source_stride: int,
           to_stride: int) -> None:  # fmt: skip
    """As in arrange.py."""
    source += source_stride * block_y()
    to += to_stride * block_y()
    at = block_x() * THREADS + thread()
    row = at // LANES // chunks
    if row >= count:
        return
    column = COLUMNS * (at % (LANES * chunks))
    number = source + row * row_bytes + size * column
    to += 16 * (LANES * chunks * first + at)
    for k in range(4):
        word = u32(0)
        if column + COLUMNS * k // 4 < n_cols:
            word = load_u16(number + 4 * k)
        if column + COLUMNS * (2 * k + 1) // 8 < n_cols:
            word = word | shl(load_u16(number + 4 * k + 2), 16)
        store_u32(to + 4 * k, word)


def rows(
    w: int, n_rows: int, chunks: int, ids: int, n_cols: int, out: int, out_stride: int
) -> None:
    """out[t] = row ids[t] (int64). A thread per 16 bytes; grid: those of a row, tokens."""
    at = block_x() * THREADS + thread()
    if COLUMNS * at >= n_cols:
        return
    found = numbers(w + 16 * (LANES * chunks * load_i64(ids + 8 * block_y()) + at))
    to = out + out_stride * block_y() + 4 * COLUMNS * at
    for i in range(COLUMNS):
        if COLUMNS * at + i < n_cols:
            store_f32(to + 4 * i, found[i])
