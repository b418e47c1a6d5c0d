"""A plan as the page shows it: where things lie, what a token reads from where, what is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offload.config import ModelConfig
from offload.forecast.planned import facts_of_census, layout_of_plan
from offload.plan import BlockName, Plan
from offload.self_check import expected_hits
from offload.server.machine_look import Look
from offload.tensor_census import BLOCKS, Census

FASTEST = ("vram", "slots", "ram", "hugepages", "mmap", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What follows from a plan, as long as it holds. rows: of `plan_rows`.

    predicted: bytes of weights that a decoded token reads, by tier, the fastest first; slots have
    the share of experts that is expected of them. beside: the same without routed experts.
    """

    plan: Plan
    census: Census
    predicted: Mapping[str, float]
    beside: Mapping[str, float]
    rows: list[dict[str, Any]]


def plan_facts(config: ModelConfig, census: Census, plan: Plan) -> PlanFacts:
    """Some milliseconds for a large model."""
    beside = dict.fromkeys(FASTEST, 0.0)
    by_block = bytes_by_block(census)
    routed = by_block.pop("routed", 0.0)
    for block, n_bytes in by_block.items():
        for tier, share in shares(census, plan, block).items():
            beside[tier] += share * n_bytes
    predicted = dict(beside)
    for tier, n_bytes in _routed(config, census, plan, routed).items():
        predicted[tier] += n_bytes
    return PlanFacts(
        plan=plan,
        census=census,
        predicted={tier: n for tier, n in predicted.items() if n},
        beside={tier: n for tier, n in beside.items() if n},
        rows=plan_rows(plan),
    )


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """A row for all that lies somewhere: name, bytes, device, tier, why."""
    rows = []
    for block, base in plan.placements.items():
        others = plan.overrides.get(block, {})
        rest = base.n_bytes - sum(other.n_bytes for other in others.values())
        if rest or not others:
            rows.append(_row(block, rest, base.device, base.tier, base.why))
        for layers, other in others.items():
            name = f"{block}, layers {layers}"
            rows.append(_row(name, other.n_bytes, other.device, other.tier, other.why))
    if plan.packed.layers:
        packed = plan.packed
        rows.append(_row("packed experts", packed.n_bytes, "cpu", packed.tier, packed.why))
    if plan.cache.n_bytes:
        rows.append(_row("expert slots", plan.cache.n_bytes, "cpu", "slots", plan.cache.why))
    if plan.hot.n_bytes:
        gpu = plan.gpu or ""
        rows.append(_row("expert slots", plan.hot.n_bytes, gpu, "vram", plan.hot.why))
    kv = f"{plan.kv.tokens:,} tokens in {plan.kv.kv_type}; {plan.kv.why}"
    if plan.vram is not None and plan.vram.kv:
        rows.append(_row("KV cache", plan.vram.kv, plan.gpu or "", "vram", kv))
    if plan.kv_in_ram:
        rows.append(_row("KV cache", plan.kv_in_ram, "cpu", "ram", kv))
    return rows


def _row(name: str, n_bytes: int, device: str, tier: str, why: str) -> dict[str, Any]:
    return {"name": name, "bytes": n_bytes, "device": device, "tier": tier, "why": why}


def bytes_by_block(census: Census) -> dict[BlockName, float]:
    """That a decoded token reads."""
    found: dict[BlockName, float] = {}
    for family in census.families:
        if (block := BLOCKS.get(family.name)) is not None:
            found[block] = found.get(block, 0.0) + family.bytes_per_token
    return found


def shares(census: Census, plan: Plan, block: BlockName) -> dict[str, float]:
    """Of a block's bytes, by tier; {} for a head that is the embedding, counted there."""
    found: dict[str, float] = {}
    for (name, layer), n_bytes in census.blocks.items():
        if name == block:
            tier = plan.place(block, layer).tier
            found[tier] = found.get(tier, 0.0) + n_bytes
    total = sum(found.values())
    return {tier: n / total for tier, n in found.items()} if total else {}


def _routed(config: ModelConfig, census: Census, plan: Plan, n_bytes: float) -> dict[str, float]:
    """By tier; slots take what they are expected to have of it."""
    hits = 0.0
    if plan.hot.n_bytes:
        facts = facts_of_census(config, census)
        hits = layout_of_plan(facts, census, plan).vram_hits.expected
    found = {"vram": hits * n_bytes}
    for tier, share in shares(census, plan, "routed").items():
        outside = (1 - hits) * share * n_bytes
        in_slots = expected_hits(plan, config) if tier == "disk" else 0.0
        found["slots"] = found.get("slots", 0.0) + in_slots * outside
        found[tier] = found.get(tier, 0.0) + (1 - in_slots) * outside
    return found


def measured_bytes(seen: Look, facts: PlanFacts) -> dict[str, float]:
    """Read by kernels so far, by tier.

    Slots and what lies below them count for themselves; all else is divided as it lies.
    """
    found = dict.fromkeys(facts.predicted, 0.0)
    for tier, n_bytes in seen.routed.items():
        found[tier] = found.get(tier, 0.0) + n_bytes
    rest = max(0.0, seen.bytes_read - sum(seen.routed.values()))
    shares = facts.beside if seen.routed else facts.predicted
    for tier, n in shares.items():
        found[tier] += rest * n / sum(shares.values())
    return found


def what_is_off(seen: Look) -> list[dict[str, str]]:
    """What could be and is not, each with its reason."""
    plan = seen.plan
    found = []
    if plan.vram is None:
        why = next((r for r in plan.remarks if r.startswith("device cpu: ")), "")
        found.append(("GPU", why.removeprefix("device cpu: ") or "not asked for"))
    elif plan.is_hybrid and not plan.hot.n_bytes:
        found.append(("expert slots in VRAM", plan.hot.why))
    if not plan.packed.layers:
        found.append(("packed experts", plan.packed.why))
    if not plan.cache.n_bytes:
        found.append(("expert slots in RAM", plan.cache.why))
    if seen.off_because:
        found.append(("copies of experts", seen.off_because))
    return [{"what": what, "why": _reason(why)} for what, why in found]


def _reason(why: str) -> str:
    return why.removeprefix("off").lstrip(":, ") or "as asked"
