"""A CUDA GPU: its memory, and the blocks that it makes. Kernels: quant/cuda."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from offload.batch import Batch
from offload.config import ModelConfig
from offload.devices import cuda_compile
from offload.devices.base import (
    Activations,
    Block,
    Check,
    GatedMLP,
    LatentAttention,
    Router,
    Runs,
    Segment,
    Traffic,
)
from offload.devices.cuda_attention import Attention
from offload.devices.cuda_blocks import CudaBlock, Embedding, Head, Mlp, RouterBlock
from offload.devices.cuda_experts import Experts
from offload.devices.cuda_kv import CudaKV
from offload.devices.cuda_pass import PassMemory
from offload.devices.cuda_rooms import Vector
from offload.devices.cuda_segment import CudaSegment
from offload.devices.cuda_vram import spaces
from offload.devices.cuda_weights import CudaMatrix, Loader
from offload.devices.cuda_writer import FEW, Writer, launch
from offload.errors import DeviceError
from offload.expert_stats import ExpertStats, LayerTiers
from offload.expert_tier import ExpertTier
from offload.gpu.base import Gpu
from offload.gpu.driver import CudaGpu
from offload.kv_cache import cache_shape
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.rope import Tables
from offload.weights import Matrix

if TYPE_CHECKING:
    from quant.cuda.kernels import Kernel

Array = np.ndarray


class CudaDevice:
    """See Device. hot: what its memory has for slots of experts that somebody else owns."""

    def __init__(
        self, config: ModelConfig, kv: KVSpec, threads: int = 1,
        cpus: Sequence[frozenset[int]] | None = None, *, index: int = 0,
        vram: VramSpec | None = None, hot: ExpertSlots | None = None, gpu: Gpu | None = None,
    ) -> None:  # fmt: skip
        del threads, cpus
        self.name = f"cuda:{index}"
        self.config = config
        self.eps = float(config.rms_norm_eps)
        self.gpu = gpu = gpu or CudaGpu(index, None if vram is None else vram.limit)
        try:
            self.spaces = spaces(gpu, kv, vram, hot, is_asked=hot is not None and hot.is_asked)
            self._few = self._pass_memory(FEW)
        except BaseException:
            gpu.close()
            raise
        self.tier: ExpertTier | None = None
        self.kv = CudaKV(
            gpu, self.spaces.kv, self.spaces.tables, cache_shape(config, kv.kv_type), kv.context
        )
        self.loader = Loader(gpu, self.spaces.weights, self.spaces.workspace)
        self.many_logits = np.empty((0, 0), np.float32)
        self.wanted = np.zeros(0, np.int64)
        self.table: tuple[Matrix, CudaMatrix] | None = None
        self._numbers = np.zeros(0, np.int64)
        self._numbers_at = 0
        self.n_logits = config.vocab_size
        self._tables = Tables(config)
        self._traffic = Traffic()
        self._most = FEW + 1 if vram is None else vram.rows
        self._many: PassMemory | None = None
        self._head: PassMemory | None = None
        self.memory = self._few
        self._readers: dict[int, list[tuple[int, CudaMatrix]]] = {}
        self._uncounted: dict[int, int] = {}  # bytes of an expert by layer, of experts that ran
        self._uses: dict[int, Array] = {}
        self._segments: list[CudaSegment] = []

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
        return RouterBlock(self, layer, router)

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Routed experts, a shared one, or both."""
        if routed is not None:
            self._uses[layer] = np.zeros(routed.gate.count, np.int64)
        return Experts(self, layer, routed, shared)

    def head(self, norm: Array, head: Matrix) -> Block:
        """The last norm and the logits."""
        return Head(self, norm, head)

    def segment(self, blocks: Sequence[Block]) -> Segment:
        """One graph, or one block after the other."""
        self.loader.close()
        segment = CudaSegment(self, cast("Sequence[CudaBlock]", blocks))
        self._segments.append(segment)
        return segment

    def compile_steps(self) -> list[Callable[[], object]]:
        """Kernels of all segments."""
        blocks = [block for segment in self._segments for block in segment.blocks]
        return cuda_compile.steps(self.gpu, self.kernels(blocks))

    def kernels(self, blocks: Sequence[CudaBlock]) -> list[Kernel]:
        """What blocks launch, for any number of rows."""
        memories = self._few, self._memory_of_many(FEW + 1)
        for memory in memories:
            memory.kinds = frozenset({int(self.kv.shape.kind)})
        return cuda_compile.kernels_of(self, blocks, memories)

    def start(self, w: Writer) -> None:
        """Launch what has been written, once."""
        launch(self.gpu, w.launches)
        w.launches = []

    def run(self, w: Writer, check: Check) -> None:
        """The same, and wait for it."""
        self.start(w)
        self.gpu.rest(check)

    # --- a pass -------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Few rows have memory of their own; that of many grows with them."""
        self._count_experts()
        n = batch.n_tokens
        if n <= FEW and not any(span.is_expanded for span in batch.spans):
            self.memory = self._few
        else:
            self.memory = self._memory_of_many(n)
        self.wanted = batch.wanted
        self.memory.begin(batch, self.kv, self._tables)
        if batch.rows is not None:
            self.memory.set_rows("x", np.asarray(batch.rows, np.float32))

    def leave(self, block: Block) -> Activations:
        """Copies of what a block needs elsewhere."""
        hidden = self.config.hidden_size
        x = self.memory.rows_at("x", hidden)
        if block.kind != "experts":
            return Activations(x=x)
        h = self.memory.rows_at("h", self._h_columns(block.layer))[:, :hidden]
        return Activations(x=x, h=np.ascontiguousarray(h), routing=self.memory.routing(block.layer))

    def enter(self, activations: Activations, block: Block) -> None:
        """Take over what another device has left for a block."""
        self.memory.set_rows("x", activations.x)
        h, routing = activations.h, activations.routing
        if h is not None and routing is not None:
            wide = np.zeros((len(h), self._h_columns(block.layer)), np.float32)
            wide[:, : h.shape[1]] = h
            self.memory.set_rows("h", wide)
            self.memory.set_routing(block.layer, routing)

    def logits(self) -> Array:
        """(wanted rows, V)."""
        if self.memory.most > FEW:
            return self.many_logits
        return self.memory.rows_at("logits", self.n_logits)[self.wanted]

    def routing(self, layer: int) -> Array:
        """expert_ids (T, K) int64 of the last batch."""
        return self.memory.expert_ids(layer)

    @property
    def traffic(self) -> Traffic:
        """What it did so far."""
        self._count_experts()
        return self._traffic

    @property
    def expert_stats(self) -> ExpertStats:
        """How often each expert was asked for; all of them lie in VRAM."""
        self._count_experts()
        return ExpertStats(
            layers={
                layer: LayerTiers(
                    uses=uses, resident=np.ones(len(uses), bool), hits=int(uses.sum())
                )
                for layer, uses in self._uses.items()
            },
            home="vram",
        )

    def close(self) -> None:
        """Give the GPU back."""
        self.gpu.close()

    # --- what blocks ask for ------------------------------------------------------------------

    @property
    def runs(self) -> list[Runs]:
        """One for each segment."""
        return self._traffic.runs

    def readers(self, layer: int) -> list[tuple[int, CudaMatrix]]:
        """Who reads the layer's h: (planes, matrix) each."""
        return self._readers.setdefault(layer, [])

    def inputs(self, w: Writer, layer: int) -> Vector:
        """Room for the layer's h, in all forms that are read, and as float32."""
        return w.rooms.vector("h", self._h_columns(layer), {0} | w.forms(*self.readers(layer)))

    def _h_columns(self, layer: int) -> int:
        return max((m.n_cols for _, m in self.readers(layer)), default=self.config.hidden_size)

    def _pass_memory(self, rows: int) -> PassMemory:
        return PassMemory(self.gpu, self.spaces.workspace, self.config, rows)

    def _memory_of_many(self, rows: int) -> PassMemory:
        """For as many rows as a step has, or more if it must be."""
        if self._many is None or self._many.most < rows:
            if self._many is not None:
                self._many.close()
            self._most = max(self._most, rows)
            self._many = self._pass_memory(self._most)
        return self._many

    def head_memory(self, rows: int) -> PassMemory:
        """Memory for the head of many rows, at most so many at a time."""
        if self._head is None:
            self._head = self._pass_memory(rows)
        return self._head

    def head_matrix(self, head: Matrix) -> CudaMatrix:
        """The head's weights; some models' are the embedding's."""
        if self.table is not None and self.table[0].address == head.address:
            return self.table[1]
        return self.loader.matrix(head)

    def numbers(self, n: int) -> int:
        """Address of 0 .. n - 1, int64."""
        if len(self._numbers) < n:
            self._numbers = np.arange(n, dtype=np.int64)
            self._numbers_at = self.loader.table(self._numbers)
        return self._numbers_at

    def has_run(self, blocks: Sequence[CudaBlock]) -> None:
        """Count what they read; experts in use are asked for later, when the GPU is at rest."""
        for block in blocks:
            self._traffic.read += block.n_bytes + block.row_bytes * self.memory.n_rows
            if isinstance(block, Experts) and block.routed is not None:
                self._uncounted[block.layer] = block.routed.n_bytes

    def _count_experts(self) -> None:
        """Experts that the last batch ran."""
        if not self._uncounted:
            return
        waiting, self._uncounted = self._uncounted, {}
        try:
            ids = self.memory.all_expert_ids()
        except DeviceError:  # lost: whoever asks for the figures so far still gets them
            return
        for layer, n_bytes in waiting.items():
            used = np.unique(ids[layer])
            used = used[(used >= 0) & (used < len(self._uses[layer]))]
            self._uses[layer][used] += 1
            self._traffic.read += n_bytes * len(used)
