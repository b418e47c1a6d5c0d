"""Neighbouring blocks of a hybrid: one tape for few rows, one block after the other for many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

from offload.devices.base import Check, Device, Runs, Segment
from offload.devices.cpu_tape import CpuTape
from offload.devices.cpu_writer import Writer as CpuWriter
from offload.devices.crossing import cross
from offload.devices.hybrid_blocks import HybridBlock, OnCpu, OnGpu
from offload.devices.hybrid_experts import SplitExperts
from offload.devices.hybrid_many import ManySplit
from offload.devices.hybrid_writer import HybridWriter
from offload.errors import DeviceError
from quant.compiler import stack

if TYPE_CHECKING:
    from offload.devices.hybrid import HybridDevice
    from offload.gpu.base import Prepared


MOST_TAPES = 12  # of a segment: graphs of all its layers each, which take the driver's memory


class HybridTape:
    """A pass of few rows. parts: of the GPU's work, in order."""

    def __init__(self, device: HybridDevice, blocks: Sequence[HybridBlock], rows: int) -> None:
        self._device = device
        self._blocks = blocks
        self.parts: list[Prepared] = []
        self._tape = CpuTape(device.cpu, len(blocks), rows, self._write, device.gpu.gpu.status_at)

    def _write(self, w: CpuWriter) -> None:
        both = HybridWriter(self._device, w)
        for block in self._blocks:
            block.steps(both)
        both.start()
        self.parts = both.parts

    def play(self, check: Check) -> None:
        """All of it; the GPU is at rest then, however it ends."""
        device, gpu = self._device, self._device.gpu.gpu
        stack.call(gpu.check_started)  # by the thread that plays
        device.is_at_rest = False
        try:
            self._tape.play(check)
            device.settle()
            gpu.check_started()
        except BaseException:
            with suppress(DeviceError):
                device.settle()
                gpu.rest()  # what is under way would take the next pass for its own
                device.is_at_rest = True
                gpu.check_started()  # what failed here is not the next pass's fault
            raise
        gpu.rest(check)
        device.is_at_rest = True

    def close(self) -> None:
        """Give the GPU's parts back; it is at rest."""
        for part in self.parts:
            part.close()


class HybridSegment:
    """See Segment."""

    def __init__(self, device: HybridDevice, blocks: Sequence[HybridBlock]) -> None:
        self.blocks = blocks
        self._device = device
        self._tapes: dict[tuple[object, ...], HybridTape] = {}
        self._runs = Runs([block.kind for block in blocks])
        device.runs.append(self._runs)
        self._pieces = pieces(blocks)
        self._of_gpu = [block.inner for block in blocks if isinstance(block, OnGpu)]
        self._of_gpu += [block.on_gpu for block in blocks if isinstance(block, SplitExperts)]

    def run(self, check: Check) -> None:
        """See Segment."""
        device = self._device
        began = time.perf_counter()
        try:
            if device.are_few:
                self.tape().play(check)
            else:
                self._many(check)
        except BaseException:
            device.settle()  # who comes next uses the GPU
            raise
        if device.are_few:
            device.gpu.has_run(self._of_gpu)
            self._runs.count += 1
        device.has_run(self.blocks[-1], time.perf_counter() - began)

    def tape(self) -> HybridTape:
        """Of the batch that the device has begun; made once for each kind of batch."""
        memory = self._device.gpu.memory
        key = memory.n_rows, memory.with_ids, memory.kinds, memory.strands
        found = self._tapes.pop(key, None)
        if found is None:
            self._device.settle()
            if len(self._tapes) >= MOST_TAPES:
                self._tapes.pop(next(iter(self._tapes))).close()
            found = HybridTape(self._device, self.blocks, memory.n_rows)
        self._tapes[key] = found  # the latest is the last to go
        return found

    def _many(self, check: Check) -> None:
        last: Device | None = None
        for piece in self._pieces:
            first = piece.blocks[0]
            if last is not None and first.device is not last:
                cross(last, first)
            piece.run(check)
            last = first.device


def pieces(blocks: Sequence[HybridBlock]) -> list[Segment]:
    """Neighbours of one side together; split experts, which begin and end on the GPU, alone."""
    found: list[Segment] = []
    for kind, group in groupby(blocks, type):
        several = list(group)
        if kind is SplitExperts:
            found += [ManySplit(block) for block in several if isinstance(block, SplitExperts)]
            continue
        inner = [block.inner for block in several if isinstance(block, OnGpu | OnCpu)]
        found.append(inner[0].device.segment(inner))
    return found
