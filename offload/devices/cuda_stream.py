"""Routed experts of a prompt that lie in the host's memory: through a ring in VRAM, a layer a call.

Each expert in use crosses the bus once for all rows of the batch; those that have a slot in VRAM
are computed where they are, while the first others come. Outputs of all choices are kept, for the
sum takes them in the router's order; what lies between gate and down is of some experts at a time,
as many as have a choice for each row together: one expert has no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from offload.devices.base import Check
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_ring import Ring, Wave
from offload.devices.cuda_rooms import Room, Vector
from offload.devices.cuda_stage import PoolStage
from offload.devices.cuda_stream_run import LayerRun, Tables, chosen_kernel
from offload.devices.cuda_vram import Space
from offload.devices.cuda_writer import launch
from offload.gpu.base import Mark, Sent
from offload.layer_scheduler import schedule
from quant.cuda.norms import SWIGLU

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_writer import Writer
    from quant.cuda.kernels import Kernel

Array = np.ndarray
Keep = Callable[[int, int], None]  # (expert, address of its planes, for what is queued now)

MANY: Final = 4  # choices for each expert: then nearly all are in use


class Slots(Protocol):
    """A layer's copies in VRAM. resident (E,): not 0 where there is one, during a pass."""

    @property
    def tables(self) -> Tables:
        """Addresses, in VRAM, of (E,) int64 for gate, up and down."""

    @property
    def resident(self) -> Array:
        """(E,) int64."""


class ExpertStream:
    """Routed experts of `layers`, as they are in the file. ring_experts: see VramSpec.

    stage: what layers that are not `pinned` pass through; None: the GPU's own. copied: bytes so
    far.
    """

    def __init__(
        self, device: CudaDevice, space: Space, ring_experts: int, layers: Mapping[int, ExpertCopy],
        *, stage: PoolStage | None = None, pinned: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._device, self._stage, self._pinned = device, stage, pinned
        self._layers = layers
        self._ring = Ring(device.gpu, space, ring_experts // 2, list(layers.values()))
        self._tables: dict[tuple[int, Tables], Tables] = {}
        for number, layer in layers.items():
            layout = layer.slot_bytes, layer.offsets
            if layout not in self._tables:
                self._tables[layout] = self._ring.tables(device.loader, layer)
            device.readers(number).extend((1, m) for m in layer.planes[:2])
        self._ahead: tuple[int, Wave] | None = None
        self.copied = 0

    @property
    def kernels(self) -> list[Kernel]:
        """All that it launches."""
        found: dict[Kernel, None] = {SWIGLU: None}
        for layer in self._layers.values():
            found |= dict.fromkeys((*layer.kernels, *map(chosen_kernel, layer.planes)))
        return list(found)

    def link_rate(self) -> float:
        """Bytes/s from the host, of the first layer's first experts, once they are in RAM."""
        layer, copy = next(iter(self._layers.items()))
        experts = np.arange(min(self._ring.size, copy.planes[0].count))
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            self._ring.take(self._send(layer, experts, lambda: None))
            self._device.gpu.rest()
            seconds.append(time.perf_counter() - began)
        return len(experts) * copy.expert_bytes / min(seconds)

    def expect(self, layer: int, slots: Slots | None, choices: int, check: Check) -> None:
        """Begin to copy a layer's experts before its routing is known, if nearly all will run.

        choices: that there will be. To be called when all that comes before is in the queue.
        """
        count = self._layers[layer].planes[0].count
        absent = np.arange(count) if slots is None else np.flatnonzero(slots.resident == 0)
        if choices >= MANY * count and len(absent):
            self._ahead = layer, self._send(layer, absent[: self._ring.size], check)

    def write(
        self, w: Writer, h: Vector, layer: int, slots: Slots | None, ids: Array, check: Check,
        keep: Keep | None = None,
    ) -> tuple[Room, int]:  # fmt: skip
        """(outputs of all choices, address of the choices' places among them): for COMBINE.

        ids (T, K): the routing. What `w` has so far goes into the queue first, then all of this;
        `keep` hears of each expert that came through the ring.
        """
        ring, of_layer = self._ring, self._layers[layer]
        launch(self._device.gpu, w.launches)
        w.launches.clear()
        count = of_layer.planes[0].count
        resident = np.zeros(count, np.int64) if slots is None else slots.resident
        work = schedule(ids, resident)
        here = int(np.count_nonzero(resident[work.experts]))
        absent = work.experts[here:]
        wave, places = self._expected(layer, absent)
        rest = np.arange(len(absent) - len(places)) % ring.size
        items = np.concatenate((work.experts[:here], places, rest))
        begin = here + len(places)
        ends = [begin] if len(places) else []
        ends += [
            min(end, work.used)
            for end in range(begin + ring.size, work.used + ring.size, ring.size)
        ]
        run = LayerRun(w, h, of_layer, work, items, [here, *ends])
        if slots is not None:
            run.launch(0, slots.tables)
        tables = self._tables[of_layer.slot_bytes, of_layer.offsets]
        first = here
        for part, end in enumerate(ends, 1):
            check()
            if wave is None:
                wave = self._send(layer, work.experts[first:end], check)
            ring.take(wave)
            if keep is not None:
                for i, expert in enumerate(wave.experts.tolist()):
                    keep(expert, ring.slot(of_layer, i))
            run.launch(part, tables)
            wave = None
            if part < len(ends):
                wave = self._send(layer, work.experts[end : ends[part]], check)
            first = end
        return run.parts, run.slots

    def _expected(self, layer: int, absent: Array) -> tuple[Wave | None, Array]:
        """(the wave that is on its way, which of it the first of `absent` are)."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != layer:
            return None, np.empty(0, np.int64)
        experts = ahead[1].experts
        missing = np.flatnonzero(~np.isin(absent, experts))
        n = int(missing[0]) if len(missing) else len(absent)
        return (ahead[1] if n else None), np.searchsorted(experts, absent[:n])

    def _send(self, layer: int, experts: Array, check: Check) -> Wave:
        of_layer = self._layers[layer]
        self.copied += len(experts) * of_layer.expert_bytes
        send: Callable[[int, Array, Mark], Sent] = self._device.gpu.send
        if self._stage is not None and layer not in self._pinned:
            send = partial(self._stage.send, check=check)
        return self._ring.send(of_layer, experts, send)
