"""The CPU: threads, activation buffers, KV slots, and the blocks that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np

from offload.batch import EXACT_CONTEXT, Batch
from offload.config import ModelConfig
from offload.devices.base import (
    Activations,
    Block,
    GatedMLP,
    LatentAttention,
    Router,
    Segment,
    Traffic,
)
from offload.devices.cpu_attention import Attention
from offload.devices.cpu_blocks import CpuBlock, Embedding, Experts, Head, Mlp, RouterBlock
from offload.devices.cpu_kv import CpuKV
from offload.devices.cpu_pass import Choices, ManyRows, PassState, many_rows
from offload.devices.cpu_tape import CpuSegment
from offload.devices.cpu_workspace import MAX_ROWS, Room, Vector, Workspace, Zeros, zeros
from offload.expert_stats import ExpertStats, stats_without_slots
from offload.expert_tier import ExpertTier
from offload.kv_cache import cache_shape
from offload.layer_scheduler import Places
from offload.plan import KVSpec
from offload.rope import Tables
from offload.weights import Matrix
from quant.ggml import GGMLType
from quant.packed.packed_type import PackedType
from quant.quant_type import Kind as Kernel
from quant.quant_type import OneToken, QuantType
from quant.run import attention_expanded, driver
from quant.run.pool import Pool
from quant.tile.panels import Panel

Array = np.ndarray
SLICE_BYTES = 32 << 20
RECORDS_OF_MANY: dict[Kernel, int] = {"matmul": 1, "matmul_q16": 2}  # planes


class CpuDevice:
    """See Device. cpus: logical cores of each thread, to pin them.

    tier: slots for routed experts, set before blocks are made; places: where they lie. many: the
    activations of the batch that runs, None while a tape serves its few rows.
    slice_bytes: of weights between two looks for a cancel, at least. memory: of what a few rows'
    steps work in.
    """

    name = "cpu"

    def __init__(
        self,
        config: ModelConfig,
        kv: KVSpec,
        threads: int,
        cpus: Sequence[frozenset[int]] | None = None,
        memory: Zeros = zeros,
    ) -> None:
        self.config = config
        self.eps = float(config.rms_norm_eps)
        self.traffic = Traffic()
        self.pool = Pool(threads, cpus)
        self.tier: ExpertTier | None = None
        self.places: dict[int, Places] = {}
        self.kv = CpuKV(cache_shape(config, kv.kv_type), kv.context)
        self.workspace = Workspace(threads, memory)
        self.x = self.workspace.room("x", 4 * (config.hidden_size + 255))
        self.many: ManyRows | None = None
        self.n_rows = 0
        self.few_logits = np.empty((0, 0), np.float32)
        self.slice_bytes = SLICE_BYTES
        self._rope = Tables(config)
        self.state = PassState(self.kv, self._rope)
        self._choices: Choices | None = None
        self._batch: Batch | None = None
        self._readers: dict[int, list[tuple[int, Matrix]]] = {}
        self._kernels: dict[tuple[GGMLType, int, Kernel], QuantType | PackedType] = {}
        self._panels: set[Panel] = set()

    # --- blocks -------------------------------------------------------------------------------

    def embedding(self, table: Matrix) -> Block:
        """Rows of the table."""
        return Embedding(self, table)

    def attention(self, layer: int, weights: LatentAttention) -> Block:
        """Latent attention."""
        return Attention(self, layer, weights)

    def mlp(self, layer: int, norm: Array, mlp: GatedMLP) -> Block:
        """A dense MLP."""
        return Mlp(self, layer, norm, mlp)

    def router(self, layer: int, router: Router) -> Block:
        """A router."""
        if self.tier is not None:
            self.tier.guesser.learn(layer, router)
        return RouterBlock(self, layer, router)

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Routed experts, a shared one, or both."""
        return Experts(self, layer, routed, shared)

    def head(self, norm: Array, head: Matrix) -> Block:
        """The last norm and the logits."""
        return Head(self, norm, head)

    def segment(self, blocks: Sequence[Block]) -> Segment:
        """One tape, or one block after the other."""
        return CpuSegment(self, cast("Sequence[CpuBlock]", blocks))

    # --- a pass -------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Few rows go to the records of the tapes; many, and expanded ones, to their own arrays."""
        are_many = batch.n_tokens > MAX_ROWS or any(span.is_expanded for span in batch.spans)
        self.begin_as(batch, are_many=are_many)

    def begin_as(self, batch: Batch, *, are_many: bool) -> None:
        """The same, where somebody else knows how many are many."""
        self._batch = batch
        if self.tier is not None:
            self.tier.publish()
        self.n_rows = batch.n_tokens
        self.many = None
        if are_many:
            self.pool.settle()
            self.many = many_rows(batch, self._rope)
            return
        self.state.begin(batch)
        self.state.force(self.forced_ids(self.n_rows))
        if batch.rows is not None:
            self._rows(self.x)[:] = batch.rows

    def leave(self, block: Block) -> Activations:
        """Copies of what a block needs elsewhere."""
        experts = block.kind == "experts"
        if self.many is not None:
            m = self.many
            return Activations(
                x=m.x, h=m.h if experts else None, routing=m.routing if experts else None
            )
        x = self._rows(self.x).copy()
        if not experts or self._choices is None:
            return Activations(x=x)
        routing = self._choices.routing(block.layer, self.n_rows)
        return Activations(
            x=x, h=self._rows(self.inputs(block.layer).plain).copy(), routing=routing
        )

    def enter(self, activations: Activations, block: Block) -> None:
        """Take over what another device has left for a block."""
        h, routing = activations.h, activations.routing
        if self.many is not None:
            self.many.x = np.array(activations.x)
            if h is not None:
                self.many.h, self.many.routing = h, routing
            return
        self._rows(self.x)[:] = activations.x
        if h is not None and routing is not None:
            self._rows(self.inputs(block.layer).plain)[:] = h
            self.choices(routing.expert_ids.shape[1]).set(block.layer, routing)

    def logits(self) -> Array:
        """(wanted rows, V)."""
        assert self._batch is not None
        if self.many is not None:
            return self.many.logits
        wanted = self._batch.wanted
        return self.few_logits if len(wanted) == self.n_rows else self.few_logits[wanted]

    def routing(self, layer: int) -> Array:
        """expert_ids (T, K) int64 of the last batch."""
        if self.many is not None:
            return self.many.routings[layer]
        assert self._choices is not None
        return self._choices.routing(layer, self.n_rows).expert_ids

    def forced_ids(self, rows: int) -> Array | None:
        """Experts (layers, rows, K) to run instead of the router's choice; benches have some."""
        del rows
        return None

    @property
    def expert_stats(self) -> ExpertStats:
        """What its routed experts did."""
        return stats_without_slots(self.places) if self.tier is None else self.tier.stats

    def close(self) -> None:
        """End the threads."""
        if self.tier is not None:
            self.tier.close()
        self.pool.close()

    # --- what blocks ask for ------------------------------------------------------------------

    def need(self, kind: Kernel, *matrices: Matrix) -> None:
        """Note a kernel that these matrices will run."""
        for m in matrices:
            self._kernels[m.quant.ggml_type, m.group_rows, m.quant.kernel_kind(kind)] = m.quant
            if kind in RECORDS_OF_MANY and not m.quant.is_float:
                self._panels.add(m.quant.panel(RECORDS_OF_MANY[kind]))

    def need_few(self, kind: OneToken, *matrices: Matrix) -> None:
        """Note the kernels for 1 to MAX_ROWS rows; kind: that for one."""
        for m in matrices:
            for rows in range(1, MAX_ROWS + 1):
                self.need(m.quant.kernel_for(kind, rows), m)

    def run(self, jobs: Array, chunk: int) -> None:
        """All jobs' kernels over all their rows."""
        driver.run_jobs(self.pool, jobs, chunk)

    def readers(self, layer: int) -> list[tuple[int, Matrix]]:
        """Who reads the layer's h: (planes, matrix) each."""
        return self._readers.setdefault(layer, [])

    def inputs(self, layer: int) -> Vector:
        """Room for the layer's h, in all forms that are read."""
        readers = self.readers(layer)
        planes = {p for p, m in readers if not m.quant.is_float}
        return self.workspace.vector("h", max(m.n_cols for _, m in readers), planes)

    def choices(self, top_k: int) -> Choices:
        """Where a few rows' routing lies."""
        if self._choices is None:
            self._choices = Choices(self.workspace, self.config.num_layers, top_k)
        return self._choices

    def compile_steps(self) -> list[Callable[[], object]]:
        """What compiles the kernels noted so far, one call each; and long prompts' attention."""
        steps: list[Callable[[], object]] = [
            partial(quant.address, kind) for (*_, kind), quant in self._kernels.items()
        ]
        steps += [panel.address for panel in self._panels]
        if self.kv.context > EXACT_CONTEXT:
            steps.append(lambda: attention_expanded.expanded_task.address)
        return steps

    def _rows(self, room: Room) -> Array:
        """The batch's few rows in a room, (T, H); a view."""
        return self.workspace.view(room, self.n_rows, self.config.hidden_size)
