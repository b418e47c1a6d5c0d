"""Split experts for many rows: on the CPU, or streamed through the GPU, whichever is quicker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from offload.devices.base import Activations, Check, Runs
from offload.devices.crossing import cross
from offload.devices.cuda_writer import Writer

if TYPE_CHECKING:
    from offload.devices.hybrid_experts import GpuShare, SplitExperts


class ManySplit:
    """See Segment; on the GPU before and after."""

    def __init__(self, block: SplitExperts) -> None:
        self._block = block
        self.blocks: list[GpuShare] = [block.on_gpu]
        self._runs = Runs([block.kind])
        block.device.runs.append(self._runs)

    def run(self, check: Check) -> None:
        """See Segment."""
        check()
        device = self._block.device
        began = time.perf_counter()
        rows, routes = device.gpu.memory.n_rows, device.routes
        streams = routes is not None and routes.streams(rows)
        if streams:
            self._stream(check)
        else:
            self._compute(check)
        if routes is not None:
            routes.took(rows, streams=streams, seconds=time.perf_counter() - began)
        device.gpu.has_run(self.blocks)
        self._runs.count += 1

    def _compute(self, check: Check) -> None:
        """The CPU adds the routed experts to x, the GPU then its shared one."""
        block = self._block
        gpu, cpu = block.device.gpu, block.device.cpu
        cross(gpu, block.on_cpu)
        assert cpu.many is not None
        with cpu.many.checked(check):
            block.on_cpu.many(cpu.many)
        back = Activations(x=cpu.many.x)
        gpu.enter(back, block.on_gpu)
        cpu.traffic.bytes_out += back.n_bytes
        gpu.traffic.bytes_in += back.n_bytes
        w = Writer(gpu, gpu.memory, gpu.memory.n_rows)
        block.on_gpu.add_shared(w)
        gpu.run(w, check)

    def _stream(self, check: Check) -> None:
        """All experts in use pass through the GPU's ring."""
        block = self._block
        device = block.device
        gpu, stream = device.gpu, device.stream
        assert stream is not None
        w = Writer(gpu, gpu.memory, gpu.memory.n_rows)
        ids = gpu.memory.expert_ids(block.layer)
        parts, slots = stream.write(w, gpu.inputs(w, block.layer), block, ids, check)
        block.on_gpu.write_sum(w, parts, slots)
        gpu.run(w, check)
