"""What a tape does about a GPU: start what is prepared there, and wait for what it writes.

Both stop at the first error: `STATUS` is the address of an int64 that is 0 until then.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from quant.compiler.jit import task
from quant.run.clock import ticks
from quant.run.fields import I64, Fields
from quant.run.pool import load_atomic, nap, relax
from quant.simd.vectors import I32, P, _op, i64, put_i64
from quant.simd.vectors import I64 as WORD

SPINS: Final = 50_000  # some milliseconds, until a thread that waits begins to nap
HELPERS: Final = 5_000  # of threads that only stay awake for what comes next
NAPS_A_SECOND: Final = 3_000  # at least
LATE: Final = -1  # a status: what was waited for did not come


def _call_2(b: Any, m: Any, v: Any) -> Any:
    kind = ir.FunctionType(I32, [WORD] * 2)
    return b.sext(b.call(b.inttoptr(v[0], kind.as_pointer()), v[1:]), WORD)


def _call_11(b: Any, m: Any, v: Any) -> Any:
    """function, x, y, z, x, y, z, bytes, queue, arguments, extra: as cuLaunchKernel has them."""
    kind = ir.FunctionType(I32, [WORD, *[I32] * 7, *[WORD] * 3])
    at = [b.load(b.inttoptr(b.add(v[1], WORD(8 * i)), WORD.as_pointer())) for i in range(11)]
    values = [b.trunc(x, I32) if 1 <= i <= 7 else x for i, x in enumerate(at)]
    return b.sext(b.call(b.inttoptr(v[0], kind.as_pointer()), values), WORD)


call_2 = _op(types.int64, (P, types.int64, types.int64), _call_2)
call_11 = _op(types.int64, (P, P), _call_11)


def naps(seconds: float) -> int:
    """About how many a thread takes in so long a time."""
    return round(seconds * NAPS_A_SECOND)


class Start(Fields):
    """Fields of `start_task`."""

    FN = I64  # int32 FN(A, B): 0, or an error
    A = I64
    B = I64
    STATUS = I64


@task
def start_task(context: int, index: int, thread: int) -> None:
    """Call a C function of two words, as cuGraphLaunch is. context: `Start`."""
    status = i64(context + Start.STATUS)
    if i64(status) == 0:
        put_i64(status, call_2(i64(context + Start.FN), i64(context + Start.A),
                               i64(context + Start.B)))  # fmt: skip


class Starts(Fields):
    """Fields of `starts_task`."""

    FN = I64  # int32 FN(11 arguments)
    TABLE = I64  # (COUNT, 11) int64: the arguments of each call
    COUNT = I64
    STATUS = I64


@task
def starts_task(context: int, index: int, thread: int) -> None:
    """Call a C function for each row of arguments, as cuLaunchKernel is. context: `Starts`."""
    status = i64(context + Starts.STATUS)
    for i in range(i64(context + Starts.COUNT)):
        if i64(status) == 0:
            put_i64(status, call_11(i64(context + Starts.FN), i64(context + Starts.TABLE) + 88 * i))


class Await(Fields):
    """Fields of `await_task`."""

    FLAG = I64  # address of an int64 that the GPU writes
    NUMBER = I64  # address of the int64 that is waited for: FLAG has it, or more
    NAPS = I64  # until it is LATE
    STATUS = I64
    WAITED = I64  # address of an int64 that grows by the ticks that task 0 waited


@task
def await_task(context: int, index: int, thread: int) -> None:
    """Wait for the GPU; tasks but the first keep their threads awake a while. context: `Await`."""
    flag, number = i64(context + Await.FLAG), i64(i64(context + Await.NUMBER))
    status = i64(context + Await.STATUS)
    began = ticks()
    spins = 0
    napped = 0
    while load_atomic(flag) < number and load_atomic(status) == 0:
        spins += 1
        if index > 0 and spins > HELPERS:
            break
        if spins < SPINS:
            relax()
            continue
        nap()
        napped += 1
        if napped > i64(context + Await.NAPS):
            put_i64(status, LATE)
    if index == 0:
        waited = i64(context + Await.WAITED)
        put_i64(waited, i64(waited) + ticks() - began)
