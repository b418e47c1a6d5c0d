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

from offload.devices.cuda_expert_copy import AT_ONCE, ExpertCopy
from offload.devices.cuda_vram import Space
from offload.devices.cuda_weights import Loader
from offload.devices.cuda_writer import launch
from offload.gpu.base import Gpu, Mark, Sent

Array = np.ndarray
Send = Callable[[int, Array, Mark], Sent]


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """Experts on their way: expert `experts[i]` is the i-th of its half. sent: the last copy."""

    layer: ExpertCopy
    experts: Array
    half: int
    sent: Sent


class Ring:
    """Two halves of `size` experts each, and room for the planes of so many."""

    def __init__(self, gpu: Gpu, space: Space, size: int, layers: list[ExpertCopy]) -> None:
        self.size = size
        self._gpu = gpu
        stage = size * max(layer.stage_bytes for layer in layers)
        self._halves = [space.alloc(stage) for _ in range(2)]
        self._slots = space.alloc(size * max(layer.slot_bytes for layer in layers))
        self._free = [gpu.mark()] * 2
        self._turn = 0

    def tables(self, loader: Loader, layer: ExpertCopy) -> tuple[int, int, int]:
        """Addresses of gate, up and down of the i-th expert of a wave, in VRAM: (size,) int64."""
        first = self._slots + layer.slot_bytes * np.arange(self.size, dtype=np.int64)
        gate, up, down = (loader.table(first + at) for at in layer.offsets)
        return gate, up, down

    def slot(self, layer: ExpertCopy, i: int) -> int:
        """Address of the planes of the i-th expert of the wave that was taken last."""
        return self._slots + i * layer.slot_bytes

    def send(self, layer: ExpertCopy, experts: Array, send: Send) -> Wave:
        """Begin to copy at most `size` experts."""
        half, self._turn = self._turn, 1 - self._turn
        sent, behind = Sent(0), self._free[half]
        for i, expert in enumerate(experts.tolist()):
            to = self._halves[half] + i * layer.stage_bytes
            for data, at in zip(layer.sources(expert), layer.stage_offsets, strict=True):
                sent = send(to + at, data, behind)
                behind = AT_ONCE  # copies go in order
        return Wave(layer, experts, half, sent)

    def take(self, wave: Wave) -> None:
        """Make planes of it, once it is there; its half is free then."""
        self._gpu.after(wave.sent)
        launch(
            self._gpu, wave.layer.repack(self._halves[wave.half], self._slots, len(wave.experts))
        )
        self._free[wave.half] = self._gpu.mark()
