"""SlotGpu: memory of a GPU and its two queues, for tests of who lies where; kernels move bytes.

What goes beside the queue is done a few steps at a time whenever it is asked whether something has
arrived. A `repack` is a plain copy.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from offload.errors import DeviceError
from offload.gpu.base import Launch, Mark, Sent

Array = np.ndarray


class SlotGpu:
    """See Gpu. on_write: called with (address, bytes) of all that goes beside the queue.

    speed: steps beside the queue for each question, at most. failing: how many calls it takes until
    one beside the queue fails, 0 or less: none; fails: whether all do.
    """

    def __init__(self, n_bytes: int, seed: int = 0) -> None:
        self.memory_of = np.full(n_bytes, 0xA5, np.uint8)
        self.base = 1 << 20
        self.speed = 3
        self.failing = 0
        self.fails = False
        self.on_write: Callable[[int, int], None] = lambda at, n: None
        self._random = random.Random(seed)
        self._next = self.base
        self._beside: deque[Callable[[], None]] = deque()
        self.sent = self.arrived = 0

    def alloc(self, n_bytes: int) -> int:
        """One after the other."""
        at, self._next = self._next, self._next + -(-n_bytes // 256) * 256
        assert self._next <= self.base + self.memory_of.size
        return at

    def view(self, at: int, n_bytes: int) -> Array:
        """Bytes."""
        start = at - self.base
        assert 0 <= start <= start + n_bytes <= self.memory_of.size
        return self.memory_of[start : start + n_bytes]

    def upload(self, to: int, data: Array) -> None:
        """At once."""
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.view(to, data.size)[:] = data

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """At once."""
        self.on_write(to, n_bytes)
        self.view(to, n_bytes)[:] = self.view(at, n_bytes).copy()

    def mark(self) -> Mark:
        """All is over."""
        return Mark(1)

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """Later."""
        self._try()
        self._put(lambda: self.upload(to, data))
        return Sent(self.sent)

    def prepare(self, launches: Sequence[Launch], *, beside: bool) -> Any:
        """A copy."""
        assert beside
        self._try()
        return Moved(self, launches)

    def launch(self, one: Launch) -> None:
        """The first rows of a stage to a slot."""
        stage, row_bytes, first, count, *_ = one.arguments
        n, to = row_bytes * count, one.arguments[7]
        assert first == 0
        self.on_write(to, n)
        self.view(to, n)[:] = self.view(stage, n)

    def _try(self) -> None:
        self.failing -= 1
        if self.failing == 0 or self.fails:
            raise DeviceError("error 999")

    def _put(self, work: Callable[[], None]) -> None:
        self._beside.append(work)
        self.sent += 1

    def sending(self) -> Sent:
        """The last."""
        return Sent(self.sent)

    def has_arrived(self, sent: Sent) -> bool:
        """Some steps later."""
        self._go(self._random.randint(0, self.speed))
        return self.arrived >= sent

    def after(self, sent: Sent) -> None:
        """The queue goes on at once, so it must be there."""
        self._go(sent - self.arrived)

    def wait(self) -> None:
        """All of it."""
        self._go(len(self._beside))

    def _go(self, steps: int) -> None:
        for _ in range(min(steps, len(self._beside))):
            self._beside.popleft()()
            self.arrived += 1


class Moved:
    """See Prepared."""

    def __init__(self, gpu: SlotGpu, launches: Sequence[Launch]) -> None:
        self._gpu, self._launches = gpu, launches

    def run(self) -> None:
        """Later."""
        for one in self._launches:
            self._gpu._put(lambda one=one: self._gpu.launch(one))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing."""
