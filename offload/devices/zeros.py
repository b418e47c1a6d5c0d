"""Zeros: a device that computes nothing and counts what would have been read; what null.py runs.

Activations and logits are zero. Token t goes to the experts t * K .. t * K + K - 1, modulo E: as
many distinct ones as there can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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
    Routing,
    Runs,
    Traffic,
)
from offload.devices.cpu_kv import CpuKV
from offload.expert_stats import ExpertStats
from offload.expert_tier import ExpertTier
from offload.kv_cache import cache_shape
from offload.plan import KVSpec
from offload.weights import Matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZeroBlock:
    """What a block reads: bytes whatever the batch, per row, and per expert in use."""

    device: Zeros
    kind: Kind
    layer: int = -1
    n_bytes: int = 0
    row_bytes: int = 0
    expert_bytes: int = 0


class ZeroSegment:
    """See Segment."""

    def __init__(self, blocks: Sequence[ZeroBlock]) -> None:
        self.blocks = blocks
        self.runs = Runs([block.kind for block in blocks])

    def run(self, check: Check) -> None:
        """Count."""
        for block in self.blocks:
            check()
            block.device.count(block)
        self.runs.count += 1


class Zeros:
    """See Device."""

    name = "zeros"

    def __init__(self, config: ModelConfig, kv: KVSpec) -> None:
        self.traffic = Traffic()
        self.tier: ExpertTier | None = None
        self.kv = CpuKV(cache_shape(config, kv.kv_type), kv.context)
        self._config = config
        self._batch = Batch.of([0])

    def embedding(self, table: Matrix) -> Block:
        """Reads a row per token."""
        return ZeroBlock(device=self, kind="embedding", row_bytes=table.row_bytes)

    def attention(self, layer: int, weights: LatentAttention) -> Block:
        """Reads every matrix."""
        self.kv.add(layer)
        w = weights
        matrices = (w.query, w.latent, w.q_b, w.k_b, w.v_b, w.output)
        n_bytes = sum(m.count * m.n_bytes for m in matrices if m is not None)
        return ZeroBlock(device=self, kind="attention", layer=layer, n_bytes=n_bytes)

    def mlp(self, layer: int, norm: Array, mlp: GatedMLP) -> Block:
        """Reads every matrix."""
        return ZeroBlock(device=self, kind="mlp", layer=layer, n_bytes=bytes_per_expert(mlp))

    def router(self, layer: int, router: Router) -> Block:
        """Reads its matrix."""
        return ZeroBlock(device=self, kind="router", layer=layer, n_bytes=router.gate.n_bytes)

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Reads the experts in use, and the shared one."""
        sizes = {"n_bytes": bytes_per_expert(shared), "expert_bytes": bytes_per_expert(routed)}
        return ZeroBlock(device=self, kind="experts", layer=layer, **sizes)

    def head(self, norm: Array, head: Matrix) -> Block:
        """Reads its matrix."""
        return ZeroBlock(device=self, kind="head", n_bytes=head.n_bytes)

    def segment(self, blocks: Sequence[Block]) -> ZeroSegment:
        """Blocks in order."""
        segment = ZeroSegment([block for block in blocks if isinstance(block, ZeroBlock)])
        self.traffic.runs.append(segment.runs)
        return segment

    def compile_steps(self) -> list[Callable[[], object]]:
        """Nothing."""
        return []

    def begin(self, batch: Batch) -> None:
        """Note how many rows there are."""
        self._batch = batch

    def count(self, block: ZeroBlock) -> None:
        """A block has run."""
        used = len(np.unique(self.routing(block.layer))) if block.expert_bytes else 0
        rows = block.row_bytes * self._batch.n_tokens
        self.traffic.read += block.n_bytes + rows + block.expert_bytes * used

    def leave(self, block: Block) -> Activations:
        """As many zeros as there would be numbers."""
        x = np.zeros((self._batch.n_tokens, self._config.hidden_size), np.float32)
        if block.kind != "experts":
            return Activations(x=x)
        ids = self.routing(block.layer)
        routing = Routing(expert_ids=ids, weights=np.zeros(ids.shape, np.float32))
        return Activations(x=x, h=x.copy(), routing=routing)

    def enter(self, activations: Activations, block: Block) -> None:
        """Forget them."""

    def logits(self) -> Array:
        """Zeros."""
        return np.zeros((len(self._batch.wanted), self._config.vocab_size), np.float32)

    def routing(self, layer: int) -> Array:
        """The same for every layer."""
        del layer
        top_k = self._config.num_experts_per_tok
        choices = np.arange(self._batch.n_tokens * top_k, dtype=np.int64)
        return choices.reshape(-1, top_k) % self._config.n_routed_experts

    @property
    def expert_stats(self) -> ExpertStats:
        """Nothing is counted."""
        return ExpertStats()

    def close(self) -> None:
        """Nothing to give back."""


def bytes_per_expert(mlp: GatedMLP | None) -> int:
    """Of gate, up and down."""
    return 0 if mlp is None else mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes
