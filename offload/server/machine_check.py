"""Predicted against measured, part by part, for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from offload.config import ModelConfig
from offload.forecast.planned import SIDES, planned
from offload.hardware import BUSY, HardwareProfile, probe
from offload.known_rates import rates_here
from offload.plan import Plan
from offload.prediction import Parts
from offload.rates import Rates
from offload.self_check import (
    CONTEXT,
    OFF,
    Conditions,
    expected,
    expected_hits,
    explanation,
    off_by,
)
from offload.stats import RunStats
from offload.tensor_census import Census

LEAST = 16  # decoded tokens of an answer that is compared
LATER = "this machine's rates are looked up as soon as no answer runs"
UNKNOWN = "no rates of this machine are known: `kimi-offload doctor --measure` measures them"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRates:
    """Of this machine. source: where they are from."""

    rates: Rates
    source: str
    hardware: HardwareProfile


def find_rates(threads: int) -> KnownRates | None:
    """Reads memory for a moment where the machine was never measured: not beside an answer."""
    hardware = probe()
    found = rates_here(hardware, threads)
    return None if found is None else KnownRates(rates=found[0], source=found[1], hardware=hardware)


def check(
    config: ModelConfig,
    census: Census,
    plan: Plan,
    known: KnownRates | None,
    stats: RunStats,
    *,
    conditions: Conditions,
    unknown: str = UNKNOWN,
) -> dict[str, Any]:
    """Seconds of a decoded token by part, both ways; stats: of the answer that is compared.

    conditions: while it ran. unknown: why rates are not known, if they are not. Told: why, what
    made it slower, if that is known; missing, why something is not told.
    """
    is_measured = stats.decode_tokens >= LEAST
    context = stats.prompt_tokens + stats.decode_tokens // 2 if is_measured else CONTEXT
    measured = dict(stats.parts) if is_measured else {}
    measured.pop("sampling", None)
    predicted: Mapping[str, float] | None = None
    total = why = None
    if known is not None and plan.vram is not None:
        found = planned(config, census, plan, known.rates, known.hardware, context)
        total = None if found is None else found.total
        predicted = None if found is None else found.sides
        measured = _by_side(measured) if predicted else {}
    elif known is not None:
        parts = expected(config, census, plan, known.rates, context)
        predicted, total = {str(part): s for part, s in parts.seconds.items()}, parts.total
        why = _why(parts, measured, known.rates, conditions, expected_hits(plan, config))
    names = [name for name in predicted or measured if _counts(name, predicted, measured)]
    return {
        "source": f"rates: {known.source}" if known is not None else None,
        "compared_tokens": stats.decode_tokens if is_measured else 0,
        "predicted_tps": 1 / total if total else None,
        "measured_tps": stats.decode_tps if is_measured else None,
        "parts": [
            {
                "part": name,
                "predicted": None if predicted is None else predicted.get(name, 0.0),
                "measured": measured.get(name),
            }
            for name in names
        ],
        "why": why,
        "missing": _missing(plan, known, total, is_measured, unknown),
    }


def _counts(
    name: str, predicted: Mapping[str, float] | None, measured: Mapping[str, float]
) -> bool:
    """Whether a part takes a hundredth of the time by either account."""
    return any(
        parts.get(name, 0.0) > 0.01 * sum(parts.values()) for parts in (predicted or {}, measured)
    )


def _by_side(parts: Mapping[str, float]) -> dict[str, float]:
    """What `self_check.side_line` makes of the parts."""
    if not parts:
        return {}
    own = {SIDES[0]: parts["experts"], SIDES[1]: parts["attention"] + parts["router"]}
    return own | {SIDES[2]: sum(parts.values()) - sum(own.values())}


def _why(
    predicted: Parts, measured: Mapping[str, float], rates: Rates, now: Conditions, hits: float
) -> str | None:
    """The likely reason, if it can be told without measuring the machine beside answers."""
    has_cause = bool(now.swapped or now.spills or now.disk or (now.others or 0.0) > BUSY)
    is_slower = sum(measured.values()) > predicted.total
    if not has_cause or not is_slower or off_by(predicted, measured) <= OFF:
        return None
    return explanation(predicted, measured, rates, replace(now, ram=rates.ram), hits)


def _missing(
    plan: Plan, known: KnownRates | None, total: float | None, is_measured: bool, unknown: str
) -> str | None:
    if known is None:
        return unknown
    if total is None and plan.vram is not None:
        return f"the figures of {plan.vram.gpu} are not known"
    if not is_measured:
        return f"measured once an answer has {LEAST} tokens"
    return None
