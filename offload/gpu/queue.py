"""Queue: a stream of the GPU, with marks that tell how far it is. Two may wait for each other."""

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

    made: the last mark; passed: the last that the GPU is known to have passed.
    """

    def __init__(self, calls: CudaCalls, watchdog_seconds: float) -> None:
        self._calls = calls
        self._watchdog_seconds = watchdog_seconds
        self.stream = calls.make("cuStreamDestroy", "cuStreamCreate", _NON_BLOCKING)
        self._events: list[Any] = [
            calls.make("cuEventDestroy", "cuEventCreate", _NO_TIMING) for _ in range(MARKS)
        ]
        self._followed: set[Queue] = set()
        self.made = self.passed = 0

    def mark(self) -> int:
        """Behind all so far; waits where MARKS marks are ahead."""
        if self.made - self.passed == MARKS:
            self.wait(self.passed + 1)
        self._calls.call("cuEventRecord", self._events[(self.made + 1) % MARKS], self.stream)
        self.made += 1
        return self.made

    def follow(self, other: Queue, mark: int) -> None:
        """What is put in next begins once the GPU has passed a mark of another queue."""
        if mark > other.passed:
            self._followed.add(other)
            event = other._events[mark % MARKS]
            self._calls.call("cuStreamWaitEvent", self.stream, event, 0)

    def wait(self, mark: int, check: Check | None = None) -> None:
        """Until the GPU has passed a mark, the next one at most. DeviceError: nothing moves."""
        if mark > self.made:
            self.mark()
        began = moved = checked = time.monotonic()
        while self.passed < mark:
            if self._moves() or any(other._moves() for other in self._followed):
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

    def has_passed(self, mark: int) -> bool:
        """Whether the GPU has; does not wait."""
        while self.passed < mark and self._moves():
            pass
        return self.passed >= mark

    def must_live(self) -> None:
        """DeviceError if the GPU has failed on the way to the last mark."""
        self._calls.is_done(self._events[self.made % MARKS])

    def _moves(self) -> bool:
        """Whether the GPU has passed one more mark."""
        if self.passed == self.made:
            return False
        if not self._calls.is_done(self._events[(self.passed + 1) % MARKS]):
            return False
        self.passed += 1
        return True
