"""silu(gate . x) * (up . x) of experts, rounded to records: the first half of an expert, in one.

A block computes 32 rows of both matrices for TOKENS slots of an item at a time, a thread per row
and lane as in matvec.py; then 8 lanes round a slot's 32 values. The bits are those of
`matvec.chosen` twice and `norms.swiglu`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.exponent import silu
from quant.cuda.intrinsics import (
    as_f32,
    block_x,
    block_y,
    f32,
    load_i64,
    load_u32,
    put_shared_f32,
    shared,
    shared_4,
    swap_f32,
    sync,
    thread,
)
from quant.cuda.quantize import quantize_4

ROWS = 32  # of a block
ZERO_F32 = np.float32(0)
TOKENS: int = OPEN  # at a time
LANES: int = OPEN
STEPS: int = OPEN
OFFSETS: bool = OPEN


def step(w: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any, at: Any, n: Any,
         count: Any, acc: Any, low: Any) -> None:  # fmt: skip
    """Open: matvec.step."""


def sum_of_lanes(acc: Any, low: Any) -> Any:
    """A row's product, in each of its threads."""
    v = acc
    if OFFSETS:
        v = v + low
    if LANES == 16:
        v = v + swap_f32(v, 8)
    v = v + swap_f32(v, 4)
    v = v + swap_f32(v, 2)
    return v + swap_f32(v, 1)


def values(gate: Any, up: Any, rows: Any, chunks: Any, x: Any, x_stride: Any, n: Any, index: Any,
           first: Any, count: Any) -> None:  # fmt: skip
    """A block's rows of the `count` slots from `first` on -> shared (TOKENS, ROWS) float32."""
    lane = thread() & (LANES - 1)
    row = ROWS * block_x() + thread() // LANES
    here = min(row, rows - 1)
    at = cuda.local.array(TOKENS, types.int64)
    of_gate = cuda.local.array(TOKENS, types.float32)
    of_up = cuda.local.array(TOKENS, types.float32)
    low_gate = cuda.local.array(TOKENS, types.float32)
    low_up = cuda.local.array(TOKENS, types.float32)
    for t in range(TOKENS):
        of_gate[t] = f32(0)
        of_up[t] = f32(0)
        low_gate[t] = f32(0)
        low_up[t] = f32(0)
        slot = first + (t if t < count else 0)
        at[t] = x + x_stride * (load_u32(index + 4 * slot) if index else slot)
    for chunk in range(chunks):
        step(gate, rows, chunks, here, chunk, 0, lane, at, n, count, of_gate, low_gate)
        step(up, rows, chunks, here, chunk, 0, lane, at, n, count, of_up, low_up)
        if STEPS >= 2:
            step(gate, rows, chunks, here, chunk, 1, lane, at, n, count, of_gate, low_gate)
            step(up, rows, chunks, here, chunk, 1, lane, at, n, count, of_up, low_up)
        if STEPS == 4:
            step(gate, rows, chunks, here, chunk, 2, lane, at, n, count, of_gate, low_gate)
            step(up, rows, chunks, here, chunk, 2, lane, at, n, count, of_up, low_up)
            step(gate, rows, chunks, here, chunk, 3, lane, at, n, count, of_gate, low_gate)
            step(up, rows, chunks, here, chunk, 3, lane, at, n, count, of_up, low_up)
    mine, mine_up = f32(0), f32(0)
    for t in range(TOKENS):
        v, v_up = sum_of_lanes(of_gate[t], low_gate[t]), sum_of_lanes(of_up[t], low_up[t])
        if lane == t:  # a lane finishes a slot
            mine, mine_up = v, v_up
    if lane < TOKENS:
        v = silu(mine) * mine_up if row < rows else f32(0)
        put_shared_f32(shared() + 4 * (ROWS * lane + thread() // LANES), v)


def up(gate_table: int, up_table: int, items: int, used: int, starts: int, index: int, rows: int,
       chunks: int, x: int, x_stride: int, n: int, act: int, act_stride: int) -> None:  # fmt: skip
    """Of each slot: silu(row of `gate` . x) * (row of `up` . x) -> its record at `act`, one plane.

    Zeros behind `rows`. Arguments as in matvec.chosen, a table for each of the matrices. Grid: rows
    / ROWS, items at most; shared memory: 128 * TOKENS.
    """
    item = block_y()
    if item >= load_u32(used):
        return
    expert = load_u32(items + 4 * item)
    gate, w = load_i64(gate_table + 8 * expert), load_i64(up_table + 8 * expert)
    columns = (rows + 1023) // 1024 * 1024
    end = load_u32(starts + 4 * item + 4)
    for first in range(load_u32(starts + 4 * item), end, TOKENS):
        count = min(TOKENS, end - first)
        values(gate, w, rows, chunks, x, x_stride, n, index, first, count)
        sync()
        t, k = thread() >> 3, 4 * (thread() & 7)
        slot = min(t, count - 1)
        record = act + act_stride * (first + slot)
        column = ROWS * block_x() + k
        if t < (TOKENS + 3) // 4 * 4:  # whole warps
            words = shared_4(shared() + 4 * (ROWS * slot + k))
            quantize_4(
                record, columns, column, 1,
                as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3]),
            )  # fmt: skip
            if ROWS * (block_x() + 1) >= rows:
                for behind in range(column + ROWS, columns, ROWS):
                    quantize_4(record, columns, behind, 1, ZERO_F32, ZERO_F32, ZERO_F32, ZERO_F32)
        sync()
