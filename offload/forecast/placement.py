"""Where a model goes on a box: what is read by every token first, experts in what is left.

With one card by the planner's own functions (one_card.py); several are imagined to share all of
it, without a workspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from offload.amounts import amount
from offload.errors import PlanError
from offload.forecast.boxes import Box
from offload.forecast.hits import Hits, cache_hits, fixed_hits
from offload.forecast.model_facts import ModelFacts, Part
from offload.forecast.one_card import (
    OneCard,
    budget_of,
    one_card,
    room_of_context,
)
from offload.plan import BlockName, KVType
from offload.plan_options import CHUNK

Place = Literal["vram", "ram", "disk"]
SHORTEST: Final = 1024  # tokens of a KV cache that is worth having in VRAM
GPU_CHUNK: Final = 4096  # prompt tokens in one step of several cards
# what leaves VRAM first when it is short; attention goes layer by layer, with its KV cache
_LEAVES_FIRST: Final[tuple[BlockName, ...]] = ("head", "attention", "dense", "shared", "router")


class Placed(NamedTuple):
    """What goes where. n_bytes: stored there; read: bytes that a decoded token reads there."""

    what: str
    place: Place
    n_bytes: float
    read: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model on a box. Bytes; experts and slots are counted over all layers.

    on_gpu, on_cpu: what every token reads, by who computes it. overflow: bytes of it that not even
    RAM has room for. context: tokens of the KV cache; gpu_kv: share of the layers that have theirs
    in VRAM. gpu_slots: experts in VRAM; is_cache: they are copies of experts in RAM, and change.
    ram_experts: those in RAM; disk_experts: those that are in neither. chunk: tokens of a prompt
    in one step, which takes `step` bytes of VRAM. lent: of the slots' bytes, by the KV cache as
    long as it does not need them.
    """

    facts: ModelFacts
    on_gpu: tuple[Part, ...]
    on_cpu: tuple[Part, ...]
    context: int
    kv_bytes: int
    gpu_kv: float
    gpu_slots: int
    is_cache: bool
    ram_experts: int
    disk_experts: int
    overflow: float
    chunk: int
    step: int = 0
    lent: int = 0

    @property
    def fits(self) -> bool:
        """Whether nothing is left on the disk."""
        return not self.disk_experts and not self.overflow

    @property
    def slots(self) -> int:
        """Experts in VRAM, or in RAM before a disk; 0 where all lie in RAM."""
        return self.gpu_slots or self.ram_experts * (self.disk_experts > 0)

    @property
    def is_all_vram(self) -> bool:
        """Whether everything that is multiplied lies in VRAM."""
        experts = self.gpu_slots == self.facts.n_experts
        return bool(self.on_gpu) and experts and all(p.block == "embedding" for p in self.on_cpu)

    @property
    def vram_hits(self) -> Hits:
        """Share of the experts asked for that VRAM holds."""
        if not self.gpu_slots:
            return Hits(0.0, 0.0, 0.0)
        share = self.gpu_slots / self.facts.n_experts
        return cache_hits(share) if self.is_cache else fixed_hits(share)

    @property
    def ram_hits(self) -> Hits:
        """Share of those that VRAM does not hold which RAM has."""
        outside = self.ram_experts + self.disk_experts
        if not self.disk_experts:
            return Hits(1.0, 1.0, 1.0)
        return cache_hits(self.ram_experts / outside)


def place(facts: ModelFacts, box: Box, context: int, kv_type: KVType) -> Layout:
    """Put a model and a KV cache of `context` tokens on a box."""
    if len(box.gpus) == 1 and (planned := as_planned(facts, box, context, kv_type)) is not None:
        return planned
    kv = context * facts.kv_bytes(kv_type)
    layers = facts.config.num_layers
    fixed = [part for part in facts.parts if part.block != "routed"]
    room = box.vram if len(box.gpus) > 1 else 0
    resident, kv_layers, vram = _resident(fixed, kv / layers, layers, room)
    staying = [part for part in fixed if part not in resident]
    expert, experts = facts.expert_bytes, facts.n_experts
    routed = expert * experts
    ram = box.ram - _bytes(staying) - kv * (1 - kv_layers / layers)
    slots = min(experts, int(vram / expert + 1e-6)) if expert else 0
    outside = experts - slots
    all_in_ram = outside and ram >= routed
    is_cache = bool(slots and all_in_ram)
    in_ram = experts if all_in_ram else min(outside, max(0, int(ram / expert))) if outside else 0
    on_disk = 0 if all_in_ram else outside - in_ram
    return Layout(
        facts=facts,
        on_gpu=tuple(resident),
        on_cpu=tuple(staying),
        context=context,
        kv_bytes=kv,
        gpu_kv=kv_layers / layers,
        gpu_slots=slots,
        is_cache=is_cache,
        ram_experts=in_ram,
        disk_experts=on_disk,
        overflow=max(0.0, -ram),
        chunk=GPU_CHUNK if resident else CHUNK,
    )


