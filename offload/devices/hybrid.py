"""A GPU and the CPU as one device: every layer's blocks where the plan has them, in one pass.

Attention, router and shared expert are the GPU's, routed experts the CPU's but for those that have
a slot in VRAM; or whatever else the plan says. A pass of few rows is one tape (hybrid_writer.py),
without Python between its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from offload.batch import FEW_ROWS, Batch
from offload.config import ModelConfig
from offload.devices import cuda_compile
from offload.devices.base import Activations, Block, KVStore, Runs, Segment, Traffic, WholeDevice
from offload.devices.block_times import BlockTimes
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_blocks import CudaBlock
from offload.devices.cuda_stage import PoolStage
from offload.devices.cuda_stream import ExpertStream
from offload.devices.cuda_writer import FEW
from offload.devices.hybrid_blocks import HybridBlock, OnCpu, OnGpu, Side, Split
from offload.devices.hybrid_experts import SplitExperts
from offload.devices.hybrid_kv import JoinedKV
from offload.devices.hybrid_segment import HybridSegment
from offload.errors import PlanError
from offload.expert_stats import ExpertStats
from offload.expert_tier import ExpertTier
from offload.gpu.driver import WATCHDOG_SECONDS
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.vram_tier import VramTier
from quant.cuda.exchange import EXCHANGE
from quant.run.gpu_tasks import naps

if TYPE_CHECKING:
    from offload.gpu.base import Gpu
    from offload.prompt_route import PromptRoute, Way

Array = np.ndarray
LINE = 64  # bytes of a flag: nobody else writes there


class SeenMemory:
    """Memory of the host that a GPU sees, too, at the same addresses."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def __call__(self, n_bytes: int) -> Array:
        """Zeros, (n,) uint8; PlanError."""
        found = self._gpu.mapped(n_bytes)
        if found.address != found.array.ctypes.data:
            raise PlanError(
                f"{self._gpu.name} sees the host's memory at other addresses than the host does, "
                "so CPU and GPU cannot share the work; --device cpu does without"
            )
        return found.array


