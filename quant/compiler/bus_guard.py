"""Mapped files that shrink or cannot be read: zeros and a mark, instead of the program's end.

Whoever touches mapped bytes that are no longer there gets SIGBUS, on the thread that reads, a
kernel's worker or the interpreter's. The handler maps zero pages over the rest of that map, marks
it as torn and returns: the reading goes on with zeros. So results are worth nothing once a map is
torn, and whoever gives results away asks first. It is machine code that makes system calls and
needs no interpreter, for the faulting thread may hold the interpreter's lock, or wait for it.

    int64 table: faults so far | gave up | address of the former handler's record
    then entries of watched maps: first byte | byte after the last | is torn

A fault anywhere else is the former handler's, or ends the program. Linux only, 64 bits; elsewhere
nothing is watched.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
import sys
from collections import deque
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from quant.compiler.jit import task
from quant.simd.vectors import I32, I64, P, _op, call, i64, put_i64

SET = -1  # as the first argument: no signal, but the address of the table
FAULTS, GAVE_UP, FORMER, ENTRIES = (8 * i for i in range(4))  # offsets in the table
START, END, TORN, ENTRY_BYTES = (8 * i for i in range(4))  # in an entry
MAPS = 4096  # watched at a time
PAGE = mmap.PAGESIZE
SI_ADDR = 16  # where siginfo_t has the address that was touched
RECORD_BYTES, FLAGS_AT = 152, 136  # of struct sigaction: the handler, 128 bytes of mask, flags
SA_SIGINFO, SA_RESTART = 4, 0x10000000
PROT_READ, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
MACHINES = ("x86_64", "aarch64", "riscv64")  # which have these numbers


def _table_address(b: Any, m: Any, v: Any) -> Any:
    name = "offload_bus_table"
    table = m.globals.get(name)
    if table is None:
        table = ir.GlobalVariable(m, I64, name)
        table.linkage = "internal"
        table.initializer = ir.Constant(I64, 0)
    return b.ptrtoint(table, I64)


def _map_zeros(b: Any, m: Any, v: Any) -> Any:
    numbers = PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1
    values = [*v, *(ir.Constant(I32, number) for number in numbers), ir.Constant(I64, 0)]
    return call(b, m, "mmap", I64, values)


def _hand_back(b: Any, m: Any, v: Any) -> Any:
    values = [ir.Constant(I32, int(signal.SIGBUS)), v[0], ir.Constant(I64, 0)]
    return b.sext(call(b, m, "sigaction", I32, values), I64)


table_address = _op(types.int64, (), _table_address)
map_zeros = _op(types.int64, (P, types.int64), _map_zeros)
hand_back = _op(types.int64, (P,), _hand_back)


@task
def guard_task(number: int, info: int, context: int) -> None:
    """A signal handler with siginfo; with SET as the number it keeps the address `info`."""
    at = table_address()
    if number == SET:
        put_i64(at, info)
        return
    table = i64(at)
    touched = i64(info + SI_ADDR)
    for i in range(MAPS):
        entry = table + ENTRIES + i * ENTRY_BYTES
        end = i64(entry + END)
        if i64(entry + START) <= touched < end:
            page = touched & -PAGE
            if map_zeros(page, end - page) == page:
                put_i64(entry + TORN, 1)
                put_i64(table + FAULTS, i64(table + FAULTS) + 1)
                return
    # the former handler's, on return and again; the second time it is the system's
    former = i64(table + FORMER)
    hand_back(former + RECORD_BYTES * i64(table + GAVE_UP))
    put_i64(table + GAVE_UP, 1)


_table = np.zeros(ENTRIES // 8 + MAPS * ENTRY_BYTES // 8, np.int64)
_entries = _table[ENTRIES // 8 :].reshape(MAPS, -1)  # start, end, torn
_former = np.zeros((2, RECORD_BYTES), np.uint8)  # the former handler's record, and the default
_free = deque(range(MAPS))


def watch(data: np.ndarray) -> int | None:
    """Guard a whole map, (n,) uint8; the number to ask with. None where that cannot be done."""
    if not _install():
        return None
    try:
        number = _free.popleft()
    except IndexError:  # more maps than anybody has
        return None
    start = int(data.ctypes.data)
    _entries[number] = start, start + -(-data.nbytes // PAGE) * PAGE, 0
    return number


def forget(number: int) -> None:
    """The map is about to go: its addresses may soon be another's."""
    _entries[number, 1] = 0  # first: from now on nothing lies within it
    _entries[number] = 0
    _free.append(number)


def is_torn(number: int) -> bool:
    """Whether a part of the map has been replaced by zeros."""
    return bool(_entries[number, 2])


def faults() -> int:
    """How often maps were torn in this process so far; a change means: ask `is_torn`."""
    return int(_table[0])


@cache
def _install() -> bool:
    """Install the handler, once; whether it is there."""
    if not sys.platform.startswith("linux") or platform.machine() not in MACHINES:
        return False
    kind = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_ssize_t)
    _table[FORMER // 8] = _former.ctypes.data
    kind(guard_task.address)(SET, _table.ctypes.data, 0)
    record = np.zeros(RECORD_BYTES, np.uint8)
    record[:8].view(np.int64)[0] = guard_task.address
    record[FLAGS_AT : FLAGS_AT + 4].view(np.int32)[0] = SA_SIGINFO | SA_RESTART
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in (record, _former))
    done: int = ctypes.CDLL(None).sigaction(ctypes.c_int(signal.SIGBUS), *pointers)
    return done == 0
