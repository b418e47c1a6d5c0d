"""A tape: a table of steps that one native call plays, so that tokens are decoded without Python.

    steps (n, 5) int64: | FN: task(context, i, thread) | CONTEXT | COUNT | COUNT_AT | TICKS_AT |

COUNT: of tasks. COUNT_AT is 0, or the address of a count that an earlier step sets. TICKS_AT is 0,
or the address of an int64 that grows by the time since the last one that was not, on the
processor's own clock (clock.py). A step with one task runs on the caller's thread; others are a
parallel region of the pool. Tasks and their contexts are in row_tasks.py and expert_tasks.py. What
differs from pass to pass is in one `Pass` record and one `Row` record per token, which all contexts
point to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler.jit import kernel
from quant.run.clock import ticks
from quant.run.fields import I64, Fields, write
from quant.run.pool import run_region
from quant.simd.vectors import call_kernel, i64, put_i64

STEP_FIELDS, TICKS_AT = 5, 4


class Pass(Fields):
    """What all rows of a pass share."""

    ROWS = I64  # address of `Row` records, one per token
    FORCED = I64  # 0, or (layers, rows, K) int64: experts to run instead of the router's choice


class Row(Fields):
    """A token of a pass, on its own: its position, and where its sequence's cache lies."""

    TOKEN = I64  # -1: its row of x is given
    POSITION = I64
    CACHE = I64  # address of layer 0, position 0 of its KV slot
    LAYER_BYTES = I64  # from layer to layer of it
    ROW_BYTES = I64  # from position to position
    KIND = I64  # of its rows: a `cache_rows.RowKind`
    COS = I64  # address of the position's rope / 2 float32
    SIN = I64


@kernel()
def run_tape(control: int, steps: int, n: int, status: int) -> None:
    """Play n steps from the address `steps`; control: of the pool.

    status: 0, or the address of an int64; once it is not 0, nothing more is played.
    """
    began = ticks()
    for i in range(n):
        if status and i64(status):
            return
        step = steps + 8 * STEP_FIELDS * i
        count_at = i64(step + 24)
        count = i64(count_at) if count_at else i64(step + 16)
        if count == 1:
            call_kernel(i64(step), i64(step + 8), 0, 0)
        else:
            run_region(control, i64(step), i64(step + 8), count)
        ticks_at = i64(step + 32)
        if ticks_at:
            now = ticks()
            put_i64(ticks_at, i64(ticks_at) + now - began)
            began = now


class Tape:
    """Steps in the making, and the memory that they point to. ticks_at: of the steps to come."""

    def __init__(self) -> None:
        self.ticks_at = 0
        self._steps: list[tuple[int, int, int, int, int]] = []
        self._kept: list[Any] = []

    def __len__(self) -> int:
        return len(self._steps)

    def keep(self, array: np.ndarray) -> int:
        """Address of an array that lives as long as the tape."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def context(self, fields: type[Fields], **values: int | float) -> int:
        """Address of a context that lives as long as the tape; see `fields.write`."""
        return self.keep(write(fields, **values))

    def add(self, fn: int, context: int, count: int = 1, count_at: int = 0) -> None:
        """One more step; its number of tasks is `count`, or read from count_at as it begins."""
        self._steps.append((fn, context, count, count_at, self.ticks_at))

    def table(self) -> np.ndarray:
        """The steps, (n, STEP_FIELDS) int64; valid as long as the tape lives."""
        table = np.array(self._steps, np.int64).reshape(-1, STEP_FIELDS)
        same = table[:-1, TICKS_AT] == table[1:, TICKS_AT]
        table[:-1, TICKS_AT][same] = 0  # one look at the clock for all of them
        return table
