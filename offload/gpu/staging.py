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
    """A part is in use until its queue has passed its mark."""

    def __init__(self, calls: CudaCalls) -> None:
        self._calls = calls
        self.address = int(calls.make("cuMemFreeHost", "cuMemHostAlloc", BYTES, 0))
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * BYTES).from_address(self.address))
        self._at = 0
        # (start, end, queue, its mark), oldest first
        self._used: deque[tuple[int, int, Queue, int]] = deque()

    def upload(self, queue: Queue, to: int, data: Array) -> None:
        """data: uint8, one-dimensional; may change when this returns."""
        for first in range(0, data.size, PART):
            part = data[first : first + PART]
            start = self._room(part.size)
            self._bytes[start : start + part.size] = part
            self._used.append((start, start + part.size, queue, queue.made + 1))
            source = self.address + start
            self._calls.call("cuMemcpyHtoDAsync", to + first, source, part.size, queue.stream)
            queue.mark()

    def download(self, queue: Queue, at: int, out: Array) -> None:
        """out: uint8, one-dimensional; filled when this returns."""
        for first in range(0, out.size, PART):
            part = out[first : first + PART]
            start = self._room(part.size)
            target = self.address + start
            self._calls.call("cuMemcpyDtoHAsync", target, at + first, part.size, queue.stream)
            queue.wait(queue.mark())
            part[:] = self._bytes[start : start + part.size]

    def _room(self, n_bytes: int) -> int:
        """Offset of a part that nothing uses any more."""
        while self._used and self._used[0][3] <= self._used[0][2].passed:
            self._used.popleft()
        start = self._at if self._at + n_bytes <= BYTES else 0
        end = start + n_bytes
        in_the_way = 0  # of the oldest
        for k, (low, high, *_) in enumerate(self._used):
            if low < end and start < high:
                in_the_way = k + 1
        for _ in range(in_the_way):
            _, _, queue, mark = self._used[0]
            queue.wait(mark)
            self._used.popleft()
        self._at = -(-end // _ALIGNED) * _ALIGNED
        return start
