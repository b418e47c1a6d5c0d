"""How many slots for hot experts VRAM has room for: a part of making a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.errors import PlanError
from offload.gpu_share import ExpertSize
from offload.plan import ExpertSlots
from offload.plane_sizes import ALIGN
from offload.slot_budget import Division, LayerExperts, divide
from offload.tiering import COPIES, TierOptions, without_cliff

BY_LAYER = "layer-lru"  # the policy, where it is left to us


def hot_slots(
    options: TierOptions,
    config: ModelConfig,
    layers: Mapping[int, ExpertSize],
    *,
    room: int,
    lendable: int,
) -> ExpertSlots:
    """Slots in `room` bytes of VRAM and in those that the KV cache lends; PlanError.

    An automatic size is as large as fits, and none if not every layer gets a slot.
    """
    sizes = slot_sizes(config, layers)
    room = room // ALIGN * ALIGN
    there = room + lendable if room >= 0 else 0
    least = sum(size.slot for size in layers.values())
    most = config.n_routed_experts * least
    if options.cache == "off":
        return ExpertSlots(why="off, as asked")
    n_bytes, why = there, "what is left of VRAM"
    if isinstance(options.cache, int):
        n_bytes, why = options.cache, "as asked"
        smallest = min(size.slot for size in layers.values())
        if not smallest <= n_bytes <= there:
            raise PlanError(
                f"--expert-cache {binary_amount(n_bytes)}: {binary_amount(there)} of VRAM are free "
                f"for it, an expert takes {binary_amount(smallest)}"
            )
    elif n_bytes < least:
        return ExpertSlots(
            why=f"off: {binary_amount(there)} of VRAM are left, an expert of each of "
            f"{len(layers)} layers takes {binary_amount(least)}"
        )
    n_bytes = min(n_bytes, most) // ALIGN * ALIGN
    division = divide(n_bytes, sizes, ring=False)
    policy, cliff = without_cliff(options, options.policy or BY_LAYER, division)
    lent = max(0, n_bytes - max(0, room))
    if lent:
        why += f", {binary_amount(lent)} of it until the KV cache needs them"
    return ExpertSlots(
        n_bytes=n_bytes,
        slots=division.slots,
        policy=policy,
        copies=COPIES,
        profile=None if options.profile is None else str(options.profile),
        lent=lent,
        why=f"{why}; {by_layer(division)}{cliff}",
    )


def slot_sizes(config: ModelConfig, layers: Mapping[int, ExpertSize]) -> dict[int, LayerExperts]:
    """What `divide` needs."""
    return {
        layer: LayerExperts(
            n_experts=config.n_routed_experts,
            slot_bytes=size.slot,
            top_k=config.num_experts_per_tok,
        )
        for layer, size in layers.items()
    }


def by_layer(division: Division) -> str:
    """Slots of a layer, in words."""
    counts = [group.slots / len(group.layers) for group in division.groups]
    low, high = int(min(counts)), -int(-max(counts) // 1)
    layers = sum(len(group.layers) for group in division.groups)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} for each of {layers} layers"