def as_planned(facts: ModelFacts, box: Box, context: int, kv_type: KVType) -> Layout | None:
    """On one card, as `offload.make_plan` would; None: not one block fits there."""
    budget = budget_of(facts, box.gpus[0], kv_type)
    card = one_card(budget, context, from_disk=False)
    if card is None:
        return None
    in_ram = _room_in_ram(facts, box, context, kv_type, card)
    if not card.is_whole and in_ram < facts.n_experts:
        card = one_card(budget, context, from_disk=True) or card
        in_ram = _room_in_ram(facts, box, context, kv_type, card)
    experts = facts.n_experts
    outside = 0 if card.is_whole else experts
    held = max(0, min(outside, in_ram))
    fixed = [part for part in facts.parts if part.block != "routed"]
    return Layout(
        facts=facts,
        on_gpu=tuple(part for part in fixed if (part.block, part.layer) in card.share),
        on_cpu=tuple(part for part in fixed if (part.block, part.layer) not in card.share),
        context=context,
        kv_bytes=context * facts.kv_bytes(kv_type),
        gpu_kv=card.gpu_kv,
        gpu_slots=experts if card.is_whole else card.slots,
        is_cache=bool(card.slots) and not card.is_whole,
        ram_experts=held,
        disk_experts=outside - held,
        overflow=max(0.0, -in_ram * facts.expert_bytes),
        chunk=card.chunk,
        step=card.step,
        lent=card.lent,
    )


def _room_in_ram(facts: ModelFacts, box: Box, context: int, kv_type: KVType, card: OneCard) -> int:
    """Experts that fit beside what stays there; below 0: not even that does."""
    staying = sum(
        p.n_bytes
        for p in facts.parts
        if p.block != "routed" and (p.block, p.layer) not in card.share
    )
    kv = context * facts.kv_bytes(kv_type) * (1 - card.gpu_kv)
    return math.floor((box.ram - staying - kv) / max(1.0, facts.expert_bytes))


def _resident(
    fixed: list[Part], kv_layer: float, layers: int, vram: int
) -> tuple[list[Part], int, float]:
    """(parts in VRAM, layers whose KV cache is there, bytes of VRAM that are left)."""
    if not vram:
        return [], 0, 0.0
    here = [part for part in fixed if part.block != "embedding"]
    kept = layers
    for block in _LEAVES_FIRST:
        leaving = [part for part in here if part.block == block]
        for layer in sorted({part.layer or 0 for part in leaving}, reverse=True):
            if _bytes(here) + kept * kv_layer <= vram:
                break
            here = [p for p in here if p.block != block or (p.layer or 0) != layer]
            kept -= block == "attention"
    return here, kept, max(0.0, vram - _bytes(here) - kept * kv_layer)


def _bytes(parts: Iterable[Part]) -> int:
    return sum(part.n_bytes for part in parts)


