"""A pool of threads for parallel regions a few microseconds to milliseconds long.

    pool = Pool(threads)
    pool.run(task.address, context, n)       # task(context, i, thread) for i in 0 .. n - 1

Unlike a fork-join region it does not wait for every thread to show up: the caller works too, and a
region ends when all tasks are done, even if another program keeps a worker off its core meanwhile.
Workers spin for about a tenth of a millisecond, then sleep in the kernel until the next region.

Neighbouring tasks stay on one thread, so that what a kernel fetches ahead of its last row is its
thread's own next; only who is through with its share takes from others. Cores far apart then meet
at the ends of a region alone, not at every task.

How: a 64-bit word per thread, its share | generation: 24 | end: 20 | next task: 20 |. Whoever takes
a task adds 1 to the word. If the number got is below the end got with it, then the region cannot
end before that task is done, so the region's function and context are safe to read; otherwise
nothing is touched. What a thread has done it reports when it finds no more anywhere; the region
ends when all is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from quant.compiler import isa, stack
from quant.compiler.jit import inline, kernel
from quant.simd.vectors import I32, I64, P, _op, _pointer, call, call_kernel, i64, put_i64

# Control block: one cache line (8 int64) per field that different threads write.
DONE, SLEEPERS, WAKE, STOP, FN, SHARES = (64 * i for i in range(6))  # SHARES: a line per thread
CONTEXT, THREADS = FN + 8, FN + 16
MAX_TASKS = (1 << 19) - 1
SPINS = 4000
LINUX = sys.platform.startswith("linux")
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}


def _fetch_add(b: Any, m: Any, v: Any) -> Any:
    return b.atomic_rmw("add", _pointer(b, v[0], I64), v[1], "seq_cst")


def _load(b: Any, m: Any, v: Any) -> Any:
    return b.load_atomic(_pointer(b, v[0], I64), "seq_cst", 8, typ=I64)


def _store(b: Any, m: Any, v: Any) -> Any:
    b.store_atomic(v[1], _pointer(b, v[0], I64), "seq_cst", 8)
    return ir.Constant(I64, 0)


def _relax(b: Any, m: Any, v: Any) -> Any:
    if isa.X86:
        call(b, m, "llvm.x86.sse2.pause", ir.VoidType(), [])
    return ir.Constant(I64, 0)


fetch_add = _op(types.int64, (P, types.int64), _fetch_add)
load_atomic = _op(types.int64, (P,), _load)
store_atomic = _op(types.int64, (P, types.int64), _store)
relax = _op(types.int64, (), _relax)


def _futex_number() -> int:
    return _FUTEX.get(platform.machine(), 0) if LINUX else 0


FUTEX = _futex_number()


def _futex(b: Any, m: Any, v: Any) -> Any:
    """syscall(futex, address, op, value, timeout, 0, 0); op 128 waits, 129 wakes (private)."""
    address, op, value, timeout = v
    zero = ir.Constant(I64, 0)
    values = [ir.Constant(I64, FUTEX), address, op, value, timeout, zero, zero]
    return call(b, m, "syscall", I64, values)


def _nap(b: Any, m: Any, v: Any) -> Any:
    return b.sext(call(b, m, "usleep", I32, [ir.Constant(I32, 200)]), I64)


futex = _op(types.int64, (P, types.int64, types.int64, P), _futex)
nap = _op(types.int64, (), _nap)
HAS_FUTEX = FUTEX > 0
GETCPU = getattr(ctypes.CDLL(None), "sched_getcpu", None) if LINUX else None


@inline
def is_empty(word: int) -> bool:
    """Whether no task of a share is left."""
    return word & 0xFFFFF >= word >> 20 & 0xFFFFF


@inline
def take_share(control: int, share: int, thread: int) -> int:
    """Do what is left of a share; how many tasks that were."""
    done = 0
    at = control + SHARES + 64 * share
    while not is_empty(load_atomic(at)):
        ticket = fetch_add(at, 1)
        if is_empty(ticket):
            break
        call_kernel(i64(control + FN), i64(control + CONTEXT), ticket & 0xFFFFF, thread)
        done += 1
    return done


@inline
def work(control: int, thread: int) -> None:
    """Do tasks of the current region, one's own first, until none is left; say how many."""
    done = 0
    threads = i64(control + THREADS)
    share = thread
    for _ in range(threads):
        done += take_share(control, share, thread)
        share = share + 1 if share + 1 < threads else 0
    if done:
        fetch_add(control + DONE, done)


