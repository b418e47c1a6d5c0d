"""The published files of the Kimi family, by name: their sizes as published, their types nearly.

A file called TQ1_0 is rarely ternary: what fills the published size beyond attention, shared
experts and head is counted as routed experts of the type that most of them have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from offload.amounts import amount
from offload.bench.shapes import KIMI_K25, TypeChoice
from offload.errors import UnsupportedError, shown
from offload.forecast.model_facts import ModelFacts, facts_of_shape
from quant.ggml import GGMLType as T


class Preset(NamedTuple):
    """A published file: bytes, and its types as far as they are known."""

    n_bytes: float
    types: TypeChoice


def _mix(gate_up: T, down: T | None = None, rest: T = T.Q4_K, head: T = T.Q6_K) -> TypeChoice:
    return TypeChoice(
        gate_up=gate_up, down=down or gate_up, attention=rest, shared=rest, embedding=rest,
        head=head,
    )  # fmt: skip


PRESETS: Final[dict[str, Preset]] = {
    "kimi-k2.5-ud-tq1_0": Preset(240e9, _mix(T.IQ1_S, T.IQ2_XXS)),
    "kimi-k2.7-code-1bit": Preset(310e9, _mix(T.IQ2_XS)),
    "kimi-k2.6-ud-q2_k_xl": Preset(340e9, _mix(T.Q2_K)),
    "kimi-k2.5-ud-q2_k_xl": Preset(375e9, _mix(T.Q2_K, T.Q3_K)),
    "kimi-k2.6-ud-q4_k_xl": Preset(584e9, _mix(T.Q4_0, rest=T.Q8_0, head=T.Q8_0)),
    "kimi-k2.6-ud-q8_k_xl": Preset(595e9, _mix(T.Q4_0, rest=T.BF16, head=T.BF16)),
    "kimi-k2.7-code-ud-q8_k_xl": Preset(605e9, _mix(T.Q4_0, rest=T.BF16, head=T.BF16)),
    "kimi-k2.5-int4": Preset(630e9, _mix(T.Q4_0, rest=T.BF16, head=T.BF16)),
    "kimi-k2.5-fp16": Preset(2.05e12, _mix(T.F16, rest=T.F16, head=T.F16)),
}  # by size


def preset_named(name: str) -> ModelFacts:
    """The model behind --preset; UnsupportedError lists the known ones."""
    try:
        preset = PRESETS[name.strip().lower()]
    except KeyError:
        known = ", ".join(PRESETS)
        raise UnsupportedError(f"unknown preset {shown(name)!r}; known ones: {known}") from None
    facts = facts_of_shape(KIMI_K25, preset.types)
    routed = facts.block_bytes("routed")
    scale = 1 + (preset.n_bytes - facts.n_bytes) / routed
    parts = tuple(
        part._replace(n_bytes=round(part.n_bytes * scale)) if part.block == "routed" else part
        for part in facts.parts
    )
    types = "/".join(dict.fromkeys((preset.types.gate_up.name, preset.types.down.name)))
    remark = (
        f"{amount(preset.n_bytes)} is the published size; what is not attention, shared experts, "
        f"head or embedding is counted as {types} experts"
    )
    return replace(facts, name=name.strip().lower(), parts=parts, remarks=(remark,))


def next_larger(facts: ModelFacts) -> ModelFacts | None:
    """The next preset by size of at least 1.2 times the bytes; None after the last one."""
    names = [n for n, preset in PRESETS.items() if preset.n_bytes >= 1.2 * facts.n_bytes]
    return preset_named(names[0]) if names and facts.name in PRESETS else None
