"""From a plan to an ExpertTier: which layers have slots, and how their experts come into them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from offload.amounts import amount
from offload.config import ModelConfig
from offload.devices.base import GatedMLP
from offload.direct_file import SECTOR, DirectFile
from offload.errors import PlanError
from offload.expert_layout import NAMES
from offload.expert_sources import FileSource, MemorySource, Source, file_experts
from offload.expert_tier import ExpertTier
from offload.filler import Filler
from offload.gguf import GGUFFile
from offload.layer_scheduler import Places
from offload.memory import PAGE, Memory, advise
from offload.plan import Plan
from offload.policies import POLICIES, CachePolicy, Profile
from offload.routing_trace import RoutingTrace
from offload.slot_budget import LayerExperts, divide
from offload.tiering import passing_bytes
from offload.timing import seconds_of
from offload.weights import Matrix, WeightStore

READERS = 4  # threads; one request each is under way
COPIERS = 1
TRIALS = 2
TELLING = 1 << 20  # bytes of an expert from which on a read's time is its size's
CHEAPER = 2  # times, that a map must be cheaper


def expert_layers(store: WeightStore, config: ModelConfig) -> dict[int, GatedMLP]:
    """The routed experts of every layer that has some."""
    found = {}
    for layer in range(config.num_layers):
        if config.is_moe_layer(layer):
            gate, up, down = (store.matrix(f"blk.{layer}.ffn_{part}_exps.weight") for part in NAMES)
            found[layer] = GatedMLP(gate=gate, up=up, down=down)
    return found


def open_tier(
    file: GGUFFile, store: WeightStore, config: ModelConfig, plan: Plan
) -> ExpertTier | None:
    """The tier that a plan has; None if it has no slots and reads nothing from a disk."""
    homes = {
        layer: plan.place("routed", layer).tier
        for layer in range(config.num_layers)
        if config.is_moe_layer(layer)
    }
    on_disk = [layer for layer, home in homes.items() if home == "disk"]
    if not on_disk and not plan.cache.n_bytes:
        return None
    profile: Profile = {}
    if plan.cache.profile is not None:
        profile = RoutingTrace.load(plan.cache.profile).profile()
    mlps = expert_layers(store, config)
    sources: dict[int, Source] = {}
    waits = False
    if on_disk:
        files = [DirectFile(part) for part in file.mapped]
        on_files = [disk_source(layer, mlps[layer], file, files) for layer in on_disk]
        sources |= zip(on_disk, on_files, strict=True)
        waits, decision = tried_out(on_files, [mlps[layer] for layer in on_disk])
        if not all(f.is_direct for f in files):
            decision += "; through the page cache, for this file system has no direct reads"
        home = "disk"
    else:
        for layer, mlp in mlps.items():
            places = Places.at(
                *((m.address, m.stride) for m in (mlp.gate, mlp.up, mlp.down)),
                count=mlp.gate.count,
            )
            sources[layer] = MemorySource(mlp, places.home)
        decision = "misses run where they lie, in memory; copies are made behind the computation"
        home = next(iter(homes.values()))
    division = divide(plan.cache.n_bytes, sizes(sources, config.num_experts_per_tok), ring=waits)

    def make(slots: int) -> CachePolicy:
        return POLICIES[plan.cache.policy](slots, profile)

    return ExpertTier(
        sources,
        division,
        make,
        Filler(READERS if waits else COPIERS),
        Memory("hugepages"),
        home=home,
        policy=plan.cache.policy if division.slots else "",
        waits=waits,
        limit=plan.cache.copies,
        lent=plan.cache.lent,
        row_bytes=passing_bytes(config),
        decision=decision,
    )


def disk_source(
    layer: int, mlp: GatedMLP, file: GGUFFile, files: Sequence[DirectFile]
) -> FileSource:
    """Experts that are read from the file; PlanError if kernels do not see them as they lie."""
    where = file_experts(mlp, file.mapped)
    if where is None:
        raise PlanError(
            f"the experts of layer {layer} cannot be read from the disk as they are needed: their "
            "rows are padded in memory; leave them in tier mmap"
        )
    return FileSource(mlp, where, files)


def sizes(sources: Mapping[int, Source], top_k: int) -> dict[int, LayerExperts]:
    """What `divide` needs."""
    return {
        layer: LayerExperts(n_experts=source.n_experts, slot_bytes=source.slot_bytes, top_k=top_k)
        for layer, source in sources.items()
    }


def tried_out(sources: Sequence[FileSource], mlps: Sequence[GatedMLP]) -> tuple[bool, str]:
    """(whether misses wait for their copy, why): both ways, measured on an expert of some layers.

    A miss that does not wait runs from the map, where the system reads its pages as they are
    touched, and makes room for them at the cost of other pages: that must be far cheaper. Experts
    too small to tell wait.
    """
    waiting, mapped = [], []
    for source, mlp in list(zip(sources, mlps, strict=True))[-TRIALS:]:
        slot = np.empty(source.slot_bytes + SECTOR, np.uint8)
        slot = slot[-slot.ctypes.data % SECTOR :][: source.slot_bytes]
        expert = source.n_experts - 1
        source.forget(expert)
        mapped.append(seconds_of(partial(_touch, mlp, expert)))
        _drop(mlp, expert)
        source.forget(expert)
        waiting.append(seconds_of(lambda: [task() for task in source.fill(expert, slot)]))  # noqa: B023
    wait, elsewhere = min(waiting), min(mapped)
    waits = sources[-1].expert_bytes < TELLING or wait < CHEAPER * elsewhere
    return waits, (
        f"misses {'wait until they are read' if waits else 'run from the map'}: an expert of "
        f"{amount(sources[-1].expert_bytes)} was read in {1e3 * wait:.1f} ms, and through the "
        f"map in {1e3 * elsewhere:.1f}"
    )


def _drop(mlp: GatedMLP, expert: int) -> None:
    """Take an expert's pages out of our map again."""
    for m in (mlp.gate, mlp.up, mlp.down):
        advise(_view(m, expert), "drop")


def _view(m: Matrix, expert: int) -> np.ndarray:
    room = (ctypes.c_uint8 * m.n_bytes).from_address(m.address + expert * m.stride)
    return np.frombuffer(memoryview(room), np.uint8)


def _touch(mlp: GatedMLP, expert: int) -> None:
    """Read an expert's pages through the map."""
    for m in (mlp.gate, mlp.up, mlp.down):
        _view(m, expert)[::PAGE].max()
