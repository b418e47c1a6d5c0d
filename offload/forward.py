"""The forward pass: a model's blocks on their devices, one batch at a time.

Neighbouring blocks of one device run as a segment; where the device changes, the activations cross
in an explicit step, and its bytes are counted by both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from offload.batch import Batch
from offload.config import ModelConfig
from offload.devices.base import Array, Block, Check, Device, Segment
from offload.devices.crossing import cross
from offload.expert_stats import ExpertStats
from offload.kv import KV
from offload.weights import WeightStore


class Model:
    """A model that is ready to run. One caller at a time.

    on_routing: called with (layer, expert_ids (T, K)) of every router after a pass.
    """

    def __init__(self, config: ModelConfig, blocks: Iterable[Block], weights: WeightStore) -> None:
        self.config = config
        self.blocks = list(blocks)
        self.on_routing: Callable[[int, Array], None] | None = None
        self._weights = weights
        self.devices: Sequence[Device] = list(dict.fromkeys(b.device for b in self.blocks))
        self.tiers = [device.tier for device in self.devices if device.tier is not None]
        self.kv = KV([device.kv for device in self.devices])
        self._whole = segments(self.blocks)
        self._without_head = segments(self.blocks[:-1])
        self._routers = [block for block in self.blocks if block.kind == "router"]

    def forward(self, batch: Batch, check: Check = lambda: None) -> Array:
        """Logits (wanted rows, V) float32, a new array; rows are appended to the spans' KV slots.

        `check` is called every few layers and before the head, and may raise; the slots are then as
        they were, for rows beyond a sequence's end count for nothing.
        """
        if max(span.end for span in batch.spans) > self.kv.context:
            ends = [span.end for span in batch.spans]
            raise ValueError(f"a KV slot has {self.kv.context} rows; the spans end at {ends}")
        parts = batch.parts()
        if len(parts) == 1:
            return self._pass(batch, check)
        return np.concatenate([self._pass(part, check) for part in parts])

    def _pass(self, batch: Batch, check: Check) -> Array:
        if self.tiers:
            for span in batch.spans:
                self.kv.grow(span.slot, span.end)
            for tier in self.tiers:
                tier.make_room(self.kv.ram_used, batch.n_tokens)
        for device in self.devices:
            device.begin(batch)
        began, read = time.perf_counter(), self.bytes_read
        last: Device | None = None
        for device, segment in self._whole if len(batch.wanted) else self._without_head:
            if last is not None:
                cross(last, segment.blocks[0])
            last = device
            segment.run(check)
        for tier in self.tiers:
            tier.after(
                self._routings, time.perf_counter() - began, self.bytes_read - read, batch.n_tokens
            )
        if self.on_routing is not None:
            for layer, expert_ids in self._routings().items():
                self.on_routing(layer, expert_ids)
        if not len(batch.wanted):
            return np.empty((0, self.config.vocab_size), np.float32)
        return self.blocks[-1].device.logits()

    def _routings(self) -> dict[int, Array]:
        """expert_ids (T, K) of the last pass, by layer."""
        return {router.layer: router.device.routing(router.layer) for router in self._routers}

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that went through kernels so far."""
        return sum(device.traffic.read for device in self.devices)

    @property
    def expert_stats(self) -> ExpertStats:
        """What the routed experts did so far; of the first device that has some."""
        found = [device.expert_stats for device in self.devices]
        return next((stats for stats in found if stats.layers), found[0])

    def block_seconds(self) -> list[float]:
        """Of blocks so far, in the order of KINDS, on all devices that tell."""
        first, *others = (device.traffic.times.seconds() for device in self.devices)
        for other in others:
            first = [a + b for a, b in zip(first, other, strict=True)]
        return first

    def check_logits(self, logits: Array) -> None:
        """GGUFError, with the damaged tensor, if they are not finite, or if the files changed."""
        self._weights.check_logits(logits)

    def check_files(self) -> None:
        """Raise GGUFError if weights have changed under their map since they were loaded."""
        self._weights.check_files()

    def compile_steps(self) -> list[Callable[[], object]]:
        """What is left to compile, one call each."""
        return [step for device in self.devices for step in device.compile_steps()]

    def close(self) -> None:
        """Give threads and memory back."""
        for device in self.devices:
            device.close()


def segments(blocks: Sequence[Block]) -> list[tuple[Device, Segment]]:
    """Neighbours of one device together."""
    groups = [(device, list(group)) for device, group in groupby(blocks, lambda b: b.device)]
    return [(device, device.segment(group)) for device, group in groups]
