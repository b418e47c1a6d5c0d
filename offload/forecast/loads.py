"""What the CPU reads of a model that is laid out on a box, as the prediction's loads."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from offload.expert_layout import GAIN, SMALL
from offload.forecast.boxes import Box
from offload.forecast.core_rates import completed
from offload.forecast.model_facts import ModelFacts, Part
from offload.forecast.placement import Layout
from offload.prediction import Load, family_loads, kernel_rates
from offload.rates import Rates
from offload.tensor_census import FamilyName
from quant.ggml import GGMLType


def loads_of_parts(layout: Layout, rates: Rates, routed: float) -> list[Load]:
    """Of a decoded token. routed: share of its routed experts that the CPU computes.

    Those that are copied to VRAM are as the file has them.
    """
    facts, loads = layout.facts, []
    packs = layout.fits and not layout.is_cache and facts.block_bytes("routed") >= SMALL
    for part in _summed(layout.on_cpu):
        loads += _loads(facts, part, facts.share_read(part.block), 0.0)
    for part in _summed(tuple(p for p in facts.parts if p.block == "routed")):
        share = facts.share_read("routed")
        native, packed = (list(_loads(facts, part, share, p)) for p in (0.0, 1.0))
        pays = packs and _seconds(native, rates) >= GAIN * _seconds(packed, rates)
        loads += [replace(x, n_bytes=routed * x.n_bytes) for x in (packed if pays else native)]
    return loads


def prompt_loads(facts: ModelFacts) -> list[Load]:
    """Of all that a prompt goes through, as the file has it."""
    return [
        load
        for part in _summed(facts.parts)
        for load in _loads(facts, part, facts.share_read(part.block), 0.0)
    ]


def with_all_kernels(box: Box, facts: ModelFacts) -> Box:
    """The box with rates of all kernels that a model needs; what no profile has is remarked."""
    keys = {
        load.key: None
        for part in _summed(facts.parts)
        for packed in (0.0, 1.0)
        for load in _loads(facts, part, 1.0, packed)
    }
    rates, remarks = completed(box.rates, keys)
    return replace(box, rates=rates, remarks=(*box.remarks, *remarks))


def _summed(parts: tuple[Part, ...]) -> list[Part]:
    """The same without layers."""
    n_bytes: Counter[tuple[FamilyName, GGMLType]] = Counter()
    first: dict[tuple[FamilyName, GGMLType], Part] = {}
    for part in parts:
        key = part.family, part.ggml_type
        n_bytes[key] += part.n_bytes
        first.setdefault(key, part)
    return [part._replace(n_bytes=n_bytes[key], layer=None) for key, part in first.items()]


def _loads(facts: ModelFacts, part: Part, share: float, packed: float) -> list[Load]:
    config = facts.config
    return list(
        family_loads(
            config, part.family, part.ggml_type, part.n_bytes, share, packed,
            tied=config.tie_word_embeddings,
        )
    )  # fmt: skip


def _seconds(loads: list[Load], rates: Rates) -> float:
    """Of all cores, by the slower of memory and kernels."""
    total = 0.0
    for load in loads:
        kernel = kernel_rates(rates, load.key)
        work = load.n_bytes / (kernel.decode * rates.cores) if kernel else 0.0
        total += max(load.n_bytes / rates.ram, work)
    return total
