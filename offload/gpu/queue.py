"""Queue: a stream of the GPU, with marks that tell how far it is."""

from __future__ import annotations

import time
from typing import Any, Final

from offload.gpu.base import Check
from offload.gpu.cuda_calls import CudaCalls

MARKS: Final = 64  # that may be ahead of the GPU
CHECK_SECONDS: Final = 0.01
EAGER_SECONDS: Final = 2e-4  # of a wait without sleep
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING
_NO_TIMING: Final = 2  # CU_EVENT_DISABLE_TIMING


class Queue:
    """What is put in goes in order. watchdog_seconds: without progress, until the GPU is lost.

    passed: the last mark that the GPU is known to have passed.
    """

    def __init__(self, calls: CudaCalls, watchdog_seconds: float) -> None:
        self._calls = calls
        self._watchdog_seconds = watchdog_seconds
        self.stream = calls.make("cuStreamDestroy", "cuStreamCreate", _NON_BLOCKING)
        self._events: list[Any] = [
            calls.make("cuEventDestroy", "cuEventCreate", _NO_TIMING) for _ in range(MARKS)
        ]
        self._made = self.passed = 0

    def mark(self) -> int:
        """Behind all so far; waits where MARKS marks are ahead."""
        if self._made - self.passed == MARKS:
            self.wait(self.passed + 1)
        self._calls.call("cuEventRecord", self._events[(self._made + 1) % MARKS], self.stream)
        self._made += 1
        return self._made

    def wait(self, mark: int, check: Check | None = None) -> None:
        """Until the GPU has passed a mark. DeviceError: it has not moved for too long."""
        began = moved = checked = time.monotonic()
        while self.passed < mark:
            if self._calls.is_done(self._events[(self.passed + 1) % MARKS]):
                self.passed += 1
                moved = time.monotonic()
                continue
            now = time.monotonic()
            if check is not None and now - checked >= CHECK_SECONDS:
                checked = now
                check()
            if now - moved > self._watchdog_seconds:
                raise self._calls.lose(f"no answer for {now - moved:.0f} s")
            if now - began > EAGER_SECONDS:
                time.sleep(min(1e-3, (now - began) / 20))
