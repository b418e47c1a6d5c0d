"""A plan as the page shows it: where things lie, what a token reads from where, what is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offload.config import ModelConfig
from offload.forecast.planned import facts_of_census, layout_of_plan
from offload.plan import BlockName, Plan
from offload.self_check import expected_hits
from offload.server.machine_look import Look
from offload.tensor_census import BLOCKS, Census

FASTEST = ("vram", "slots", "ram", "hugepages", "mmap", "disk")


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


def predicted_bytes(config: ModelConfig, census: Census, plan: Plan) -> dict[str, float]:
    """Of weights that a decoded token reads, by tier, the fastest first.

    Slots have the share of experts that is expected of them.
    """
    found = dict.fromkeys(FASTEST, 0.0)
    for block, n_bytes in bytes_by_block(census).items():
        if block == "routed":
            for tier, n in _routed(config, census, plan, n_bytes).items():
                found[tier] += n
        else:
            for tier, share in shares(census, plan, block).items():
                found[tier] += share * n_bytes
    return {tier: n for tier, n in found.items() if n}


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


def measured_bytes(
    seen: Look, config: ModelConfig, census: Census, predicted: Mapping[str, float]
) -> dict[str, float]:
    """Read by kernels so far, by tier.

    Slots and what lies below them count for themselves; all else is divided as it lies.
    """
    found = dict.fromkeys(predicted, 0.0)
    for tier, n_bytes in seen.routed.items():
        found[tier] = found.get(tier, 0.0) + n_bytes
    rest = max(0.0, seen.bytes_read - sum(seen.routed.values()))
    fixed = dict(predicted)
    if seen.routed:
        routed = bytes_by_block(census).get("routed", 0.0)
        for tier, n in _routed(config, census, seen.plan, routed).items():
            fixed[tier] = fixed.get(tier, 0.0) - n
    total = sum(n for n in fixed.values() if n > 0)
    for tier, n in fixed.items():
        if n > 0:
            found[tier] = found.get(tier, 0.0) + rest * n / total
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
