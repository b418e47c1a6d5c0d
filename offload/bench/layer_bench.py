"""The layers under test: the engine's own blocks and passes, stopped and timed between parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np

from offload.batch import Batch, Span
from offload.bench.draws import Draws
from offload.config import ModelConfig
from offload.devices.base import Block, Check
from offload.devices.cpu import CpuDevice
from offload.devices.cpu_blocks import CpuBlock
from offload.devices.cpu_tape import CpuSegment
from offload.forward import Model
from offload.kv import KV
from offload.kv_cache import cache_shape
from offload.models import deepseek2
from offload.plan import KVSpec, KVType

Array = np.ndarray
PARTS = ("attention", "router", "routed", "shared")
clock = time.perf_counter


class Enough(Exception):  # noqa: N818
    """Ends a forward pass after the layers that were to be timed."""


class BenchDevice(CpuDevice):
    """A CPU whose routers compute as always, but may be told which experts to choose.

    draws: who tells them; None: the router's own choice.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        threads: int,
        cpus: Sequence[frozenset[int]] | None = None,
        draws: Draws | None = None,
    ) -> None:
        kv = KVSpec(context=context, tokens=context, kv_type="f16")
        super().__init__(config, kv, threads, cpus)
        self._draws = draws
        self._forced: Array | None = None

    def choose(self, batch: Batch) -> None:
        """Draw the experts of a batch that is to run next: a prompt, or a token of each span."""
        if self._draws is not None:
            draw = self._draws.decode if len(batch.spans) == batch.n_tokens else self._draws.prompt
            self._forced = draw(self.config.num_layers, batch.n_tokens)

    def begin(self, batch: Batch) -> None:
        """See Device."""
        if self._forced is None or self._forced.shape[1] != batch.n_tokens:
            self.choose(batch)
        super().begin(batch)

    def forced_ids(self, rows: int) -> Array | None:
        """What was drawn."""
        del rows
        return self._forced


class PartSegment(CpuSegment):
    """Blocks whose tape has a slice for each, so that `check` is called before every one."""

    def run(self, check: Check) -> None:
        """See Segment."""
        device = self._device
        if device.many is not None:
            for block in self.blocks:
                check()
                block.many(device.many)
            return
        usual, device.slice_bytes = device.slice_bytes, 0
        super().run(check)
        device.slice_bytes = usual


class LayerModel:
    """MoE layers that can also be run part by part. All layers of `config` have experts.

    model: the engine's own, with its blocks and segments.
    """

    def __init__(self, config: ModelConfig, weights: Any, device: BenchDevice) -> None:
        self.config = config
        self.device = device
        self._weights = weights
        self.model = Model(
            config, deepseek2.blocks(config, weights, lambda _block, _layer: device), weights
        )

    def whole(self, batch: Batch) -> tuple[float, float]:
        """Run a batch through everything: (seconds per layer, seconds of the head)."""
        stamps: list[float] = []
        self.device.choose(batch)
        began = clock()
        self.model.forward(batch, check=lambda: stamps.append(clock()))
        ended = clock()
        head = stamps[-1]
        return (head - began) / self.config.num_layers, ended - head

    def first_layer(self, batch: Batch) -> float:
        """Seconds of layer 0 for a prompt of more rows than a tape takes."""
        stamps: list[float] = []

        def check() -> None:
            stamps.append(clock())
            if len(stamps) == 2:
                raise Enough

        self.device.choose(batch)
        with contextlib.suppress(Enough):
            self.model.forward(batch, check=check)
        return stamps[1] - stamps[0]

    def parts(self, batch: Batch) -> dict[str, list[float]]:
        """Run a batch part by part: seconds by part, one figure per layer."""
        stamps: list[float] = []
        self.device.choose(batch)
        self.device.begin(batch)
        self._by_parts.run(lambda: stamps.append(clock()))
        stamps.append(clock())
        spans = [ended - began for began, ended in pairwise(stamps[1:])]  # without the embedding
        return {part: spans[i :: len(PARTS)] for i, part in enumerate(PARTS)}

    def experts(self, layer: int) -> list[int]:
        """The different experts that the last batch used in a layer."""
        found: list[int] = np.unique(self.device.routing(layer)).tolist()
        return found

    @cached_property
    def _by_parts(self) -> PartSegment:
        return PartSegment(self.device, cast("list[CpuBlock]", list(self._parts())))

    def _parts(self) -> Iterator[Block]:
        """The embedding, then PARTS of each layer, routed and shared experts apart."""
        config, weights, device = self.config, self._weights, self.device
        yield self.model.blocks[0]
        for i in range(config.num_layers):
            p = f"blk.{i}."
            norm = weights.vector(f"{p}ffn_norm.weight")
            routed, shared = (deepseek2.gated_mlp(weights, p, x) for x in ("_exps", "_shexp"))
            yield device.attention(i, deepseek2.attention(config, weights, p))
            yield device.router(i, deepseek2.router(config, weights, p, norm))
            yield device.experts(i, routed, None)
            yield device.experts(i, None, shared)


def together(ids: Array, depth: int) -> Batch:
    """The next token of len(ids) sequences, in slots 1 .., after `depth` others each.

    All logits are wanted.
    """
    spans = tuple(Span(slot=1 + i, first=depth, count=1) for i in range(len(ids)))
    return Batch(spans=spans, ids=np.asarray(ids, np.int64), wanted=np.arange(len(ids)))


def fill_slot(kv: KV, config: ModelConfig, slot: int, depth: int) -> None:
    """Write `depth` random rows to every layer of a slot."""
    shape = cache_shape(config, cast("KVType", kv.kind))
    rng = np.random.default_rng(2 + slot)
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    for rows in kv.write(slot, depth):
        values = rng.standard_normal((depth, rank + rope), np.float32) * np.float32(0.5)
        shape.store(rows, values[:, :rank], values[:, rank:])
