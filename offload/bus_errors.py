"""A mapped file that shrinks or cannot be read: one line instead of a silent end (SIGBUS).

The system ends a program that touches mapped bytes which are no longer there, and nothing can be
caught: the instruction cannot be completed. What can be done is to say which file it was. Faults
come from kernels and copies of array bytes only, never from inside the interpreter or the
allocator, so the handler may be Python; it runs on the thread that met the fault.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol


class Watched(Protocol):
    """A mapped file."""

    def fault(self) -> str | None:
        """What is wrong with it now, one line; None if it is as it was."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_endings: list[Callable[[], None]] = []


def watch(file: Watched) -> None:
    """Name this file if a fault is its doing; as long as it lives."""
    _watched.add(file)
    _install()


def end_with(ending: Callable[[], None]) -> None:
    """What to do after the line; a program restores its terminal and exits (os._exit) there.

    Without it the program ends by the signal.
    """
    _endings[:] = [ending]


def _message() -> str:
    for file in list(_watched):
        if fault := file.fault():
            return str(fault)
    return (
        "a memory-mapped file could not be read (bus error), although none has shrunk: the disk "
        "under the model or its packed cache may have failed"
    )


@cache
def _install() -> Any:
    """The handler, kept alive; None where there is no such signal."""
    number = getattr(signal, "SIGBUS", None)
    if number is None or not sys.platform.startswith("linux"):
        return None
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    previous: list[int | None] = []

    def handle(signal_number: int) -> None:
        try:
            os.write(2, f"error: {_message()}\n".encode(errors="backslashreplace"))
            for ending in _endings:
                ending()
        finally:
            # again on return, this time without us
            libc.signal(signal_number, previous[0] if previous else None)

    handler = kind(handle)
    previous.append(libc.signal(number, ctypes.cast(handler, ctypes.c_void_p)))
    return handler
