"""A plan as people read it: a row for all that lies somewhere, and a line for every choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.amounts import binary_amount
from offload.errors import shown

if TYPE_CHECKING:
    from offload.plan import Plan, VramSpec


def plan_table(plan: Plan) -> str:
    """Rows, then notes."""
    rows = []
    for block, p in plan.placements.items():
        rows.append(_row(block, p.n_bytes, p.device, p.tier, p.why))
        for layers, other in plan.overrides.get(block, {}).items():
            name = f"  of it {layers}"
            rows.append(_row(name, other.n_bytes, other.device, other.tier, other.why))
    packed, kv = plan.packed, plan.kv
    if packed.layers:
        where = f"layers {packed.layers}, re-arranged"
        rows.append(_row("packed experts", packed.n_bytes, "cpu", packed.tier, where))
    if plan.cache.n_bytes:
        where = f"{plan.cache.slots:,} slots, {plan.cache.policy}"
        rows.append(_row("expert cache", plan.cache.n_bytes, "cpu", "ram", where))
    where = f"{kv.tokens:,} tokens in {kv.kv_type}"
    if plan.vram is not None:
        rows += _vram_rows(plan, plan.vram, where)
        where += ", layers that attend here"
    if plan.vram is None or plan.kv_in_ram:
        rows.append(_row("KV cache", plan.kv_in_ram, "cpu", "ram", where))
    rows += [f"  note: {note}" for note in plan.notes]
    read = plan.predicted.bytes_per_token
    rows.append(f"  one decoded token reads {read / 1e6:,.1f} MB of weights")
    return "\n".join(["Plan:", *rows])


def plan_notes(plan: Plan) -> tuple[str, ...]:
    """Every choice with its reason, then what came of it; a line each."""
    workers = plan.workers
    kv = f"context {plan.kv.context:,}: {plan.kv.why}"
    if plan.kv.tokens != plan.kv.context:
        kv += f"; {plan.kv.tokens:,} tokens of all sequences together"
    prompts = f"prompts: at most {plan.chunk:,} tokens in one step, between two of other answers"
    copies: tuple[str, ...] = ()
    if plan.is_hybrid:
        copies = (plan.hot.note("hot experts", "VRAM"),)
        ring = 0 if plan.vram is None else plan.vram.ring_experts
        prompts += (
            f"; their experts are the CPU's, or pass through a ring of {ring} in VRAM"
            if ring
            else "; their experts are the CPU's"
        )
    lines = (
        *plan.remarks,
        f"{workers.threads} thread{'s' * (workers.threads > 1)}: {workers.why}",
        f"threads: {workers.cpus_why}",
        kv,
        prompts,
        plan.packed.note,
        *copies,
        plan.cache.note("expert cache", "RAM"),
        *plan.outcome,
    )
    return tuple(shown(line, 1000) for line in lines)


def _vram_rows(plan: Plan, vram: VramSpec, kv_why: str) -> list[str]:
    """What lies in a GPU's memory, to the last byte of what was free."""
    left = vram.free - vram.reserve - vram.parts_but_kv - vram.kv
    if plan.kv_in_ram:
        kv_why += ", layers that attend here"
    slots = f"{plan.hot.slots:,} slots for hot experts, {plan.hot.policy}"
    if plan.hot.lent:
        slots += f", with {binary_amount(plan.hot.lent)} of the KV cache until it needs them"
    ring = f"a prompt's experts pass through it, {vram.ring_experts} at a time"
    device = plan.gpu or ""
    parts = (
        ("weights", vram.weights, f"all of {device} above, re-arranged"),
        ("KV cache", vram.kv, kv_why),
        *((("expert slots", vram.slots, slots),) if plan.hot.n_bytes else ()),
        *((("ring", vram.ring, ring),) if vram.ring else ()),
        ("workspace", vram.workspace, f"activations of a step of {vram.rows:,} tokens"),
        ("reserve", vram.reserve, "left to the display and the driver"),
        ("free", max(0, left), f"of {binary_amount(vram.free)} that are free now"),
    )
    return [_row(name, n_bytes, device, "vram", why) for name, n_bytes, why in parts]


def _row(name: str, n_bytes: int, device: str, tier: str, why: str) -> str:
    size = f"{n_bytes / 2**20:>10.1f} MiB"
    return f"  {shown(name):<16} {size}  {shown(device):<6} {tier:<9} {shown(why, 300)}"
