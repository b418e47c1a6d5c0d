"""Copies from memory to memory by all threads of a pool: one has a fraction of what a bus takes."""

from __future__ import annotations

from typing import Any, Final

from numba import types

from quant.compiler.jit import task
from quant.run.fields import I64, Fields
from quant.simd.vectors import I64 as WORD
from quant.simd.vectors import P, _op, call, i64

PIECE: Final = 128 << 10  # bytes of a task


def _memcpy(b: Any, m: Any, v: Any) -> Any:
    return call(b, m, "memcpy", WORD, v)


memcpy = _op(types.int64, (P, P, types.int64), _memcpy)


class Copy(Fields):
    """Fields of `copy_task`."""

    TARGET = I64
    SOURCE = I64
    SIZE = I64  # bytes


@task
def copy_task(context: int, index: int, thread: int) -> None:
    """Bytes index * PIECE .. of SOURCE to TARGET. context: `Copy`."""
    at = index * PIECE
    size = min(PIECE, i64(context + Copy.SIZE) - at)
    memcpy(i64(context + Copy.TARGET) + at, i64(context + Copy.SOURCE) + at, size)


def copy_tasks(n_bytes: int) -> int:
    """How many copy so much."""
    return -(-n_bytes // PIECE)
