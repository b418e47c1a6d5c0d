"""Ring: VRAM through which experts pass, a wave at a time, as bytes of the file and then as planes.

    beside the queue    | wave 1 -> half 0 | wave 2 -> half 1 | wave 3 -> half 0 | ...
    queue                                  | repack, compute 1| repack, compute 2| ...

A half is free for the next copy but one as soon as its bytes are planes; the planes of a wave lie
where those of the last one did, which is over by then: the queue goes in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from offload.devices.base import GatedMLP
from offload.devices.cuda_vram import Space
from offload.devices.cuda_weights import CudaMatrix, Loader, bytes_of
from offload.gpu.base import Gpu, Launch, Mark, Sent
from offload.plane_sizes import aligned
from offload.weights import Matrix
from quant.cuda.kernels import of_type, plane_type
from quant.ggml import BLOCK

Array = np.ndarray
Send = Callable[[int, Array, Mark], Sent]


def planes_of(m: Matrix) -> CudaMatrix:
    """What kernels need to know of matrices whose addresses are in a table."""
    kind = m.quant.ggml_type
    facts = plane_type(kind)
    return CudaMatrix(
        kind=kind, is_float=m.quant.is_float, address=0, stride=0, count=m.count, n_rows=m.n_rows,
        n_cols=m.n_cols, used_cols=m.used_cols, chunks=facts.chunks(m.n_cols), steps=facts.steps,
        lanes=facts.lanes, n_bytes=m.n_bytes,
    )  # fmt: skip


class RingLayer:
    """A layer's routed experts as a ring holds them: gate | up | down, each at a multiple of 256.

    stage_bytes: of an expert as it lies in the file; slot_bytes: in planes.
    """

    def __init__(self, mlp: GatedMLP) -> None:
        self.matrices = (mlp.gate, mlp.up, mlp.down)
        self.planes = tuple(planes_of(m) for m in self.matrices)
        self.stage_offsets, self.stage_bytes = _offsets([m.n_bytes for m in self.matrices])
        self.offsets, self.slot_bytes = _offsets(
            [plane_type(p.kind).n_bytes(p.n_rows, p.n_cols) for p in self.planes]
        )

    @property
    def layout(self) -> tuple[int, tuple[int, int, int]]:
        """Of planes: bytes from expert to expert, offsets in one."""
        return self.slot_bytes, self.offsets

    def repack(self, stage: int, slot: int, n: int) -> list[Launch]:
        """Planes of n experts, one after the other."""
        launches = []
        for m, p, source, to in zip(
            self.matrices, self.planes, self.stage_offsets, self.offsets, strict=True
        ):
            kernel = of_type(p.kind)["repack"]
            grid = -(-m.n_rows * p.chunks * p.lanes // kernel.threads), n, 1
            arguments = (
                stage + source, m.row_bytes, 0, m.n_rows, m.n_cols, *BLOCK[p.kind], slot + to,
                m.n_rows, p.chunks, self.stage_bytes, self.slot_bytes,
            )  # fmt: skip
            launches.append(Launch(kernel, grid, arguments))
        return launches


def _offsets(sizes: list[int]) -> tuple[tuple[int, int, int], int]:
    a, b, c = (aligned(n) for n in sizes)
    return (0, a, a + b), a + b + c


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """Experts on their way: expert `experts[i]` is the i-th of its half. sent: the last copy."""

    layer: RingLayer
    experts: Array
    half: int
    sent: Sent


class Ring:
    """Two halves of `size` experts each, and room for the planes of so many."""

    def __init__(self, gpu: Gpu, space: Space, size: int, layers: list[RingLayer]) -> None:
        self.size = size
        self._gpu = gpu
        stage = size * max(layer.stage_bytes for layer in layers)
        self._halves = [space.alloc(stage) for _ in range(2)]
        self._slots = space.alloc(size * max(layer.slot_bytes for layer in layers))
        self._free = [gpu.mark()] * 2
        self._turn = 0

    def tables(self, loader: Loader, layer: RingLayer) -> tuple[int, int, int]:
        """Addresses of gate, up and down of the i-th expert of a wave, in VRAM: (size,) int64."""
        first = self._slots + layer.slot_bytes * np.arange(self.size, dtype=np.int64)
        gate, up, down = (loader.table(first + at) for at in layer.offsets)
        return gate, up, down

    def slot(self, layer: RingLayer, i: int) -> int:
        """Address of the planes of the i-th expert of the wave that was taken last."""
        return self._slots + i * layer.slot_bytes

    def send(self, layer: RingLayer, experts: Array, send: Send) -> Wave:
        """Begin to copy at most `size` experts."""
        half, self._turn = self._turn, 1 - self._turn
        sent = Sent(0)
        for i, expert in enumerate(experts.tolist()):
            to = self._halves[half] + i * layer.stage_bytes
            for m, at in zip(layer.matrices, layer.stage_offsets, strict=True):
                sent = send(to + at, bytes_of(m, expert, 0, m.n_bytes), self._free[half])
        return Wave(layer, experts, half, sent)

    def take(self, wave: Wave) -> None:
        """Make planes of it, once it is there; its half is free then."""
        self._gpu.after(wave.sent)
        launch(
            self._gpu, wave.layer.repack(self._halves[wave.half], self._slots, len(wave.experts))
        )
        self._free[wave.half] = self._gpu.mark()


def launch(gpu: Gpu, launches: list[Launch]) -> None:
    """Once, one after the other: a graph is for what runs more often."""
    for one in launches:
        once = gpu.prepare([one])
        once.run()
        once.close()
