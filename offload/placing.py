"""Bringing the weights where the plan wants them: read ahead, copied, or packed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from offload.config import ModelConfig
from offload.expert_layout import Packable, choose, packable_layers
from offload.gguf import GGUFFile, TensorInfo
from offload.hardware import HardwareProfile
from offload.memory import Memory, advise
from offload.packed_cache import PackedCache
from offload.packing import measure, pack_layers
from offload.plan import Plan
from offload.planner import PlanOptions, weight_room, with_layout
from offload.stats import LoadProgress
from offload.weights import WeightStore, fused_name
from quant.run.pool import Pool

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]
READ_STEP = 64 << 20  # bytes between two reports
PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """Tensors of the file that are used as they lie."""

    tensors: list[TensorInfo]

    @property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors)


class Weights:
    """One model file's tensors on their way into a WeightStore."""

    def __init__(
        self,
        file: GGUFFile,
        store: WeightStore,
        config: ModelConfig,
        hardware: HardwareProfile,
        options: PlanOptions,
    ) -> None:
        self._file = file
        self._store = store
        self._config = config
        self._hardware = hardware
        self._options = options
        self._memory = Memory(options.memory, hardware.cpu.topology.nodes)

    def place(self, plan: Plan, total: int, pool: Pool, report: Report) -> Plan:
        """Choose the layout of the experts and bring all weights there; the plan says how.

        total: bytes of all weights that are used.
        """
        layers = packable_layers(self._store, self._config)
        layout = self._options.layout
        cache = None
        if layout.cache is not None and layout.layout != "native":
            cache = PackedCache(layout.cache, self._file, pool.threads)
        resident = self._options.memory != "mmap"
        choice = choose(
            layout,
            layers,
            moe_layers=self._config.num_moe_layers,
            room=weight_room(plan, self._hardware),
            total=total,
            resident=resident,
            speeds=partial(measure, layers, pool, report),
        )
        plan = with_layout(plan, choice, self._config.num_moe_layers)
        rest = self._rest(choice.layers)
        if resident:
            self._copy(rest, report)
        else:
            self._read_ahead(rest, total, report)
        if choice.layers:
            self._store.packed = pack_layers(
                choice.layers, pool, self._memory, cache, report, resident=resident
            )
        notes = self._memory.settle()
        if cache is not None:
            notes += cache.summary()
        packed_files = () if cache is None else cache.mapped
        self._store.watched = () if resident else (*self._file.mapped, *packed_files)
        return replace(plan, notes=(*plan.notes, *notes))

    def _rest(self, packed: tuple[Packable, ...]) -> _Pending:
        """What is not packed, in the file's order."""
        names = {m.name for layer in packed for m in layer.matrices}
        names |= {fused_name(name) for name in names}
        tensors = [t for t in self._file.tensors.values() if t.name not in names]
        return _Pending(tensors=sorted(tensors, key=lambda t: (t.part, t.offset)))

    def _copy(self, rest: _Pending, report: Report) -> None:
        """Copies in memory of our own, 64-byte aligned, one after the other."""
        used = [t for t in rest.tensors if not self._is_skipped(t.name)]
        total = sum(-(-t.n_bytes // 64) * 64 for t in used)
        room = self._memory.allocate(total)
        at = 0
        report(LoadProgress(phase="copy", done_bytes=0, total_bytes=total))
        for info in used:
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

    def _is_skipped(self, name: str) -> bool:
        """Tensors of multi-token-prediction layers are never used."""
        prefix, _, rest = name.partition(".")
        layer = rest.partition(".")[0]
        return prefix == "blk" and layer.isdigit() and int(layer) >= self._config.num_layers

    def _read_ahead(self, rest: _Pending, total: int, report: Report) -> None:
        """Touch every page once, in order, so that decoding does not wait for the disk.

        Left out for files larger than free RAM: the first pages would be gone before the last come.
        """
        free = self._hardware.cpu.ram_free
        if total > free:
            log.warning(
                "the weights (%.1f GiB) exceed free RAM (%.1f GiB): decoding will wait for the "
                "disk",
                total / 2**30,
                free / 2**30,
            )
            return
        done, n_bytes = 0, rest.n_bytes
        report(LoadProgress(phase="read", done_bytes=0, total_bytes=n_bytes))
        for info in rest.tensors:
            data = self._file.raw(info.name)
            for start in range(0, len(data), READ_STEP):
                part = data[start : start + READ_STEP]
                advise(part, "need")
                part[::PAGE].max(initial=0)
                done += len(part)
                report(LoadProgress(phase="read", done_bytes=done, total_bytes=n_bytes))
