"""Staging: pinned memory that copies pass through, used round and round."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Final

import numpy as np

from offload.gpu.cuda_calls import CudaCalls
from offload.gpu.queue import Queue

Array = np.ndarray

BYTES: Final = 32 << 20
PART: Final = 8 << 20  # of a copy at once
_ALIGNED: Final = 256


class Staging:
    """A part is in use until the queue has passed its mark."""

    def __init__(self, calls: CudaCalls, queue: Queue) -> None:
        self._calls, self._queue = calls, queue
        self.address = int(calls.make("cuMemFreeHost", "cuMemHostAlloc", BYTES, 0))
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * BYTES).from_address(self.address))
        self._at = 0
        self._used: deque[tuple[int, int, int]] = deque()  # (start, end, mark), oldest first

    def upload(self, to: int, data: Array) -> None:
        """data: uint8, one-dimensional; may change when this returns."""
        for first in range(0, data.size, PART):
            part = data[first : first + PART]
            start = self._room(part.size)
            self._bytes[start : start + part.size] = part
            source = self.address + start
            stream = self._queue.stream
            self._calls.call("cuMemcpyHtoDAsync", to + first, source, part.size, stream)
            self._used.append((start, start + part.size, self._queue.mark()))

    def download(self, at: int, out: Array) -> None:
        """out: uint8, one-dimensional; filled when this returns."""
        for first in range(0, out.size, PART):
            part = out[first : first + PART]
            start = self._room(part.size)
            target = self.address + start
            stream = self._queue.stream
            self._calls.call("cuMemcpyDtoHAsync", target, at + first, part.size, stream)
            self._queue.wait(self._queue.mark())
            part[:] = self._bytes[start : start + part.size]

    def _room(self, n_bytes: int) -> int:
        """Offset of a part that nothing uses any more."""
        while self._used and self._used[0][2] <= self._queue.passed:
            self._used.popleft()
        start = self._at if self._at + n_bytes <= BYTES else 0
        end = start + n_bytes
        last = 0
        for low, high, mark in self._used:
            if low < end and start < high:
                last = mark
        while self._used and self._used[0][2] <= last:
            self._queue.wait(self._used.popleft()[2])
        self._at = -(-end // _ALIGNED) * _ALIGNED
        return start
