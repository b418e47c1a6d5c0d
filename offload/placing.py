"""Bringing the weights where the plan has them: mapped, copied, or packed. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from offload.config import ModelConfig
from offload.expert_layout import packable_layers
from offload.gguf import GGUFFile, TensorInfo
from offload.memory import Memory, advise
from offload.models import expected_tensors
from offload.packed_cache import PackedCache
from offload.packing import pack_layers
from offload.plan import Plan, Tier
from offload.stats import LoadProgress
from offload.tensor_census import block_of
from offload.weights import WeightStore, fused_name
from quant.run.pool import Pool

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]
READ_STEP = 64 << 20  # bytes between two reports


class Weights:
    """One model file's tensors on their way into a WeightStore.

    nodes: NUMA nodes with memory; copies are spread over them. ahead: what stays mapped, or goes to
    a GPU from there, and is to be read before it is asked for; set by `place`.
    """

    def __init__(
        self,
        file: GGUFFile,
        store: WeightStore,
        config: ModelConfig,
        plan: Plan,
        nodes: tuple[int, ...],
    ) -> None:
        self._file = file
        self._store = store
        self._config = config
        self._plan = plan
        self.ahead: list[np.ndarray] = []
        self._memory = {  # where copies of a tier are made; packed ones, to be mapped later, too
            "mmap": Memory("mmap", nodes),
            "ram": Memory("resident" if plan.is_locked else "mmap", nodes),
            "hugepages": Memory("hugepages", nodes),
        }

    def place(self, pool: Pool, report: Report) -> tuple[str, ...]:
        """Bring all weights where the plan has them; what came of it, a line each.

        GGUFError if a file is not what it was: copies may have read zeros where it has no bytes.
        """
        packed = self._plan.packed
        chosen = [
            layer
            for layer in packable_layers(self._store, self._config)
            if layer.layer in packed.layers
        ]
        names = {m.name for layer in chosen for m in layer.matrices}
        by_tier = self._by_tier(names | {fused_name(name) for name in names})
        for info in self._file.tensors.values():  # vectors, which blocks copy: all at once
            if len(info.shape) == 1:
                advise(self._file.raw(info.name), "need")
        self.ahead = self._ahead(by_tier["mmap"] + by_tier["vram"])
        for tier in ("ram", "hugepages"):
            self._copy(by_tier[tier], self._memory[tier], report)
        cache = None
        if chosen and packed.cache is not None:
            cache = PackedCache(Path(packed.cache), self._file, pool.threads)
        if chosen:
            self._store.packed = pack_layers(
                chosen,
                pool,
                self._memory[packed.tier],
                cache,
                report,
                resident=packed.tier != "mmap",
            )
        notes = [note for memory in self._memory.values() for note in memory.settle()]
        if cache is not None:
            notes += cache.summary()
        self._store.watched = (
            *(self._file.mapped if by_tier["mmap"] or by_tier["disk"] else ()),
            *(cache.mapped if cache is not None and packed.tier == "mmap" else ()),
        )
        for mapped in (*self._file.mapped, *(cache.mapped if cache is not None else ())):
            mapped.check_unchanged()
        return tuple(notes)

    def _by_tier(self, packed: set[str]) -> dict[Tier, list[TensorInfo]]:
        """What the forward pass reads and is not packed, by tier, in the file's order."""
        found: dict[Tier, list[TensorInfo]] = {
            "mmap": [], "ram": [], "hugepages": [], "disk": [], "vram": [],
        }  # fmt: skip
        for name in expected_tensors(self._config, self._file.tensors.keys()):
            if name not in packed:
                block, layer = block_of(name, self._config)
                found[self._plan.place(block, layer).tier].append(self._file.tensors[name])
        for tensors in found.values():
            tensors.sort(key=lambda t: (t.part, t.offset))
        return found

    def _copy(self, tensors: Sequence[TensorInfo], memory: Memory, report: Report) -> None:
        """Copies in memory of our own, 64-byte aligned, one after the other."""
        if not tensors:
            return
        total = sum(-(-t.n_bytes // 64) * 64 for t in tensors)
        room = memory.allocate(total)
        at = 0
        report(LoadProgress(phase="copy", done_bytes=0, total_bytes=total))
        for info in tensors:
            source = self._file.raw(info.name)
            data = room[at : at + info.n_bytes]
            for start in range(0, info.n_bytes, READ_STEP):
                part = slice(start, start + READ_STEP)
                advise(source[start + READ_STEP : start + 2 * READ_STEP], "need")
                np.copyto(data[part], source[part])
                advise(source[part], "drop")
                done = at + min(start + READ_STEP, info.n_bytes)
                report(LoadProgress(phase="copy", done_bytes=done, total_bytes=total))
            data.flags.writeable = False
            self._store.copies[info.name] = data
            at += -(-info.n_bytes // 64) * 64

    def _ahead(self, tensors: Sequence[TensorInfo]) -> list[np.ndarray]:
        """Views of what is to be read before it is asked for, in the order of layers.

        None of a model larger than free RAM: the first pages would be gone before the last come.
        """
        if not self._plan.reads_ahead:
            if tensors:
                log.warning(
                    "%.1f GiB of weights are not read ahead: decoding will wait for the disk",
                    sum(t.n_bytes for t in tensors) / 2**30,
                )
            return []

        def turn(info: TensorInfo) -> tuple[int, int, int]:
            block, layer = block_of(info.name, self._config)
            if layer is None:
                layer = -1 if block == "embedding" else self._config.num_layers
            return layer, info.part, info.offset

        return [self._file.raw(info.name) for info in sorted(tensors, key=turn)]
