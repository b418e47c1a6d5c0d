"""The layers under test: the engine's own model and operations, stopped and timed between parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np

from offload.config import ModelConfig
from offload.devices.base import FeedForward, Routing, Stack
from offload.devices.cpu_mlp import CpuFeedForward
from offload.devices.cpu_ops import CpuOps
from offload.devices.cpu_steps import TapeBuilder
from offload.devices.cpu_tape import CpuDecoder
from offload.kv_cache import KVCache
from offload.models import rope
from offload.models.deepseek2 import DeepSeek2, gated_mlp
from offload.plan import KVType

Array = np.ndarray
PARTS = ("attention", "router", "routed", "shared")
clock = time.perf_counter


class Enough(Exception):  # noqa: N818
    """Ends a forward pass after the layers that were to be timed."""


class BenchOps(CpuOps):
    """CPU operations whose router computes as always, but may be told which experts to choose.

    experts: how many are stored; then every token takes others than the tokens before it, until
    all have been used (None: the router's own choice). chosen: distinct experts of single tokens so
    far; spread: distinct experts of the last prompt.
    """

    def __init__(
        self,
        threads: int,
        experts: int | None = None,
        cpus: Sequence[frozenset[int]] | None = None,
    ) -> None:
        super().__init__(threads, cpus)
        self._rng = np.random.default_rng(1)
        self._experts = experts
        self._order = np.zeros(0, np.int64)
        self.chosen: set[int] = set()
        self.spread = 0

    def route(self, logits: Array, bias: Array, top_k: int, **options: Any) -> Routing:
        """Choose experts."""
        routing = super().route(logits, bias, top_k, **options)
        if self._experts is not None:
            ids = self._next(len(logits), top_k)
            routing = Routing(expert_ids=ids, weights=routing.weights)
        if len(logits) == 1:
            self.chosen.update(routing.expert_ids[0].tolist())
        else:
            self.spread = len(np.unique(routing.expert_ids))
        return routing

    def decoder(self, stack: Stack) -> CpuDecoder:
        """The layers as a tape, with the same choice of experts."""
        return BenchDecoder(self, stack)

    def choose(self, decoder: CpuDecoder) -> None:
        """Tell a tape which experts the next token takes."""
        if self._experts is not None:
            layers, top_k = decoder.expert_ids.shape
            decoder.forced = np.concatenate([self._next(1, top_k) for _ in range(layers)])

    def _next(self, n_tokens: int, top_k: int) -> Array:
        assert self._experts is not None
        if n_tokens > 1:
            lots = self._rng.random((n_tokens, self._experts))
            return np.ascontiguousarray(np.argpartition(lots, top_k - 1, axis=1)[:, :top_k])
        if len(self._order) < top_k:
            self._order = self._rng.permutation(self._experts)
        ids, self._order = self._order[:top_k], self._order[top_k:]
        return np.ascontiguousarray(ids[None])


class BenchDecoder(CpuDecoder):
    """A tape that runs the experts that BenchOps wants."""

    def __init__(self, ops: BenchOps, stack: Stack) -> None:
        super().__init__(ops, stack)
        self._bench = ops

    def __call__(
        self, token: int, kv: KVCache, cos: Array, sin: Array, check: Callable[[], None]
    ) -> Array:
        """See Decoder."""
        self._bench.choose(self)
        logits = super().__call__(token, kv, cos, sin, check)
        self._bench.chosen.update(self.expert_ids.ravel().tolist())
        return logits


class PartDecoder(BenchDecoder):
    """A tape with a slice for each part of each layer (PARTS), routed and shared experts apart."""

    def __init__(
        self, ops: BenchOps, stack: Stack, routed: list[FeedForward], shared: list[FeedForward]
    ) -> None:
        self._ffns = [
            cast(tuple[CpuFeedForward, CpuFeedForward], p) for p in zip(routed, shared, strict=True)
        ]
        super().__init__(ops, stack)

    def _lay_out(self, builder: TapeBuilder, stack: Stack) -> None:
        for index, layer in enumerate(stack.layers):
            attended = builder.attention(index, layer)
            self._cut(builder)
            routed, shared = self._ffns[index]
            h = builder.ffn_input(layer, attended)
            chosen, always = builder.jobs(routed, h), builder.jobs(shared, h)
            builder.route(index, layer, routed, chosen, h)
            self._cut(builder)
            builder.feed_forward(routed, chosen)
            self._cut(builder)
            builder.feed_forward(shared, always)
            self._cut(builder)


class LayerModel(DeepSeek2):
    """MoE layers that can also be run part by part. All layers of `config` have experts."""

    def __init__(self, config: ModelConfig, weights: Any, ops: BenchOps) -> None:
        super().__init__(config, weights, ops)
        self._bench_ops = ops
        prefixes = [f"blk.{i}." for i in range(config.num_layers)]
        self._routed = [ops.feed_forward(gated_mlp(weights, p, "_exps"), None) for p in prefixes]
        self._shared = [ops.feed_forward(None, gated_mlp(weights, p, "_shexp")) for p in prefixes]

    def whole(self, ids: Array, kv: KVCache) -> tuple[float, float]:
        """Run tokens through everything: (seconds per layer, seconds of the head); kv as before."""
        length = kv.length
        stamps: list[float] = []
        began = clock()
        self.forward(ids, kv, check=lambda: stamps.append(clock()))
        ended = clock()
        kv.truncate(length)
        head = stamps[-1]
        return (head - began) / self.config.num_layers, ended - head

    def first_layer(self, ids: Array, kv: KVCache) -> float:
        """Seconds of layer 0 for tokens at the start of an empty cache."""
        stamps: list[float] = []

        def check() -> None:
            stamps.append(clock())
            if len(stamps) == 2:
                raise Enough

        kv.truncate(0)
        with contextlib.suppress(Enough):
            self.forward(ids, kv, check=check)
        return stamps[1] - stamps[0]

    def parts(self, ids: Array, kv: KVCache) -> dict[str, list[float]]:
        """Run one token part by part: seconds by part, one figure per layer; kv as before."""
        stamps: list[float] = []
        length = kv.length
        cos, sin = rope.tables(self.config, length, 1)
        self._by_parts(int(ids[0]), kv, cos, sin, lambda: stamps.append(clock()))
        kv.truncate(length)
        spans = [ended - began for began, ended in pairwise(stamps)]
        return {part: spans[i :: len(PARTS)] for i, part in enumerate(PARTS)}

    @cached_property
    def _by_parts(self) -> PartDecoder:
        return PartDecoder(self._bench_ops, self.stack, self._routed, self._shared)


def filled_cache(config: ModelConfig, depth: int, room: int, kv_type: KVType = "f16") -> KVCache:
    """A cache that holds `depth` random rows in every layer, and room for more."""
    kv = KVCache(config, depth + room, kv_type)
    rng = np.random.default_rng(2)
    for layer in range(config.num_layers):
        values = rng.standard_normal((depth, kv.width), np.float32) * 0.5
        kv.write(layer, 0, values[:, : kv.latent], values[:, kv.latent :])
    kv.length = depth
    return kv
