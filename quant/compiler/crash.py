"""What a native crash still does: write a line, put the terminal back, then end as it would have.

Nothing but three calls that are safe in a signal handler, in machine code that needs no
interpreter: a crash may hold any lock.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from quant.compiler.jit import task
from quant.simd.vectors import I8, I32, I64, P, _op, call, i64, put_i64

SIGNALS = tuple(
    int(getattr(signal, name)) for name in ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGBUS")
    if hasattr(signal, name)
)  # fmt: skip
SET = -1  # as the first argument: no signal, but the address of the record
TERMINAL, ATTRIBUTES, LINE, LINE_BYTES, RESET, RESET_BYTES = (8 * i for i in range(6))


def _record_address(b: Any, m: Any, v: Any) -> Any:
    name = "offload_crash_record"
    record = m.globals.get(name)
    if record is None:
        record = ir.GlobalVariable(m, I64, name)
        record.linkage = "internal"
        record.initializer = ir.Constant(I64, 0)
    return b.ptrtoint(record, I64)


def _write(b: Any, m: Any, v: Any) -> Any:
    return call(b, m, "write", I64, [b.trunc(v[0], I32), v[1], v[2]])


def _set_terminal(b: Any, m: Any, v: Any) -> Any:
    values = [b.trunc(v[0], I32), ir.Constant(I32, 0), v[1]]  # 0: TCSANOW
    return b.sext(call(b, m, "tcsetattr", I32, values), I64)


def _raise_again(b: Any, m: Any, v: Any) -> Any:
    number, default = b.trunc(v[0], I32), ir.Constant(I8.as_pointer(), None)
    call(b, m, "signal", I8.as_pointer(), [number, default])
    return b.sext(call(b, m, "raise", I32, [number]), I64)


record_address = _op(types.int64, (), _record_address)
write = _op(types.int64, (types.int64, P, types.int64), _write)
set_terminal = _op(types.int64, (types.int64, P), _set_terminal)
raise_again = _op(types.int64, (types.int64,), _raise_again)


@task
def crash_task(number: int, record: int, unused: int) -> None:
    """A signal handler; with SET as the number it keeps the address of the record."""
    at = record_address()
    if number == SET:
        put_i64(at, record)
        return
    kept = i64(at)
    if kept:
        write(2, i64(kept + LINE), i64(kept + LINE_BYTES))
        if i64(kept + TERMINAL) >= 0:
            set_terminal(i64(kept + TERMINAL), i64(kept + ATTRIBUTES))
            write(i64(kept + TERMINAL), i64(kept + RESET), i64(kept + RESET_BYTES))
    raise_again(number & 127)  # blocked until we return, and then ends the program


_kept: list[np.ndarray] = []


def handle_crashes(line: bytes, terminal: int | None, reset: bytes) -> None:
    """Install the handler where nothing else is installed. Linux only; elsewhere nothing happens.

    terminal: a descriptor whose present state is restored, with `reset` written to it, or None.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    attributes = np.zeros(256, np.uint8)  # a struct termios has 60 bytes
    if terminal is not None and libc.tcgetattr(terminal, ctypes.c_void_p(attributes.ctypes.data)):
        terminal = None
    texts = [np.frombuffer(text + b"\0", np.uint8).copy() for text in (line, reset)]
    record = np.array(
        (
            -1 if terminal is None else terminal, attributes.ctypes.data,
            texts[0].ctypes.data, len(line), texts[1].ctypes.data, len(reset),
        ), np.int64,
    )  # fmt: skip
    _kept[:] = [attributes, *texts, record]
    kind = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_ssize_t)
    kind(crash_task.address)(SET, record.ctypes.data, 0)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    for number in SIGNALS:
        before = np.zeros(256, np.uint8)  # a struct sigaction: its handler first
        libc.sigaction(number, None, ctypes.c_void_p(before.ctypes.data))
        if not before[:8].any():  # else faulthandler's, bus_guard.py's, or another program's
            libc.signal(number, crash_task.address)
