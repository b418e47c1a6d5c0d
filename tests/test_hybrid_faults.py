"""A hybrid on a GPU that fails: an answer ends with one line at most, the next one works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from simulated_gpu import SimulatedGpu

from offload import DeviceError
from offload.gpu.base import Launch, Mark, Sent

Array = np.ndarray
PROMPT = "In the beginning there was a prompt."
AFTER = 40  # launches and copies that loading takes at least; faults come later


class FaultyGpu(SimulatedGpu):
    """faults: kind -> from which call on (counted once `armed`) it happens, so many times."""

    def __init__(self, faults: dict[str, tuple[int, int]], free: int | None = None) -> None:
        super().__init__(1 << 29)
        self.faults, self.armed = faults, False
        self.calls: dict[str, int] = {}
        self.free_bytes = free

    def happens(self, kind: str) -> bool:
        """Whether it does now."""
        if not self.armed or kind not in self.faults:
            return False
        n = self.calls[kind] = self.calls.get(kind, 0) + 1
        first, times = self.faults[kind]
        return first <= n < first + times

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """May be refused, or never end."""
        if self.happens("refused copy"):
            raise DeviceError("copies are refused just now")
        if self.happens("stalled copy"):
            return Sent(self._beside.put(lambda: self._beside_stalls()))
        return super().send(to, data, behind)

    def _beside_stalls(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.closed)

    def pin(self, data: Array) -> str:
        """May be refused."""
        return "the system refuses" if self.happens("pin") else super().pin(data)

    def prepare(self, launches: Sequence[Launch], *, beside: bool = False) -> Any:
        """What is prepared may be lost, or never begin."""
        made = super().prepare(launches, beside=beside)
        put = made._put

        def instead() -> None:
            if not beside and self.happens("late"):
                return
            if not beside and self.happens("lost"):
                self.fault = DeviceError("GPU 0: it is gone; --device cpu does without")
                return
            put()

        made._put = instead
        return made
