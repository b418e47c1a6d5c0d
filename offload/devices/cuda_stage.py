"""Bytes that a GPU cannot read by itself, on their way: pinned memory that all CPU threads fill.

One thread copies less than half of what a bus of PCIe 4.0 takes (LOG.md), and while a prompt is
streamed the pool has nothing else to do.
"""

from __future__ import annotations

import logging
import mmap
import time
from typing import Final

import numpy as np

from offload.devices.base import Check
from offload.gpu.base import Gpu, Mark, Sent
from quant.run.copy_task import Copy, copy_task, copy_tasks
from quant.run.fields import write
from quant.run.pool import Pool

log = logging.getLogger(__name__)

Array = np.ndarray

PARTS: Final = 6  # few, so that they stay in the cache between the two copies
NAP: Final = 5e-5  # seconds
PATIENCE: Final = 1.0  # until the GPU's own watchdog is asked


class PoolStage:
    """PARTS parts of n_bytes each, used in turn. refused: why they could not be pinned, or ""."""

    def __init__(self, gpu: Gpu, pool: Pool, n_bytes: int) -> None:
        self._gpu, self._pool = gpu, pool
        size = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        room = np.empty(PARTS * size + mmap.PAGESIZE, np.uint8)
        first = -room.ctypes.data % mmap.PAGESIZE
        room = room[first : first + PARTS * size]
        self._parts = room.reshape(PARTS, size)
        self._sent: list[Sent | None] = [None] * PARTS
        self._turn = 0
        self.refused = gpu.pin(room)
        if self.refused:
            log.info("experts are staged by one thread: %s", self.refused)

    def send(self, to: int, data: Array, behind: Mark, check: Check) -> Sent:
        """See Gpu.send; data may change at once."""
        if self.refused:
            return self._gpu.send(to, data, behind)
        turn, self._turn = self._turn, (self._turn + 1) % PARTS
        sent = self._sent[turn]
        if sent is not None:
            self._wait(sent, check)
        part = self._parts[turn, : data.size]
        context = write(
            Copy, TARGET=part.ctypes.data, SOURCE=data.ctypes.data, SIZE=data.size
        )  # fmt: skip
        self._pool.run(copy_task.address, int(context.ctypes.data), copy_tasks(data.size))
        sent = self._sent[turn] = self._gpu.send(to, part, behind)
        return sent

    def _wait(self, sent: Sent, check: Check) -> None:
        end = time.monotonic() + PATIENCE
        while not self._gpu.has_arrived(sent):
            if time.monotonic() > end:
                self._gpu.wait(check)
                return
            time.sleep(NAP)
