"""What the next better quant and the next cheaper box would give, and the boxes of `--table`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Final, NamedTuple

from offload.amounts import amount
from offload.errors import PlanError
from offload.forecast.box_forecast import Forecast, forecast
from offload.forecast.boxes import SYSTEM, Box, BoxWish, describe
from offload.forecast.model_facts import ModelFacts
from offload.forecast.presets import next_larger, preset_named
from quant.ggml import BLOCK
from quant.ggml import GGMLType as T

_LADDER: Final = (T.IQ1_S, T.IQ2_XXS, T.Q2_K, T.Q3_K, T.Q4_K, T.Q6_K, T.Q8_0, T.F16)
_BETTER: Final = 1.2  # times the bits


class Alternative(NamedTuple):
    """Another choice and what it gives."""

    what: str
    forecast: Forecast


def alternatives(asked: Forecast) -> list[Alternative]:
    """The next better quant of the experts on this box, and this model on the next cheaper box."""
    choices = []
    if better := better_quant(asked.facts):
        choices.append((f"better quant: {better.name}", better, asked.box))
    if cheaper := cheaper_box(asked.box):
        choices.append((f"cheaper box: {cheaper.name}", asked.facts, cheaper))
    question, found = replace(asked.question, context=None), []
    for what, facts, box in choices:
        with contextlib.suppress(PlanError):  # not even what every token reads fits there
            found.append(Alternative(what, forecast(facts, box, question)))
    return found


def better_quant(facts: ModelFacts) -> ModelFacts | None:
    """The same model with the next larger type of routed experts, or the next larger preset."""
    if preset := next_larger(facts):
        return preset
    bits = facts.bits_per_expert_weight
    larger = [t for t in _LADDER if BLOCK[t].bits_per_weight >= _BETTER * bits]
    if not bits or not larger:
        return None
    chosen = larger[0]
    per_weight = BLOCK[chosen].bits_per_weight / 8
    parts = tuple(
        p._replace(ggml_type=chosen, n_bytes=round(p.n_weights * per_weight))
        if p.block == "routed"
        else p
        for p in facts.parts
    )
    return replace(facts, name=f"{chosen.name} experts", parts=parts)


def cheaper_box(box: Box) -> Box | None:
    """Half of the cards, or none; without cards half of the RAM; None below 16 GB."""
    if len(box.gpus) > 1:
        fewer = box.gpus[: len(box.gpus) // 2]
        return replace(box, gpus=fewer, name=f"{len(fewer)} of {len(box.gpus)} cards")
    if box.gpus:
        return replace(box, gpus=(), name="no GPU")
    half = (box.ram + SYSTEM) // 2
    if half < 16e9:
        return None
    return replace(box, ram=half - SYSTEM, name=f"{amount(half)} of RAM")


# name, description, preset
_KNOWN: Final = (
    ("8 x H100, FP16", BoxWish(gpus=("8xh100",), ram=1 << 40, ram_bandwidth=614e9, cores=96,
                               isa="avx512", disk=7e9), "kimi-k2.5-fp16"),
    ("8 x A100, INT4", BoxWish(gpus=("8xa100",), ram=1 << 40, ram_bandwidth=410e9, cores=64,
                               isa="avx2", disk=7e9), "kimi-k2.5-int4"),
    ("4 x A100 + 256 GB, Q2_K_XL", BoxWish(gpus=("4xa100",), ram=256 << 30, ram_bandwidth=205e9,
                                           cores=32, isa="avx2", disk=7e9),
     "kimi-k2.5-ud-q2_k_xl"),
    ("24 GB + 256 GB, TQ1_0", BoxWish(gpus=("rtx4090",), ram=256 << 30, ram_bandwidth=57.6e9,
                                      cores=16, isa="avx512", disk=7e9), "kimi-k2.5-ud-tq1_0"),
    ("24 GB + 128 GB + NVMe, TQ1_0", BoxWish(gpus=("rtx4090",), ram=128 << 30, cores=16,
                                             ram_bandwidth=89.6e9, isa="avx512", disk=7e9),
     "kimi-k2.5-ud-tq1_0"),
    ("laptop, 32 GB, TQ1_0", BoxWish(ram=32 << 30, ram_bandwidth=76.8e9, cores=8, isa="avx2",
                                     disk=3.5e9), "kimi-k2.5-ud-tq1_0"),
)  # fmt: skip
_SEEN: Final = {
    "24 GB + 256 GB, TQ1_0": "others report 1 to 2 t/s of other programs there",
}


class Verdict(NamedTuple):
    """A line of the table."""

    name: str
    forecast: Forecast
    words: str


def known_boxes() -> list[Verdict]:
    """The boxes that people ask about, each with its verdict."""
    verdicts = []
    for name, wish, preset in _KNOWN:
        found = forecast(preset_named(preset), describe(wish))
        words = verdict(found)
        verdicts.append(Verdict(name, found, "; ".join(filter(None, (words, _SEEN.get(name))))))
    return verdicts


def verdict(found: Forecast) -> str:
    """Whether and where it fits, in words."""
    layout, box, facts = found.layout, found.box, found.facts
    need = facts.n_bytes + layout.kv_bytes
    where = f"{amount(need)} with {layout.context:,} tokens"
    has = []
    if box.gpus:
        has.append(f"{amount(box.vram)} of VRAM")
    has.append(f"{amount(box.ram)} of RAM")
    if layout.is_all_vram:
        left = box.vram - need
        barely = ", barely" if left < 0.05 * box.vram else ""
        return f"fits in VRAM{barely}: {where}, {amount(box.vram)} of VRAM can be used"
    if layout.fits:
        hits = layout.vram_hits.expected
        experts = f"; {hits:.0%} of experts from VRAM" if layout.gpu_slots else ""
        return f"fits in {' and '.join(has) if not layout.is_cache else 'RAM'}: {where}{experts}"
    missing = layout.disk_experts * facts.expert_bytes + layout.overflow
    has_all = " and ".join(has)
    return f"does not fit: {where}, {has_all}; {amount(missing)} stay on disk, read again and again"
