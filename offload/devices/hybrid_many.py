"""Split experts for many rows: on the CPU, or streamed through the GPU, whichever is quicker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Activations, Check, Runs
from offload.devices.crossing import carry, cross
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
        if device.way == "stream" and self._block.copy is not None:
            self._stream(check)
        else:
            self._compute(check)
        device.gpu.has_run(self.blocks)
        self._runs.count += 1

    def _compute(self, check: Check) -> None:
        """The CPU adds the routed experts to x, the GPU then its shared one."""
        block = self._block
        gpu, cpu = block.device.gpu, block.device.cpu
        cross(gpu, block.on_cpu)
        assert cpu.many is not None
        began = time.perf_counter()
        with cpu.many.checked(check):
            block.on_cpu.many(cpu.many)
        block.device.times.add("experts", time.perf_counter() - began)
        carry(cpu, Activations(x=cpu.many.x), block.on_gpu)
        w = Writer(gpu, gpu.memory, gpu.memory.n_rows)
        block.on_gpu.add_shared(w)
        gpu.run(w, check)

    def _stream(self, check: Check) -> None:
        """All experts in use pass through the GPU's ring; the next layer's then begin to."""
        block = self._block
        device, layer = block.device, block.layer
        gpu, hot, stream = device.gpu, device.hot, device.stream
        assert stream is not None
        w = Writer(gpu, gpu.memory, gpu.memory.n_rows)
        ids = gpu.memory.expert_ids(layer)
        began = time.perf_counter()
        counts = np.bincount(ids.ravel(), minlength=block.mlp.gate.count)
        np.add(counts, uses := device.cpu.places[layer].uses, out=uses)
        wanted = set() if hot is None else set(hot.wanted(layer, counts).tolist())

        def keep(expert: int, at: int) -> None:
            if hot is not None and expert in wanted:
                hot.keep(layer, expert, at)

        h = gpu.inputs(w, layer)
        parts, slots = stream.write(w, h, layer, block.slots, ids, check, keep)
        block.on_gpu.write_sum(w, parts, slots)
        following = device.following(block)
        if following is not None and following.copy is not None:
            gpu.start(w)
            stream.expect(following.layer, following.slots, ids.size, check)
        gpu.run(w, check)
        device.times.add("experts", time.perf_counter() - began)
