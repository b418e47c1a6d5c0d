"""Stacks large enough for kernels, which keep their tiles there (tile.py, the largest).

A thread's stack may be smaller than usual (`ulimit -s`, threading.stack_size, some C libraries);
the system ends a program that runs over it without a word. So threads that we start get ROOM, and
what a small stack would call goes to a thread that has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

OF_KERNELS = 2 << 20  # bytes: what a kernel keeps there at most
NEEDED = 2 * OF_KERNELS  # of a stack on which kernels may run: its owner's frames lie there, too
ROOM = 2 * NEEDED  # of the stacks that we make
_lock = threading.Lock()
_here = threading.local()


@contextlib.contextmanager
def roomy_threads() -> Iterator[None]:
    """Threads that are started inside have ROOM."""
    with _lock:
        before = threading.stack_size(ROOM)
        try:
            yield
        finally:
            threading.stack_size(before)


def stack_bytes() -> int | None:
    """The size of the calling thread's stack; None where the system does not tell."""
    try:
        libc = ctypes.CDLL(None)
        get_attributes, get_stack = libc.pthread_getattr_np, libc.pthread_attr_getstack
        own = libc.pthread_self
    except (AttributeError, OSError, TypeError):
        return None
    own.restype = ctypes.c_void_p
    attributes = ctypes.create_string_buffer(256)  # a pthread_attr_t has 56 bytes
    address, size = ctypes.c_void_p(), ctypes.c_size_t()
    if get_attributes(ctypes.c_void_p(own()), attributes):
        return None
    failed = get_stack(attributes, ctypes.byref(address), ctypes.byref(size))
    libc.pthread_attr_destroy(attributes)
    return None if failed else size.value


def is_roomy() -> bool:
    """Whether kernels may run on the calling thread; asked once per thread."""
    if not hasattr(_here, "answer"):
        size = stack_bytes()
        _here.answer = size is None or size >= NEEDED
    answer: bool = _here.answer
    return answer


@cache
def _stand_in() -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1, "offload-stack")
    with roomy_threads():
        executor.submit(bool).result()  # starts the thread
    return executor


def call(fn: Callable[..., Any], *args: Any) -> None:
    """fn(*args), on a thread with ROOM if the calling one has too little; ends when it is done."""
    if is_roomy():
        fn(*args)
        return
    future = _stand_in().submit(fn, *args)
    try:
        future.result()
    except BaseException:
        wait([future])  # Ctrl-C: what it works on must not be freed yet
        raise
