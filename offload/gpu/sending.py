"""Sender: copies to the GPU beside its launches, in a queue of their own.

An array that may change passes through pinned memory (staging.py). From one that may not, a part of
a mapped file, the GPU can read whole pages by itself once they are registered. That takes time, and
so does a copy: the first such array is registered, the second is staged, all others as was quicker.
What `Gpu.pin` has registered before (host_memory.py) is read where it lies.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
from time import perf_counter
from typing import Final

import numpy as np

from offload.gpu.base import Check
from offload.gpu.cuda_calls import CudaCalls, CudaError
from offload.gpu.host_memory import READ_ONLY, HostMemory, whole_pages
from offload.gpu.queue import Queue
from offload.gpu.staging import Staging

log = logging.getLogger(__name__)

Array = np.ndarray

LEAST: Final = 1 << 20  # bytes worth registering
BUDGET: Final = 64 << 20  # registered at a time


class Sender:
    """registering, staging: of this thread, seconds a byte; None: not tried, inf: refused."""

    def __init__(self, calls: CudaCalls, queue: Queue, staging: Staging, host: HostMemory) -> None:
        self._calls, self._queue, self._staging, self._host = calls, queue, staging, host
        self.registering: float | None = None
        self.staging: float | None = None
        # (address, bytes, mark, what lies there), oldest first
        self._registered: deque[tuple[int, int, int, Array]] = deque()

    def send(self, to: int, data: Array) -> int:
        """data: (n,) uint8. The mark of the copy; a read-only array stays as it is until then."""
        while self._registered and self._registered[0][2] <= self._queue.passed:
            self._drop()
        first, end = self._host.part(data)
        if first < end:
            self._copy(to, data, first, end)
            return self._queue.mark()
        first, end = whole_pages(data)
        if data.flags.writeable or end - first < LEAST:
            self._staging.upload(self._queue, to, data)
        elif self.registering is None:
            self._try(to, data, first, end)
        elif self.staging is None:
            began = perf_counter()
            self._staging.upload(self._queue, to, data)
            self.staging = (perf_counter() - began) / data.size
            log.debug(
                "%s: parts of a mapped file take %.3f s a GB to register, %.3f s to stage",
                self._calls.name, 1e9 * self.registering, 1e9 * self.staging,
            )  # fmt: skip
        elif self.registering > self.staging or not self._read(to, data, first, end):
            self._staging.upload(self._queue, to, data)
        return self._queue.mark()

    def wait(self, check: Check | None = None) -> None:
        """Until all is sent; nothing that came by itself is registered then."""
        self._queue.wait(self._queue.mark(), check)
        while self._registered:
            self._drop()

    def _try(self, to: int, data: Array, first: int, end: int) -> None:
        """Measure what it takes to register, and to undo it."""
        began = perf_counter()
        if not self._read(to, data, first, end):
            self._staging.upload(self._queue, to, data)
            return
        seconds = perf_counter() - began
        self._queue.wait(self._queue.mark())
        began = perf_counter()
        self._drop()
        self.registering = (seconds + perf_counter() - began) / data.size

    def _read(self, to: int, data: Array, first: int, end: int) -> bool:
        """Let the GPU read pages `first` .. `end` by itself; False: it must not, ever."""
        address, n_bytes = data.ctypes.data + first, end - first
        while self._registered and self._is_in_the_way(address, n_bytes):
            self._drop()
        try:
            self._calls.call("cuMemHostRegister", address, n_bytes, READ_ONLY)
        except CudaError as exc:
            self._calls.must_live()
            self.registering = inf
            log.debug("mapped files are staged: %s", exc)
            return False
        self._calls.own("cuMemHostUnregister", address)
        self._registered.append((address, n_bytes, self._queue.made + 1, data))
        self._copy(to, data, first, end)
        return True

    def _copy(self, to: int, data: Array, first: int, end: int) -> None:
        """Bytes `first` .. `end` are registered; what lies before and behind is staged."""
        source, stream = data.ctypes.data + first, self._queue.stream
        self._calls.call("cuMemcpyHtoDAsync", to + first, source, end - first, stream)
        self._staging.upload(self._queue, to, data[:first])
        self._staging.upload(self._queue, to + end, data[end:])

    def _is_in_the_way(self, address: int, n_bytes: int) -> bool:
        """Whether too much is registered, or a page of these already."""
        total = sum(size for _, size, _, _ in self._registered)
        return total + n_bytes > BUDGET or any(
            at < address + n_bytes and address < at + size for at, size, _, _ in self._registered
        )

    def _drop(self) -> None:
        address, _, mark, _ = self._registered[0]
        self._queue.wait(mark)
        self._calls.drop("cuMemHostUnregister", address)
        self._registered.popleft()
