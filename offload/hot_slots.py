"""How many slots for hot experts VRAM has room for: a part of making a plan. Pure.

    KV cache .. what it lends | slots .. | stage

The stage is of one expert on its way into a slot (vram_tier.py), and never lent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.errors import PlanError
from offload.gpu_share import taken
from offload.plan import ExpertSlots, VramSpec
from offload.plane_sizes import ALIGN
from offload.slot_budget import Division, LayerExperts, divide
from offload.tensor_census import ExpertSize
from offload.tiering import COPIES, TierOptions, without_cliff
from offload.vram import table_bytes

BY_LAYER = "layer-lru"  # the policy, where it is left to us


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRoom:
    """Room for slots of these layers' experts. beside: bytes next to the KV cache; lendable: of it.

    beside may be negative.
    """

    config: ModelConfig
    layers: Mapping[int, ExpertSize]
    beside: int
    lendable: int

    @classmethod
    def in_vram(
        cls, config: ModelConfig, layers: Mapping[int, ExpertSize], vram: VramSpec, context: int
    ) -> SlotRoom:
        """What is left of VRAM; vram: all but slots."""
        return cls(
            config=config,
            layers=layers,
            beside=(vram.limit - taken(vram)) // ALIGN * ALIGN,
            lendable=vram.kv - table_bytes(context),
        )

    @property
    def stage(self) -> int:
        """Bytes of the stage."""
        return max(size.stage for size in self.layers.values())

    @property
    def there(self) -> int:
        """Bytes that slots and stage can have at most."""
        return self.beside + self.lendable if self.beside >= self.stage else 0

    @property
    def least(self) -> int:
        """Of one slot and the stage."""
        return min(size.slot for size in self.layers.values()) + self.stage

    @property
    def one_each(self) -> int:
        """Of one slot for each layer and the stage."""
        return sum(size.slot for size in self.layers.values()) + self.stage

    @property
    def most(self) -> int:
        """Of slots for all experts and the stage."""
        return self.config.n_routed_experts * (self.one_each - self.stage) + self.stage

    def division(self, n_bytes: int) -> Division:
        """Of so many bytes, the stage among them, among the layers."""
        top_k = self.config.num_experts_per_tok
        sizes = {
            layer: LayerExperts(
                n_experts=self.config.n_routed_experts, slot_bytes=size.slot, top_k=top_k
            )
            for layer, size in self.layers.items()
        }
        return divide(max(0, n_bytes - self.stage), sizes, ring=False)

    def lent(self, n_bytes: int, asked: int = 0) -> int:
        """How much of n_bytes the KV cache lends: as much as is asked for, or as it takes."""
        return max(min(asked, n_bytes - self.stage, self.lendable), n_bytes - self.beside)


def hot_slots(options: TierOptions, room: SlotRoom) -> ExpertSlots:
    """As large as fits, or as is asked for; PlanError.

    An automatic size is none at all if not every layer gets a slot.
    """
    if options.cache == "off":
        return ExpertSlots(why="off, as asked")
    n_bytes, why = room.there, "what is left of VRAM"
    if isinstance(options.cache, int):
        n_bytes, why = options.cache, "as asked"
        if not room.least <= n_bytes <= room.there:
            raise PlanError(
                f"--expert-cache {binary_amount(n_bytes)}: {binary_amount(room.there)} of VRAM are "
                f"free for it, one slot takes {binary_amount(room.least)}"
            )
    elif n_bytes < room.one_each:
        return ExpertSlots(
            why=f"off: {binary_amount(n_bytes)} of VRAM are left, a slot for each of "
            f"{len(room.layers)} layers takes {binary_amount(room.one_each)}"
        )
    n_bytes = min(n_bytes, room.most) // ALIGN * ALIGN
    division = room.division(n_bytes)
    policy, cliff = without_cliff(options, options.policy or BY_LAYER, division)
    if lent := room.lent(n_bytes):
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


def fitting(hot: ExpertSlots, room: SlotRoom) -> ExpertSlots:
    """Slots of a plan, as far as there is room; PlanError if they are none, whatever the room."""
    if hot.n_bytes < room.least:
        raise PlanError(
            f"hot.n_bytes: {hot.n_bytes:,}: one slot takes {room.least:,}; 0 is for none"
        )
    n_bytes = min(hot.n_bytes, room.most, room.there) // ALIGN * ALIGN
    if slots := room.division(n_bytes).slots:
        return replace(hot, n_bytes=n_bytes, slots=slots, lent=room.lent(n_bytes, hot.lent))
    return without_slots(
        hot,
        f"{binary_amount(room.there)} of VRAM are left, one slot takes {binary_amount(room.least)}",
    )


def without_slots(hot: ExpertSlots, why: str) -> ExpertSlots:
    """The same policy with no slots."""
    return replace(hot, n_bytes=0, slots=0, lent=0, why=f"off: {why}")


def by_layer(division: Division) -> str:
    """Slots of a layer, in words."""
    counts = [group.slots / len(group.layers) for group in division.groups]
    low, high = int(min(counts)), -int(-max(counts) // 1)
    layers = sum(len(group.layers) for group in division.groups)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} for each of {layers} layers"