def placed(layout: Layout, box: Box) -> list[Placed]:
    """The layout for people: every family with its place and the reason."""
    facts = layout.facts
    rows: list[Placed] = []
    sides: tuple[tuple[Place, tuple[Part, ...], float], ...] = (
        ("vram", layout.on_gpu, layout.gpu_kv),
        ("ram", layout.on_cpu, 1 - layout.gpu_kv),
    )
    for where, parts, _ in sides:
        for block in dict.fromkeys(part.block for part in parts):
            mine = [part for part in parts if part.block == block]
            layers = len({part.layer for part in mine})
            name = f"{block} of {layers} layers" if block in ("attention", "shared") else block
            read = _bytes(mine) * facts.share_read(block)
            why = _why(block, where == "vram", bool(box.gpus), facts.config.tie_word_embeddings)
            rows.append(Placed(name, where, _bytes(mine), read, why))
    rows += _experts(layout)
    for where, _, share in sides:
        if share > 0:
            why = f"{layout.context:,} tokens, beside the attention"
            rows.append(Placed("KV cache", where, layout.kv_bytes * share, 0.0, why))
    if layout.step:
        why = f"of a prompt, {layout.chunk:,} tokens at most, with the ring of its experts"
        rows.append(Placed("steps", "vram", layout.step, 0.0, why))
    return rows


def _why(block: BlockName, in_vram: bool, has_gpu: bool, is_tied: bool) -> str:
    if block == "embedding" and not is_tied:
        return "one row of it is read"
    if in_vram:
        return "read by every token, so in the fastest memory"
    return "VRAM is short" if has_gpu else "read by every token"


def _experts(layout: Layout) -> list[Placed]:
    facts, expert = layout.facts, layout.facts.expert_bytes
    routed = facts.bytes_read("routed")
    vram, ram = layout.vram_hits.expected, layout.ram_hits.expected
    rows = []
    if layout.gpu_slots:
        name = "expert slots" if layout.is_cache else "routed experts"
        why = f"{layout.gpu_slots:,} of {facts.n_experts:,} experts, what VRAM has left"
        if layout.lent:
            why += f", {amount(layout.lent)} more until the KV cache needs them"
        n_bytes = layout.gpu_slots * expert - layout.lent
        rows.append(Placed(name, "vram", n_bytes, routed * vram, why))
    if layout.ram_experts:
        n_bytes = layout.ram_experts * expert
        why = "all of them fit" if layout.ram_experts == facts.n_experts else "those not in VRAM"
        why = "slots, what RAM has left" if layout.disk_experts else why
        rows.append(Placed("routed experts", "ram", n_bytes, routed * (1 - vram), why))
    if layout.disk_experts:
        n_bytes = layout.disk_experts * expert
        why = f"RAM is {amount(n_bytes + layout.overflow)} too small"
        read = routed * (1 - vram) * (1 - ram)
        rows.append(Placed("routed experts", "disk", n_bytes, read, why))
    return rows


def longest_context(facts: ModelFacts, box: Box, kv_type: KVType) -> int:
    """Tokens whose KV cache fits beside what every token reads; at most the trained context.

    With cards in VRAM, without slots unless all experts fit there; else, and where a card is too
    small, in RAM, beside all experts or, where they do not fit, those that one token asks for.
    """
    routed, tied = facts.block_bytes("routed"), facts.config.tie_word_embeddings
    embedding = facts.block_bytes("embedding")
    fixed = facts.n_bytes - routed - embedding
    if len(box.gpus) == 1 and (found := room_of_context(facts, box.gpus[0], kv_type)) >= SHORTEST:
        return found
    room = (box.vram if len(box.gpus) > 1 else 0) - fixed - embedding * tied
    room -= routed if room >= routed else 0
    if room < SHORTEST * facts.kv_bytes(kv_type):
        room = box.ram - fixed - embedding
        room -= round(routed if room >= routed else facts.bytes_read("routed"))
    return max(0, min(facts.config.context_length, room // facts.kv_bytes(kv_type)))


def check_context(facts: ModelFacts, box: Box, context: int, kv_type: KVType) -> None:
    """PlanError unless the KV cache finds room beside what every token reads, somewhere."""
    per_token = facts.kv_bytes(kv_type)
    fixed = facts.n_bytes - facts.block_bytes("routed")
    room = max(0, box.vram + box.ram - fixed) // per_token
    if not room:
        raise PlanError(
            f"what every token reads ({amount(fixed)}) does not fit into {box.name}; it needs more "
            "RAM (--ram), or a smaller quant"
        )
    if context > room:
        raise PlanError(
            f"a context of {context:,} tokens needs {amount(context * per_token)} for its KV cache "
            f"({kv_type}), but beside what every token reads there is room for {room:,} tokens on "
            f"{box.name}: give --context {room:,} or less, or --kv-type q8_0"
        )
