"""ExpertCopy: an expert's bytes of the file on their way into VRAM, where they become planes.

    stage    gate | up | down    as in the file, each at a multiple of 256
    slot     gate | up | down    planes, likewise

All of it goes beside the queue, in order: one stage serves for expert after expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import numpy as np

from offload.devices.base import GatedMLP
from offload.devices.cuda_weights import bytes_of, planes_of, repack
from offload.gpu.base import Gpu, Launch, Mark, Sent
from offload.plane_sizes import aligned
from quant.cuda.kernels import Kernel, of_type

Array = np.ndarray
AT_ONCE: Final = Mark(0)  # nothing in the queue is waited for


class ExpertCopy:
    """The routed experts of a layer. PlanError if they are packed for the CPU.

    matrices: gate, up and down as they lie on the host; planes: as kernels see them, addresses in
    tables. stage_bytes, slot_bytes: of an expert; stage_offsets, offsets: of gate, up and down in
    it. expert_bytes: in the file. kernels: that it launches.
    """

    def __init__(self, gpu: Gpu, mlp: GatedMLP) -> None:
        self._gpu = gpu
        self.matrices = (mlp.gate, mlp.up, mlp.down)
        self.planes = tuple(planes_of(m) for m in self.matrices)
        self.expert_bytes = sum(m.n_bytes for m in self.matrices)
        self.stage_offsets, self.stage_bytes = _offsets([m.n_bytes for m in self.matrices])
        self.offsets, self.slot_bytes = _offsets([p.stride for p in self.planes])
        self.kernels: list[Kernel] = list(
            dict.fromkeys(of_type(p.kind)["repack"] for p in self.planes)
        )

    def sources(self, expert: int) -> tuple[Array, ...]:
        """Its gate, up and down where they lie, (n,) uint8 each."""
        return tuple(bytes_of(m, expert, 0, m.n_bytes) for m in self.matrices)

    def sources_at(self, addresses: Sequence[int]) -> tuple[Array, ...]:
        """The same at other addresses; they stay as they are until they have arrived."""
        arrays = tuple(
            np.frombuffer(memoryview((ctypes.c_uint8 * m.n_bytes).from_address(at)), np.uint8)
            for m, at in zip(self.matrices, addresses, strict=True)
        )
        for data in arrays:
            data.flags.writeable = False
        return arrays

    def repack(self, stage: int, slot: int, n: int = 1) -> list[Launch]:
        """Planes of n experts that lie one after the other in stage and slots."""
        apart = self.stage_bytes, self.slot_bytes
        return [
            repack(m, p, stage + source, slot + to, n=n, apart=apart)
            for m, p, source, to in zip(
                self.matrices, self.planes, self.stage_offsets, self.offsets, strict=True
            )
        ]

    def bring(
        self, expert: int, stage: int, slot: int, sources: Sequence[Array] | None = None,
        behind: Mark = AT_ONCE,
    ) -> Sent:  # fmt: skip
        """Begin to bring an expert to a slot; any thread may, one at a time.

        sources: what is read instead of the matrices. behind: what is over in the queue before.
        DeviceError: parts of it may still be on their way.
        """
        arrays = self.sources(expert) if sources is None else sources
        for data, at in zip(arrays, self.stage_offsets, strict=True):
            self._gpu.send(stage + at, data, behind)
        for launch in self.repack(stage, slot):
            once = self._gpu.prepare([launch], beside=True)
            once.run()
            once.close()
        return self._gpu.sending()


def _offsets(sizes: list[int]) -> tuple[tuple[int, int, int], int]:
    a, b, c = (aligned(n) for n in sizes)
    return (0, a, a + b), a + b + c
