"""Seconds of a decoded token, by the resource that takes them.

A part takes what its slower side takes: reading its bytes, or the kernels of all cores. With a GPU
the shared expert and hits run there while the CPU computes the misses; all else is one after the
other. The same costs drive the timeline simulator (`timeline_costs`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from offload.forecast.boxes import Box
from offload.forecast.core_rates import kernel_of
from offload.forecast.model_facts import Part
from offload.forecast.placement import Layout
from offload.forecast.timeline import Costs

Resource = Literal[
    "RAM bandwidth", "cores", "VRAM bandwidth", "GPU launches", "cards' exchange",
    "cards' arithmetic", "PCIe", "disk", "fixed costs",
]  # fmt: skip

LAUNCHES: Final = 24e-6  # seconds per layer between a GPU's kernels
POST: Final = 3e-6  # until the CPU sees the routing
MERGE: Final = 6e-6  # until the GPU has the CPU's sum
EXCHANGE: Final = 100e-6  # per layer, cards that share a layer: two sums over all of them
REGIONS: Final = 8  # parallel regions of a layer on the CPU
ATTENTION_FLOPS: Final = 50e9  # of one core, after many tokens: bench/results, depth 7,600
COPIES: Final = 2  # experts into slots per layer and token


class Case(NamedTuple):
    """Shares of what a box should do: its RAM, cores' kernels, VRAM (one card, many), disk.

    hits: 0 low, 1 expected, 2 high. gaps: times as long as launches and exchanges should take.
    """

    ram: float
    cores: float
    vram: float
    cards: float
    disk: float
    hits: int
    gaps: float


LOW: Final = Case(0.65, 0.5, 0.6, 0.4, 0.6, 0, 2.0)
EXPECTED: Final = Case(0.9, 1.0, 0.8, 0.6, 0.85, 1, 1.0)
HIGH: Final = Case(1.1, 1.1, 0.9, 0.75, 1.0, 2, 0.7)

Seconds = defaultdict[Resource, float]


def token_seconds(
    layout: Layout, box: Box, depth: int, case: Case = EXPECTED
) -> dict[Resource, float]:
    """Seconds on the critical path of one token, `depth` tokens before it, by Resource."""
    seconds: Seconds = defaultdict(float)
    config, rates = layout.facts.config, box.rates
    _add(seconds, _cpu(layout.on_cpu, layout, box, case))
    _add(seconds, _cpu_attention(layout, box, depth, case))
    busy = 1.0 - bool(layout.is_all_vram)
    seconds["fixed costs"] += rates.token + busy * config.num_layers * REGIONS * rates.region
    if layout.overflow:
        seconds["disk"] += layout.overflow / (case.disk * box.disk)
    if box.gpus:
        kv = depth * layout.kv_bytes / layout.context * layout.gpu_kv
        early = [part for part in layout.on_gpu if part.block != "shared"]
        seconds["VRAM bandwidth"] += (sum(p.n_bytes for p in early) + kv) / vram_rate(box, case)
        seconds["GPU launches"] += case.gaps * config.num_layers * LAUNCHES
        if len(box.gpus) > 1:
            seconds["cards' exchange"] += case.gaps * config.num_layers * EXCHANGE
        if not layout.is_all_vram:
            seconds["fixed costs"] += config.num_moe_layers * (POST + MERGE)
    beside = _gpu_experts(layout, box, case)
    misses = _misses(layout, box, case)
    if sum(misses.values()) >= beside:
        _add(seconds, misses)
    else:
        seconds["VRAM bandwidth"] += beside
    return dict(seconds)


def _add(seconds: Seconds, more: dict[Resource, float]) -> None:
    for resource, n in more.items():
        seconds[resource] += n


def vram_rate(box: Box, case: Case = EXPECTED) -> float:
    """Bytes/s that the cards together read; 1.0 without any (nothing is read there)."""
    if not box.gpus:
        return 1.0
    share = case.vram if len(box.gpus) == 1 else case.cards
    return share * sum(gpu.bandwidth for gpu in box.gpus)


def _gpu_experts(layout: Layout, box: Box, case: Case) -> float:
    """Seconds of the shared expert and the hits, all layers."""
    if not box.gpus:
        return 0.0
    shared = sum(part.n_bytes for part in layout.on_gpu if part.block == "shared")
    hits = layout.facts.bytes_read("routed") * layout.vram_hits[case.hits]
    return (shared + hits) / vram_rate(box, case)


def _misses(layout: Layout, box: Box, case: Case) -> dict[Resource, float]:
    """Experts that the CPU computes, while those on disk are read: the slower of the two."""
    share = 1 - layout.vram_hits[case.hits]
    routed = [part for part in layout.facts.parts if part.block == "routed"]
    cpu = {r: s * share for r, s in _cpu(routed, layout, box, case).items()}
    read = layout.facts.bytes_read("routed") * share * (1 - layout.ram_hits[case.hits])
    disk = read / (case.disk * box.disk)
    return {"disk": disk} if disk > sum(cpu.values()) else cpu


def _cpu(parts: Iterable[Part], layout: Layout, box: Box, case: Case) -> dict[Resource, float]:
    """Seconds of matrices on the CPU, each by the slower of RAM and kernels."""
    seconds: Seconds = defaultdict(float)
    rates, share = box.rates, layout.facts.share_read
    ram = min(rates.ram * case.ram, box.ram_bandwidth, rates.cores * rates.ram_one)
    if layout.facts.n_bytes < box.cache:
        ram = math.inf
    for part in parts:
        kernel = kernel_of(
            rates, part.ggml_type, is_routed=part.block == "routed", packs=not layout.disk_experts
        )
        kernels = kernel.decode * case.cores * rates.cores
        slower: Resource = "RAM bandwidth" if ram <= kernels else "cores"
        seconds[slower] += part.n_bytes * share(part.block) / min(ram, kernels)
    return dict(seconds)


def _cpu_attention(layout: Layout, box: Box, depth: int, case: Case) -> dict[Resource, float]:
    """Seconds of attention over `depth` tokens in the layers that the CPU computes."""
    config, share = layout.facts.config, 1 - layout.gpu_kv
    flops = 2.0 * (config.latent_dim + config.kv_lora_rank) * config.num_heads * depth
    flops *= config.num_layers * share
    return {"cores": flops / (ATTENTION_FLOPS * box.rates.cores * case.cores)} if flops else {}


def timeline_costs(layout: Layout, box: Box, depth: int) -> Costs:
    """What the timeline simulator takes: of one MoE layer, of one expert, and the rest of a token.

    All that the closed formula counts outside of MoE layers' shared and routed experts is spread
    over the layers' attention, but for the head.
    """
    facts, config = layout.facts, layout.facts.config
    vram, n = vram_rate(box), config.num_moe_layers
    whole = token_seconds(layout, box, depth)
    misses, hits = _misses(layout, box, EXPECTED), _gpu_experts(layout, box, EXPECTED)
    fixed = sum(whole.values()) - max(sum(misses.values()), hits)
    head = sum(p.n_bytes for p in layout.on_gpu if p.block in ("head", "dense")) / vram
    router = sum(p.n_bytes for p in layout.on_gpu if p.block == "router") / vram / n
    shared = sum(p.n_bytes for p in layout.on_gpu if p.block == "shared") / vram / n
    routed = [part for part in facts.parts if part.block == "routed"]
    miss = sum(_cpu(routed, layout, box, EXPECTED).values()) / (n * config.num_experts_per_tok)
    return Costs(
        attention=max(0.0, (fixed - head) / n - router - POST - MERGE),
        router=router,
        post=POST,
        shared=shared,
        hit=facts.expert_bytes / vram,
        miss=miss,
        merge=MERGE,
        copy=facts.expert_bytes / box.pcie,
        head=head,
        read=facts.expert_bytes / (EXPECTED.disk * box.disk) if layout.disk_experts else 0.0,
    )
