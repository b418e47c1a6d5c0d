"""The null device: runs blocks without computing, or through another device; may be made to fail.

Alone it is a dry run (`Zeros`). Over an inner device every result is that one's, one block at a
time. Either way a `Mishap` delays or breaks what a test wants delayed or broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offload.batch import Batch
from offload.config import ModelConfig
from offload.devices.base import (
    Activations,
    Array,
    Block,
    Check,
    GatedMLP,
    Kind,
    LatentAttention,
    Router,
    Segment,
    WholeDevice,
)
from offload.devices.zeros import Zeros
from offload.expert_stats import ExpertStats
from offload.plan import KVSpec
from offload.weights import Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishap:
    """Before a block runs: wait, then raise `error` if there is one.

    layer None: of any layer; call None: every time, else only the block's so many-th run, from 1.
    """

    kind: Kind
    layer: int | None = None
    call: int | None = None
    seconds: float = 0.0
    error: Exception | None = None


class NullBlock:
    """A block of the inner device. runs: how often it began."""

    def __init__(self, device: NullDevice, inner: Block) -> None:
        self.device = device
        self.inner = inner
        self.kind = inner.kind
        self.layer = inner.layer
        self.runs = 0

    def begin(self) -> None:
        """Let happen what shall happen."""
        self.runs += 1
        for m in self.device.mishaps:
            here = m.kind == self.kind and m.layer in (None, self.layer)
            if here and m.call in (None, self.runs):
                time.sleep(m.seconds)
                if m.error is not None:
                    raise m.error


class NullSegment:
    """See Segment; inner: one segment for each block, so that each may fail alone."""

    def __init__(self, blocks: Sequence[NullBlock], inner: Sequence[Segment]) -> None:
        self.blocks = blocks
        self._inner = inner

    def run(self, check: Check) -> None:
        """See Segment."""
        for block, inner in zip(self.blocks, self._inner, strict=True):
            block.begin()
            inner.run(check)


class NullDevice:
    """See Device. `mishaps` may be changed between passes."""

    name = "null"

    def __init__(
        self,
        config: ModelConfig,
        kv: KVSpec,
        threads: int = 1,
        cpus: Sequence[frozenset[int]] | None = None,
        *,
        inner: WholeDevice | None = None,
        mishaps: Sequence[Mishap] = (),
    ) -> None:
        del threads, cpus
        self.mishaps = mishaps
        self.inner = Zeros(config, kv) if inner is None else inner
        self.kv = self.inner.kv
        self.traffic = self.inner.traffic
        self.tier = self.inner.tier

    def embedding(self, table: Matrix) -> Block:
        """See Device, like all that follows."""
        return NullBlock(self, self.inner.embedding(table))

    def attention(self, layer: int, weights: LatentAttention) -> Block:
        """Attention."""
        return NullBlock(self, self.inner.attention(layer, weights))

    def mlp(self, layer: int, norm: Array, mlp: GatedMLP) -> Block:
        """A dense MLP."""
        return NullBlock(self, self.inner.mlp(layer, norm, mlp))

    def router(self, layer: int, router: Router) -> Block:
        """A router."""
        return NullBlock(self, self.inner.router(layer, router))

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Experts."""
        return NullBlock(self, self.inner.experts(layer, routed, shared))

    def head(self, norm: Array, head: Matrix) -> Block:
        """The head."""
        return NullBlock(self, self.inner.head(norm, head))

    def segment(self, blocks: Sequence[Block]) -> Segment:
        """One block after the other."""
        mine = [block for block in blocks if isinstance(block, NullBlock)]
        return NullSegment(mine, [self.inner.segment([block.inner]) for block in mine])

    def compile_steps(self) -> list[Callable[[], object]]:
        """The inner device's."""
        return self.inner.compile_steps()

    def begin(self, batch: Batch) -> None:
        """A pass begins."""
        self.inner.begin(batch)

    def leave(self, block: Block) -> Activations:
        """What the inner device leaves."""
        return self.inner.leave(block)

    def enter(self, activations: Activations, block: Block) -> None:
        """The inner device takes it."""
        self.inner.enter(activations, block)

    def logits(self) -> Array:
        """The inner device's."""
        return self.inner.logits()

    def routing(self, layer: int) -> Array:
        """The inner device's."""
        return self.inner.routing(layer)

    @property
    def expert_stats(self) -> ExpertStats:
        """The inner device's."""
        return self.inner.expert_stats

    def close(self) -> None:
        """Close the inner device."""
        self.inner.close()
