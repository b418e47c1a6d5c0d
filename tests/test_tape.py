"""The tape's player, and the fields of contexts."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from quant.compiler import isa
from quant.compiler.jit import task
from quant.run import tape
from quant.run.fields import F64, I64, Fields, size, write
from quant.run.pool import Pool
from quant.simd.vectors import i64, put_i64


def integers(address: int, n: int) -> np.ndarray:
    """A copy of n int64 in memory."""
    return np.array((ctypes.c_int64 * n).from_address(address))


class Append(Fields):
    OUT = I64
    N = I64  # address of the number of values so far
    VALUE = I64
    COUNT = I64  # 0, or address of a count to set to 3


@task
def append_task(context: int, index: int, thread: int) -> None:
    """out[n++] = value."""
    n = i64(i64(context + Append.N))
    put_i64(i64(context + Append.OUT) + 8 * (n + index), i64(context + Append.VALUE))
    put_i64(i64(context + Append.N), n + 1)
    if i64(context + Append.COUNT):
        put_i64(i64(context + Append.COUNT), 3)


class Mark(Fields):
    MARKS = I64  # one int64 per task
    ADD = I64


@task
def mark_task(context: int, index: int, thread: int) -> None:
    """marks[i] += what is to be added."""
    at = i64(context + Mark.MARKS) + 8 * index
    put_i64(at, i64(at) + i64(context + Mark.ADD))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_run_in_order_with_the_counts_of_the_moment(threads: int) -> None:
    pool = Pool(threads)
    made = tape.Tape()
    out, n, count = (made.keep(np.zeros(16, np.int64)) for _ in range(3))
    marks = np.zeros(100, np.int64)
    marked = made.keep(marks)

    def append(value: int, count_at: int) -> None:
        made.add(
            append_task.address, made.context(Append, OUT=out, N=n, VALUE=value, COUNT=count_at)
        )

    append(7, count)
    made.add(mark_task.address, made.context(Mark, MARKS=marked, ADD=1), 100)
    append(8, 0)
    made.add(mark_task.address, made.context(Mark, MARKS=marked, ADD=10), count_at=count)
    made.add(mark_task.address, made.context(Mark, MARKS=marked, ADD=100), 0)
    append(9, 0)
    steps = made.table()
    assert steps.shape == (len(made), tape.STEP_FIELDS)
    tape.run_tape(pool.address, steps.ctypes.data, len(made), 0)
    assert integers(out, 3).tolist() == [7, 8, 9]
    np.testing.assert_array_equal(marks, [11] * 3 + [1] * 97)
    pool.close()


def test_time_of_steps_goes_where_each_says() -> None:
    pool, made = Pool(2), tape.Tape()
    ticks, marks = np.zeros(2, np.int64), np.zeros(100, np.int64)
    context = made.context(Mark, MARKS=made.keep(marks), ADD=1)
    for i in (0, 1, 1):
        made.ticks_at = int(ticks[i:].ctypes.data)
        made.add(mark_task.address, context, 100)
    made.ticks_at = 0
    steps = made.table()
    first = int(ticks.ctypes.data)
    assert steps[:, tape.TICKS_AT].tolist() == [first, 0, first + 8]
    tape.run_tape(pool.address, steps.ctypes.data, len(made), 0)
    np.testing.assert_array_equal(marks, [3] * 100)
    assert (ticks >= 0).all()
    if isa.X86:
        assert (ticks > 0).all()
        once = ticks.copy()
        tape.run_tape(pool.address, steps.ctypes.data, len(made), 0)
        assert (ticks > once).all()  # they add up
    pool.close()


# --- fields -----------------------------------------------------------------------------------


class Example(Fields):
    X = I64
    EPS = F64
    N = I64


def test_fields_are_offsets_and_values_lie_there() -> None:
    assert [int(f) for f in Example] == [0, 8, 16]
    assert size(Example) == 24
    values = write(Example, N=-(1 << 40), X=3, EPS=0.1)
    assert values.tolist()[::2] == [3, -(1 << 40)]
    assert values.view(np.float64)[1] == 0.1
    address = tape.Tape().context(Example, X=3, EPS=0.1, N=1)
    assert address % 8 == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"X": 1, "EPS": 0.1}, "Example: N missing or not a field"),
        ({"X": 1, "EPS": 0.1, "N": 2, "M": 2}, "Example: M missing or not a field"),
        ({"X": 1, "EPS": 0.1, "M": 2}, "Example: M, N missing or not a field"),
        ({"X": 1, "EPS": 0.1, "N": 2.0}, r"Example\.N is a whole number, not 2\.0"),
    ],
)
def test_context_with_a_wrong_field_cannot_be_made(values: dict[str, Any], message: str) -> None:
    for made in (lambda: write(Example, **values), lambda: tape.Tape().context(Example, **values)):
        with pytest.raises(TypeError, match=message):
            made()
