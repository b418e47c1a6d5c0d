"""Seconds of a decoded token, by the resource that takes them.

What the CPU does takes what `prediction.decode_parts` says, as everywhere. With a GPU the shared
expert and hits run there while the CPU computes the misses; all else is one after the
other. Copies into slots run beside, but read the RAM that the misses are read from. The same costs
drive the timeline simulator (`timeline_costs`). No GPU was measured for the constants here: they
are what others have measured of launches (starts of graphs 5 to 10 us, about 1 us from kernel to
kernel inside) and arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Final, Literal, NamedTuple

from offload.forecast.boxes import Box
from offload.forecast.loads import loads_of_parts
from offload.forecast.placement import Layout
from offload.forecast.timeline import Costs
from offload.prediction import REGIONS, Part, blocks_of, decode_parts
from offload.rates import Rates

Resource = Literal[
    "RAM bandwidth", "cores", "VRAM bandwidth", "GPU launches", "cards' exchange",
    "cards' arithmetic", "PCIe", "disk", "fixed costs",
]  # fmt: skip

GAPS: Final = 18e-6  # seconds per layer between the GPU's kernels, 18 of a graph before the post
START: Final = 8e-6  # from the host's call until a layer's graph runs
POST: Final = 3e-6  # until the CPU sees the routing
MERGE: Final = 3e-6  # of a sum of experts, beside reading what the CPU made of misses
EXCHANGE: Final = 100e-6  # per layer, cards that share a layer: two sums over all of them
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
EXPECTED: Final = Case(1.0, 1.0, 0.8, 0.6, 0.85, 1, 1.0)
HIGH: Final = Case(1.1, 1.1, 0.9, 0.75, 1.0, 2, 0.7)

Seconds = defaultdict[Resource, float]


def token_seconds(
    layout: Layout, box: Box, depth: int, case: Case = EXPECTED
) -> dict[Resource, float]:
    """Seconds on the critical path of one token, `depth` tokens before it, by Resource."""
    seconds: Seconds = defaultdict(float)
    config = layout.facts.config
    _add(seconds, _cpu(layout, box, depth, case, 0.0))
    if layout.overflow:
        seconds["disk"] += layout.overflow / (case.disk * box.disk)
    if box.gpus:
        kv = depth * layout.kv_bytes / layout.context * layout.gpu_kv
        early = [part for part in layout.on_gpu if part.block != "shared"]
        seconds["VRAM bandwidth"] += (sum(p.n_bytes for p in early) + kv) / vram_rate(box, case)
        seconds["GPU launches"] += case.gaps * config.num_layers * GAPS
        if len(box.gpus) > 1:
            seconds["cards' exchange"] += case.gaps * config.num_layers * EXCHANGE
        if not layout.is_all_vram:
            seconds["GPU launches"] += case.gaps * config.num_moe_layers * START
            seconds["fixed costs"] += config.num_moe_layers * (POST + MERGE)
            missed = config.num_experts_per_tok * (1 - layout.vram_hits[case.hits])
            seconds["PCIe"] += config.num_moe_layers * missed * _part(layout, box)
    beside = _gpu_experts(layout, box, case)
    misses = _misses(layout, box, depth, case)
    if layout.is_cache and "disk" not in misses:
        seconds["RAM bandwidth"] += _copying(layout, box, depth, case)
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


def _misses(layout: Layout, box: Box, depth: int, case: Case) -> dict[Resource, float]:
    """Experts that the CPU computes, while those on disk are read: the slower of the two."""
    share = 1 - layout.vram_hits[case.hits]
    cpu = _routed(layout, box, depth, case, share)
    read = layout.facts.bytes_read("routed") * share * (1 - layout.ram_hits[case.hits])
    disk = read / (case.disk * box.disk)
    return {"disk": disk} if disk > sum(cpu.values()) else cpu


def _part(layout: Layout, box: Box) -> float:
    """Seconds to read a row that the CPU made of an expert over the link."""
    return 4 * layout.facts.config.hidden_size / box.pcie


def _a_miss(layout: Layout, box: Box, depth: int, case: Case) -> float:
    """Seconds of one expert on the CPU, from RAM."""
    config = layout.facts.config
    routed = sum(_routed(layout, box, depth, case, 1.0).values())
    return routed / max(1, config.num_moe_layers * config.num_experts_per_tok)


def _taken(layout: Layout, box: Box, depth: int, case: Case) -> float:
    """Which share of the CPU's speed a running copy takes: both read RAM, which gives no more."""
    wanted = layout.facts.expert_bytes / _a_miss(layout, box, depth, case)
    left = _rates_of(box, case).ram - box.pcie
    return min(0.9, max(0.0, 1 - left / wanted))