class HybridDevice:
    """See Device. Few rows are as many as the GPU takes in prepared launches.

    hot: slots in VRAM for routed experts; stream: what brings all experts there for a prompt, where
    `route` says that it pays; set before blocks are made. It owns all of them. on_gpu, on_cpu,
    on_both: who makes its blocks. way: of the routed experts of the batch that runs, if its rows
    are many. is_at_rest: no tape's work is left on the GPU.
    """

    def __init__(self, gpu: CudaDevice, cpu: CpuDevice) -> None:
        self.name = f"{gpu.name} and {cpu.name}"
        self.gpu, self.cpu = gpu, cpu
        self.hot: VramTier | None = None
        self.stream: ExpertStream | None = None
        self.route: PromptRoute | None = None
        self.way: Way = "cpu"
        self.config = cpu.config
        self.on_gpu, self.on_cpu = Side(self, gpu, OnGpu), Side(self, cpu, OnCpu)
        self.on_both = Split(self, gpu, OnGpu)
        self.kv: KVStore = JoinedKV(gpu.kv, cpu.kv)
        self.naps = naps(WATCHDOG_SECONDS)
        self.are_few = self.is_at_rest = True
        self.runs: list[Runs] = []
        self._blocks: dict[HybridBlock, None] = {}
        self._split: dict[int, SplitExperts] = {}  # by layer
        self._routers: dict[int, HybridBlock] = {}  # likewise
        self._last: WholeDevice = gpu
        self._n_rows = 0
        self._tables: dict[bytes, int] = {}
        lines = 2 * self.config.num_layers + 4  # crossings of a pass, at most
        self._signals = SeenMemory(gpu.gpu)(LINE * (lines + 1)).view(np.int64)
        self.number_at = int(self._signals.ctypes.data)

    def segment(self, blocks: Sequence[Block]) -> Segment:
        """One tape, or one block after the other."""
        mine = cast("Sequence[HybridBlock]", blocks)
        self._blocks |= dict.fromkeys(mine)
        self._split = {b.layer: b for b in self._blocks if isinstance(b, SplitExperts)}
        self._routers = {b.layer: b for b in self._blocks if b.kind == "router"}
        return HybridSegment(self, mine)

    def compile_steps(self) -> list[Callable[[], object]]:
        """Kernels of both sides."""
        gpu: list[CudaBlock] = [block.inner for block in self._blocks if isinstance(block, OnGpu)]
        gpu += [block.on_gpu for block in self.split]
        kernels = [*self.gpu.kernels(gpu), EXCHANGE]
        for block in self.split:
            kernels += [] if block.copy is None else block.copy.kernels
        kernels += [] if self.stream is None else self.stream.kernels
        steps = cuda_compile.steps(self.gpu.gpu, list(dict.fromkeys(kernels)))
        steps += self.cpu.compile_steps()
        return steps if self.hot is None else [*steps, self.hot.open]

    def set_hot(self, hot: ExpertSlots, home: str) -> None:
        """Slots in VRAM, if there is room for them; home: tier of all other experts."""
        if (space := self.gpu.spaces.slots) is not None:
            workspace, gpu = self.gpu.spaces.workspace, self.gpu.gpu
            self.hot = VramTier(
                gpu, space, workspace, hot, self.config, home=home, below=self.cpu.tier
            )

    def set_stream(self, ring_experts: int, pinned: Collection[int]) -> ExpertStream:
        """Prompts may be streamed where `route` says so; after all blocks are made.

        pinned: layers whose experts the GPU reads by itself.
        """
        gpu = self.gpu
        layers = {b.layer: b.copy for b in self.split if b.copy is not None}
        size = max(copy.stage_bytes for copy in layers.values())
        stage = PoolStage(gpu.gpu, self.cpu.pool, size) if len(pinned) < len(layers) else None
        self.stream = ExpertStream(
            gpu, gpu.spaces.ring, ring_experts, layers, stage=stage, pinned=pinned
        )
        return self.stream

    @property
    def split(self) -> Collection[SplitExperts]:
        """Experts of both sides, by layer."""
        return self._split.values()

    # --- a pass -------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Between two passes slots change hands, and both sides hear of it at once."""
        self.settle()
        if not self.is_at_rest:  # the end of a pass that was stopped was stopped, too
            self.gpu.gpu.rest()
            self.is_at_rest = True
        self._n_rows = batch.n_tokens
        self.gpu.begin(batch)  # the KV cache may take slots
        self.are_few = self.gpu.memory.most == FEW
        self.cpu.begin_as(batch, are_many=not self.are_few)
        self.way = "cpu"
        if self.route is not None and not self.are_few:
            self.way = self.route.choose(self._n_rows)
        if self.hot is not None:
            self.hot.begin(self._n_rows if self.are_few else FEW_ROWS + 1)
        self._signals[0] += 1

    def has_run(self, last: HybridBlock, seconds: float) -> None:
        """A pass, up to this block."""
        self._last = self._side_of(last)
        if self.route is not None and not self.are_few:
            self.route.ran(self.way, self._n_rows, seconds)
        if self.hot is None:
            return
        if self.are_few:
            ids = self.cpu.choices(self.config.num_experts_per_tok).ids(self._n_rows)
            routings = {layer: ids[layer] for layer in self._split}
        else:
            routings = {layer: self.routing(layer) for layer in self._split}
        of_slots = self.are_few or self.way == "stream"
        self.hot.after(routings, seconds, self._n_rows, of_slots=of_slots)

    def leave(self, block: Block) -> Activations:
        """Copies of what a block needs elsewhere."""
        return self._last.leave(block)

    def enter(self, activations: Activations, block: Block) -> None:
        """Take over what another device has left for a block."""
        self._side_of(cast("HybridBlock", block)).enter(activations, block)

    def logits(self) -> Array:
        """(wanted rows, V)."""
        return self._last.logits()

    def routing(self, layer: int) -> Array:
        """expert_ids (T, K) int64 of the last batch."""
        if self.are_few and layer in self._split:
            return self.cpu.routing(layer)
        return self._side_of(self._routers[layer]).routing(layer)

    def _side_of(self, block: HybridBlock) -> WholeDevice:
        return self.cpu if isinstance(block, OnCpu) else self.gpu

    @property
    def traffic(self) -> Traffic:
        """Of both sides; times: of tapes."""
        a, b = self.gpu.traffic, self.cpu.traffic
        read = 0 if self.hot is None else self.hot.stats.bytes["vram"]
        return Traffic(
            read=a.read + b.read + read, bytes_in=a.bytes_in + b.bytes_in,
            bytes_out=a.bytes_out + b.bytes_out, runs=[*a.runs, *b.runs, *self.runs],
            times=b.times,
        )  # fmt: skip

    @property
    def tier(self) -> ExpertTier | None:
        """Slots in RAM, before a disk."""
        return self.cpu.tier

    @property
    def expert_stats(self) -> ExpertStats:
        """Of the CPU, and of slots in VRAM."""
        stats = self.cpu.expert_stats
        stats.layers |= self.gpu.expert_stats.layers  # of those that are wholly there
        stats.hot = None if self.hot is None else self.hot.stats
        return stats

    @property
    def times(self) -> BlockTimes:
        """Of tapes."""
        return self.cpu.traffic.times

    def close(self) -> None:
        """Give both back."""
        if self.hot is not None:
            self.hot.close()
        self.cpu.close()
        self.gpu.close()

    # --- what blocks ask for ------------------------------------------------------------------

    def settle(self) -> None:
        """From now on nobody else uses the GPU."""
        if self.hot is not None:
            self.hot.settle()

    def following(self, block: SplitExperts) -> SplitExperts | None:
        """Those of the next layer."""
        return self._split.get(block.layer + 1)

    def flag_at(self, crossing: int) -> int:
        """Address of the int64 that the GPU sets to the number of the pass."""
        return self.number_at + LINE * (crossing + 1)

    def table(self, records: Array) -> int:
        """Address, for the GPU, of numbers that do not change."""
        key = records.tobytes()
        if key not in self._tables:
            self._tables[key] = self.gpu.loader.table(records)
        return self._tables[key]


def open_hybrid(
    index: int, config: ModelConfig, kv: KVSpec, threads: int,
    cpus: Sequence[frozenset[int]] | None, vram: VramSpec | None, hot: ExpertSlots,
) -> HybridDevice:  # fmt: skip
    """Both sides; index: of the GPU. DeviceError, PlanError."""
    gpu = CudaDevice(config, kv, index=index, vram=vram, hot=hot)
    try:
        return HybridDevice(gpu, CpuDevice(config, kv, threads, cpus, SeenMemory(gpu.gpu)))
    except BaseException:
        gpu.close()
        raise