@inline
def sleep_until_woken(control: int, own: int) -> None:
    """Sleep in the kernel unless a region has begun meanwhile."""
    if HAS_FUTEX:
        fetch_add(control + SLEEPERS, 1)
        seen = load_atomic(control + WAKE)
        if is_empty(load_atomic(own)) and load_atomic(control + STOP) == 0:
            futex(control + WAKE, 128, seen & 0xFFFFFFFF, 0)
        fetch_add(control + SLEEPERS, -1)
    else:
        nap()


@kernel()
def worker(control: int, thread: int) -> None:
    """The life of a worker thread; returns when STOP is set."""
    own = control + SHARES + 64 * thread
    while load_atomic(control + STOP) == 0:
        work(control, thread)
        spins = 0
        while spins < SPINS:
            if not is_empty(load_atomic(own)) or load_atomic(control + STOP) != 0:
                break
            relax()
            spins += 1
        if spins == SPINS:
            sleep_until_woken(control, own)


@inline
def run_region(control: int, fn: int, context: int, n: int) -> None:
    """fn(context, i, thread) for i < n, on all threads; for use inside other kernels."""
    put_i64(control + FN, fn)
    put_i64(control + CONTEXT, context)
    store_atomic(control + DONE, 0)
    generation = ((load_atomic(control + SHARES) >> 40) + 1 & 0x7FFFFF) << 40
    threads = i64(control + THREADS)
    share = control + SHARES
    first = end = 0
    for thread in range(1, threads + 1):
        end = (n * thread + threads - 1) // threads
        store_atomic(share, generation | end << 20 | first)
        share += 64
        first = end
    if HAS_FUTEX and n > 1 and load_atomic(control + SLEEPERS) > 0:
        fetch_add(control + WAKE, 1)
        futex(control + WAKE, 129, 0x7FFFFFFF, 0)
    work(control, 0)
    while load_atomic(control + DONE) < n:
        relax()


@kernel()
def run_tasks(control: int, fn: int, context: int, n: int) -> None:
    """`run_region` for Python."""
    run_region(control, fn, context, n)


@kernel()
def wake_all(control: int) -> None:
    """Let sleeping workers look at STOP."""
    fetch_add(control + WAKE, 1)
    if HAS_FUTEX:
        futex(control + WAKE, 129, 0x7FFFFFFF, 0)


def _live(control: np.ndarray, thread: int, cpus: frozenset[int] | None) -> None:
    """Body of a worker thread; holds the control block as long as it runs."""
    if cpus is not None:
        with contextlib.suppress(OSError, AttributeError):  # then it goes where the system says
            os.sched_setaffinity(0, cpus)  # 0: this thread alone
    worker(control.ctypes.data, thread)


def _stop(control: np.ndarray) -> None:
    control[STOP // 8] = 1
    wake_all(control.ctypes.data)


class Pool:
    """`threads` - 1 workers and the caller. One region at a time.

    cpus: logical cores of each thread; workers are pinned to theirs. The caller's thread belongs to
    the program around us: it is only moved out of a worker's way, to cpus[0], by `settle`. Workers
    end with `close`, or when the pool is forgotten.
    """

    def __init__(self, threads: int, cpus: Sequence[frozenset[int]] | None = None) -> None:
        self.threads = threads
        self._cpus = cpus
        fields = SHARES // 8 + 8 * threads
        room = np.zeros(fields + 8, np.int64)
        control = room[(-room.ctypes.data // 8) % 8 :][:fields]
        control[THREADS // 8] = threads
        self.address = int(control.ctypes.data)
        self._room = control
        run_tasks(self.address, 0, 0, 0)  # compiled here, not by several threads at once
        wake_all(self.address)
        self._workers = [
            threading.Thread(
                target=_live,
                args=(control, i, cpus[i] if cpus else None),
                name=f"offload-{i}",
                daemon=True,
            )
            for i in range(1, threads)
        ]
        self._finalizer = weakref.finalize(self, _stop, control)
        with stack.roomy_threads():
            for thread in self._workers:
                thread.start()

    def run(self, fn: int, context: int, n: int) -> None:
        """fn(context, i, thread) for i in 0 .. n - 1; fn: address of a C kernel."""
        if n > MAX_TASKS:
            raise ValueError(f"{n} tasks in one region, at most {MAX_TASKS}")
        stack.call(run_tasks, self.address, fn, context, n)

    def settle(self) -> None:
        """Move the caller off the pinned workers' cores; about 1 us. It may go anywhere later."""
        if self._cpus is None or GETCPU is None or GETCPU() in self._cpus[0]:
            return
        with contextlib.suppress(OSError):
            allowed = os.sched_getaffinity(0)
            own = self._cpus[0] & allowed
            if own:
                os.sched_setaffinity(0, own)
                os.sched_setaffinity(0, allowed)

    def close(self) -> None:
        """End the workers."""
        self._finalizer()
        for thread in self._workers:
            thread.join(timeout=1.0)
        self._workers = []
