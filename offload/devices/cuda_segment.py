"""Neighbouring blocks on a GPU: of a few rows one prepared graph, of many block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Check, Runs
from offload.devices.cuda_writer import FEW, Writer

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_blocks import CudaBlock
    from offload.gpu.base import Prepared

HEAD_ROWS = 64  # of many whose logits are wanted, at a time


class CudaSegment:
    """See Segment."""

    def __init__(self, device: CudaDevice, blocks: Sequence[CudaBlock]) -> None:
        self.blocks = blocks
        self._device = device
        self._runs = Runs([block.kind for block in blocks])
        device.runs.append(self._runs)
        self._prepared: dict[tuple[object, ...], Prepared] = {}

    def run(self, check: Check) -> None:
        """See Segment."""
        check()
        if self._device.memory.most == FEW:
            self._few().run()
            self._device.gpu.rest(check)
        else:
            self._many(check)
        self._runs.count += 1
        self._device.has_run(self.blocks)

    def _few(self) -> Prepared:
        """What runs the batch's rows, prepared once for each number of them."""
        memory = self._device.memory
        key = memory.n_rows, memory.with_ids, memory.kinds, memory.strands
        if key not in self._prepared:
            writer = Writer(self._device, memory, memory.n_rows)
            for block in self.blocks:
                block.steps(writer)
            self._prepared[key] = self._device.gpu.prepare(writer.launches)
        return self._prepared[key]

    def _many(self, check: Check) -> None:
        device, memory = self._device, self._device.memory
        writer = Writer(device, memory, memory.n_rows)
        for block in self.blocks:
            if block.kind == "head":
                self._head(block, check)
                continue
            block.steps(writer)
            device.run(writer, check)

    def _head(self, block: CudaBlock, check: Check) -> None:
        """Logits of the rows that are wanted, some at a time, to host memory."""
        device = self._device
        x = device.memory.rooms.room("x", 4 * device.config.hidden_size)
        wanted, memory = device.wanted, device.head_memory(HEAD_ROWS)
        parts = []
        for first in range(0, len(wanted), HEAD_ROWS):
            some = wanted[first : first + HEAD_ROWS]
            memory.n_rows = len(some)
            writer = Writer(device, memory, len(some))
            for i, row in enumerate(some.tolist()):
                device.gpu.copy(
                    writer.x.address + i * x.stride, x.address + row * x.stride, x.stride
                )
            block.steps(writer)
            device.run(writer, check)
            parts.append(memory.rows_at("logits", device.n_logits))
        device.many_logits = np.concatenate(parts)
