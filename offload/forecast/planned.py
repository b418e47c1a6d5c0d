"""What a plan with a GPU should give on this machine: the forecast's formula on what the plan says.

The CPU's rates are this machine's; a GPU's are its maker's, by its name, for nothing of it is
measured here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from offload.config import ModelConfig
from offload.forecast.boxes import BoxWish, of_threads, this_machine
from offload.forecast.gpus import card_of
from offload.forecast.loads import with_all_kernels
from offload.forecast.model_facts import ModelFacts, Part
from offload.forecast.placement import Layout
from offload.forecast.seconds import Resource, timeline_costs, token_seconds
from offload.plan import BlockName, Plan
from offload.rates import Rates
from offload.tensor_census import BLOCKS, Census

if TYPE_CHECKING:
    from offload.hardware import HardwareProfile

Side = str
SIDES: Final = ("experts on the CPU", "waiting for the GPU", "rest")


class Planned(NamedTuple):
    """A decoded token. seconds: by resource; sides: by SIDES, {} where the GPU has everything.

    hits: share of the experts that VRAM is expected to have. card: whose figures they are.
    """

    seconds: dict[Resource, float]
    sides: dict[Side, float]
    hits: float
    card: str

    @property
    def total(self) -> float:
        """Seconds of the token."""
        return sum(self.seconds.values())


def planned(
    config: ModelConfig,
    census: Census,
    plan: Plan,
    rates: Rates,
    hardware: HardwareProfile,
    context: int,
) -> Planned | None:
    """One token after `context` others; None: the figures of the plan's card are not known."""
    card = None if plan.vram is None else card_of(plan.vram.gpu)
    if card is None:
        return None
    facts = facts_of_census(config, census)
    layout = layout_of_plan(facts, census, plan)
    here = this_machine(hardware, rates, BoxWish())
    box = replace(here, gpus=(card,), rates=of_threads(rates, plan.threads))
    box = with_all_kernels(box, facts)
    seconds = token_seconds(layout, box, context)
    sides: dict[Side, float] = {}
    if facts.n_experts and not layout.is_all_vram:
        costs = timeline_costs(layout, box, context)
        before = costs.start + costs.attention + costs.router + costs.post + costs.merge
        missed = config.num_experts_per_tok * (1 - layout.vram_hits.expected)
        waiting = config.num_moe_layers * (before + missed * costs.part)
        rest = costs.head + costs.step
        sides = dict(zip(SIDES, (sum(seconds.values()) - waiting - rest, waiting, rest),
                         strict=True))  # fmt: skip
    return Planned(seconds, sides, layout.vram_hits.expected, card.name)


def facts_of_census(config: ModelConfig, census: Census) -> ModelFacts:
    """Of all layers together, without norms."""
    parts = []
    for family in census.families:
        if (block := BLOCKS.get(family.name)) is None:
            continue
        for kind, count in family.types.items():
            weights = round(family.n_parameters * count.n_bytes / max(1, family.n_bytes))
            parts.append(Part(block, None, kind, count.n_bytes, weights, family.name))
    return ModelFacts(name=config.name, config=config, parts=tuple(parts))


def layout_of_plan(facts: ModelFacts, census: Census, plan: Plan) -> Layout:
    """The same words for what the plan has decided."""
    config = facts.config
    share = {block: _share(census, plan, block) for block in census.block_bytes}
    fixed = [part for part in facts.parts if part.block != "routed"]
    sides = [
        tuple(part._replace(n_bytes=round(part.n_bytes * s)) for part, s in shares if s > 0)
        for shares in (
            [(part, share.get(part.block, 0.0)) for part in fixed],
            [(part, 1 - share.get(part.block, 0.0)) for part in fixed],
        )
    ]
    experts = facts.n_experts
    is_cache = plan.hot.n_bytes > 0
    slots = plan.hot.slots if is_cache else round(experts * share.get("routed", 0.0))
    outside = experts if is_cache else experts - slots
    is_on_disk = bool(experts) and plan.place("routed").tier == "disk"
    in_ram = min(outside, plan.cache.slots) if is_on_disk else outside
    return Layout(
        facts=facts,
        on_gpu=sides[0],
        on_cpu=sides[1],
        context=plan.kv.context,
        kv_bytes=plan.kv.context * facts.kv_bytes(plan.kv.kv_type),
        gpu_kv=sum(
            plan.place("attention", i).tier == "vram" for i in range(config.num_layers)
        ) / config.num_layers,
        gpu_slots=slots,
        is_cache=is_cache,
        ram_experts=in_ram,
        disk_experts=outside - in_ram,
        overflow=0.0,
        chunk=plan.chunk,
    )  # fmt: skip


def _share(census: Census, plan: Plan, block: BlockName) -> float:
    """Of a block's bytes, those that lie in VRAM."""
    sizes = {layer: n for (name, layer), n in census.blocks.items() if name == block}
    there = sum(n for layer, n in sizes.items() if plan.place(block, layer).tier == "vram")
    return there / max(1, sum(sizes.values()))
