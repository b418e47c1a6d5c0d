"""Limits for work that would take quadratic time, the same beside other tests and alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def takes_less_than(seconds: float) -> Iterator[None]:
    """Of this thread alone, without visits of the collector to what other tests left behind."""
    collects = gc.isenabled()
    gc.disable()
    began = time.thread_time()
    try:
        yield
        took = time.thread_time() - began
    finally:
        if collects:
            gc.enable()
    assert took < seconds
