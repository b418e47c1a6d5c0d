"""The layout of the routed experts in a bench: chosen and packed by the engine's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from offload.bench.layout import Layout
from offload.bench.synthetic import SyntheticStore
from offload.config import ModelConfig
from offload.expert_layout import LayoutOptions, choose, packable_layers
from offload.hardware import HardwareProfile
from offload.memory import Memory
from offload.packing import measure, pack_layers
from offload.stats import LoadProgress
from offload.weights import WeightStore
from quant.run.pool import Pool


def arrange(
    store: SyntheticStore | WeightStore,
    config: ModelConfig,
    layout: Layout,
    options: LayoutOptions,
    hardware: HardwareProfile,
    pool: Pool,
    report: Callable[[LoadProgress], None],
) -> tuple[Layout, list[str]]:
    """Pack the store's experts if that is asked for or pays: (the layout with its bytes, notes)."""
    layers = packable_layers(store, config)
    choice = choose(
        options,
        layers,
        room=hardware.cpu.ram_free,
        total=layout.n_bytes,
        resident=False,
        speeds=lambda: measure(layers, pool, report),
    )
    note = choice.packed("ram").note
    if not choice.layers:
        return layout, [note]
    memory = Memory("mmap", hardware.cpu.topology.nodes)
    store.packed = pack_layers(choice.layers, pool, memory, None, report)
    growth = sum(x.packed_bytes - x.native_bytes for x in choice.layers)
    per_layer = growth * config.num_experts_per_tok // (layout.experts * config.num_moe_layers)
    parts = dict(layout.part_bytes)
    parts["routed"] += per_layer
    parts["layer"] += per_layer
    return replace(layout, part_bytes=parts, arranged="packed"), [note, *memory.settle()]
