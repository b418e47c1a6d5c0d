"""Tiers for tests: small models whose routed experts come from slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from offload.config import ModelConfig
from offload.devices.cpu import CpuDevice
from offload.direct_file import DirectFile
from offload.expert_sources import MemorySource, Source
from offload.expert_tier import ExpertTier
from offload.filler import Filler
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.layer_scheduler import Places
from offload.memory import Memory
from offload.models import architecture
from offload.plan import KVSpec
from offload.policies import POLICIES
from offload.slot_budget import divide
from offload.tiers import disk_source, expert_layers, sizes
from offload.weights import WeightStore

Wrap = Callable[[Source], Source]


@contextmanager
def tiered(
    path: Path,
    n_bytes: int,
    policy: str = "lru",
    *,
    waits: bool = True,
    wrap: Wrap = lambda source: source,
    context: int = 128,
    limit: int = 2,
    lent: int = 0,
    row_bytes: int = 0,
) -> Iterator[tuple[Model, ExpertTier]]:
    """A model on two threads with slots of n_bytes; waits: its experts are read from the file."""
    spec = KVSpec(context=context, tokens=context, kv_type="f32")
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        store = WeightStore(file, config)
        sources: dict[int, Source] = {}
        files = [DirectFile(part) for part in file.mapped]
        for layer, mlp in expert_layers(store, config).items():
            if waits:
                source: Source = disk_source(layer, mlp, file, files)
            else:
                matrices = ((m.address, m.stride) for m in (mlp.gate, mlp.up, mlp.down))
                source = MemorySource(mlp, Places.at(*matrices, count=mlp.gate.count).home)
            sources[layer] = wrap(source)
        tier = ExpertTier(
            sources,
            divide(n_bytes, sizes(sources, config.num_experts_per_tok), ring=waits),
            lambda slots: POLICIES[policy](slots, {}),
            Filler(2),
            Memory("mmap"),
            home="disk" if waits else "mmap",
            policy=policy,
            waits=waits,
            limit=limit,
            lent=lent,
            row_bytes=row_bytes,
        )
        device = CpuDevice(config, spec, 2)
        device.tier = tier
        try:
            blocks = architecture(config.architecture).blocks(config, store, lambda *_: device)
            yield Model(config, blocks, store), tier
        finally:
            device.close()