def _copying(layout: Layout, box: Box, depth: int, case: Case) -> float:
    """Seconds that a token's misses take longer because experts are copied meanwhile.

    No more are exchanged than there are hits.
    """
    facts, config = layout.facts, layout.facts.config
    copy = facts.expert_bytes / box.pcie
    hits = config.num_experts_per_tok * layout.vram_hits[case.hits]
    missed = config.num_experts_per_tok - hits
    covered = missed * _a_miss(layout, box, depth, case) / copy
    copies = config.num_moe_layers * min(COPIES, hits, missed, covered)
    return copies * copy * _taken(layout, box, depth, case)


def _routed(
    layout: Layout, box: Box, depth: int, case: Case, share: float
) -> dict[Resource, float]:
    """Seconds of a share of a token's routed experts on the CPU."""
    without, whole = (_cpu(layout, box, depth, case, s) for s in (0.0, share))
    return {resource: whole[resource] - without[resource] for resource in whole}


def _cpu(layout: Layout, box: Box, depth: int, case: Case, routed: float) -> dict[Resource, float]:
    """Seconds of what the CPU computes, with a share of a token's routed experts."""
    facts, rates = layout.facts, _rates_of(box, case)
    parts = decode_parts(
        facts.config,
        loads_of_parts(layout, box.rates, routed),
        rates,
        rates.cores,
        context=depth,
        kv_bytes=depth * layout.kv_bytes / layout.context * (1 - layout.gpu_kv),
        cache=box.cache,
        blocks=_cpu_blocks(layout),
    )
    return {
        "RAM bandwidth": parts.memory,
        "cores": parts.kernels,
        "fixed costs": parts.total - parts.memory - parts.kernels,
    }


def _rates_of(box: Box, case: Case) -> Rates:
    rates = replace(box.rates, ram=min(box.rates.ram * case.ram, box.ram_bandwidth))
    if case.cores == 1:
        return rates
    kernels = {k: replace(v, decode=case.cores * v.decode) for k, v in rates.kernels.items()}
    attend = rates.attend and case.cores * rates.attend
    return replace(rates, kernels=kernels, attend=attend)


def _cpu_blocks(layout: Layout) -> dict[Part, float]:
    """How many of the model's blocks the CPU computes."""
    blocks = blocks_of(layout.facts.config)
    if not layout.on_gpu:
        return blocks
    blocks["attention"] *= 1 - layout.gpu_kv
    blocks["experts"] *= not layout.is_all_vram
    here = {part.block for part in layout.on_gpu}
    for part, block in (("mlp", "dense"), ("router", "router"), ("head", "head")):
        if block in here:
            blocks[part] = 0  # type: ignore[index]
    return blocks


def timeline_costs(layout: Layout, box: Box, depth: int) -> Costs:
    """What the timeline simulator takes: of one MoE layer, of one expert, and the rest of a token.

    All that the closed formula counts outside of MoE layers' shared and routed experts is spread
    over the layers' attention, but for the head.
    """
    facts, config, rates = layout.facts, layout.facts.config, box.rates
    vram, n = vram_rate(box), config.num_moe_layers
    whole = token_seconds(layout, box, depth)
    misses, hits = _misses(layout, box, depth, EXPECTED), _gpu_experts(layout, box, EXPECTED)
    fixed = sum(whole.values()) - max(sum(misses.values()), hits)
    missed = config.num_experts_per_tok * (1 - layout.vram_hits.expected)
    fixed -= n * missed * _part(layout, box)
    if layout.is_cache and "disk" not in misses:
        fixed -= _copying(layout, box, depth, EXPECTED)
    head = sum(p.n_bytes for p in layout.on_gpu if p.block in ("head", "dense")) / vram
    router = sum(p.n_bytes for p in layout.on_gpu if p.block == "router") / vram / n
    shared = sum(p.n_bytes for p in layout.on_gpu if p.block == "shared") / vram / n
    wake = REGIONS["experts"] * rates.region + rates.steps.get("experts", 0.0)
    spread = (fixed - head - rates.token) / n - START - router - POST - MERGE - wake
    return Costs(
        start=START,
        attention=max(0.0, spread),
        router=router,
        post=POST,
        shared=shared,
        hit=facts.expert_bytes / vram,
        wake=wake,
        miss=_a_miss(layout, box, depth, EXPECTED),
        merge=MERGE,
        part=_part(layout, box),
        copy=facts.expert_bytes / box.pcie,
        head=head,
        step=rates.token,
        read=facts.expert_bytes / (EXPECTED.disk * box.disk) if layout.disk_experts else 0.0,
        taken=_taken(layout, box, depth, EXPECTED),
    )
