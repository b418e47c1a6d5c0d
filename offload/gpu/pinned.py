"""Memory of the host that a GPU reads by itself: how much can be had, and who gets it."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterable
from typing import Final

import numpy as np

from offload.amounts import binary_amount
from offload.gpu.cuda_calls import CudaError
from offload.gpu.driver import CudaGpu

log = logging.getLogger(__name__)

Array = np.ndarray

LEAST: Final = 64 << 20  # worth pinning


def pinnable(gpu: CudaGpu, most: int) -> int:
    """Bytes that could be pinned just now: `most`, its half, .., or 0. Takes 0.6 s a GiB."""
    while most >= LEAST:
        if gpu.can_pin(most):
            return most
        most //= 2
    return 0


class PinnedMemory:
    """Arrays that are pinned, up to a budget in bytes.

    state: one line for people, how much is pinned and why not more.
    """

    def __init__(self, gpu: CudaGpu, budget: int) -> None:
        self._gpu, self._budget = gpu, budget
        self._parts: dict[int, tuple[int, Array]] = {}  # address -> (bytes, what lies there)
        self.state = "nothing is pinned"

    @property
    def n_bytes(self) -> int:
        """Pinned."""
        return sum(n_bytes for n_bytes, _ in self._parts.values())

    def pin(self, parts: Iterable[Array]) -> int:
        """Of contiguous arrays, the hottest first, as many as go; how many that were.

        They stay alive as long as they are pinned. An array that must not be written to (of a
        mapped file) is pinned as such. Pages that two arrays share belong to the first.
        """
        count, why = 0, ""
        for part in parts:
            start, end = self._pages(part)
            if end - start > self._budget - self.n_bytes:
                why = f"the budget is {binary_amount(self._budget)}"
                break
            try:
                if end > start:
                    self._gpu.pin(start, end - start, read_only=not part.flags.writeable)
            except CudaError as exc:
                self._gpu.must_live()
                why = f"more is refused: {exc}"
                log.warning("pinned memory: %s", why)
                break
            if end > start:
                self._parts[start] = end - start, part
            count += 1
        self.state = f"{binary_amount(self.n_bytes)} are pinned" + (f"; {why}" if why else "")
        return count

    def close(self) -> None:
        """Unpin all."""
        while self._parts:
            self._gpu.unpin(self._parts.popitem()[0])

    def _pages(self, part: Array) -> tuple[int, int]:
        """(start, end) of an array's pages that are not pinned yet."""
        page = mmap.PAGESIZE
        start = part.ctypes.data // page * page
        end = -(-(part.ctypes.data + part.nbytes) // page) * page
        for there, (n_bytes, _) in self._parts.items():
            if there <= start < there + n_bytes:
                start = there + n_bytes
            if there < end <= there + n_bytes:
                end = there
        return start, max(start, end)
