"""Predicted against measured: what a run was expected to take, what it took, and why not the same.

Rates come from this machine's profile; without one, from a shipped profile whose memory's rate is
replaced by one measured now (a fraction of a second). It is said which.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from offload.config import ModelConfig
from offload.errors import shown
from offload.expert_stats import ExpertStats
from offload.forecast.planned import SIDES, Planned, planned
from offload.hardware import BUSY, probe
from offload.known_rates import memory_now, rates_here
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.plan import Plan
from offload.prediction import Parts, predicted_parts
from offload.rate_profiles import saved
from offload.rates import Rates
from offload.stats import RunStats
from offload.tensor_census import Census
from offload.topology import OtherWork

TOKENS = 64  # decoded, before anything is compared
OFF = 0.15  # a prediction that is further off is explained
CONTEXT = 512  # tokens before the one whose time is expected
LOOK = 0.25  # seconds: are other programs busy?


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What may have made a run slower than predicted, looked at after it.

    ram: bytes/s now; others: share of the cores that other programs use; swapped: bytes of this
    process; spills: whether mapped weights exceed the memory that is free. hits: of experts, where
    they come from the disk; disk: bytes/s that it gave.
    """

    ram: float
    others: float | None = None
    swapped: int = 0
    spills: bool = False
    hits: float | None = None
    disk: float | None = None


def expected_hits(plan: Plan, config: ModelConfig) -> float:
    """The share of experts that have slots: the hits of a routing without preferences."""
    routed = plan.placements.get("routed")
    if routed is None or routed.tier != "disk":
        return 1.0
    return min(1.0, plan.cache.slots / (config.num_moe_layers * config.n_routed_experts))


def expected(config: ModelConfig, census: Census, plan: Plan, rates: Rates, context: int) -> Parts:
    """One decoded token on this machine after `context` others."""
    cache, hits = cache_bytes() or ASSUMED_CACHE, expected_hits(plan, config)
    return predicted_parts(config, census, plan, rates, context=context, cache=cache, hit_rate=hits)


def conditions(plan: Plan, swapped: int) -> Conditions:
    """Look at the machine; takes less than a second."""
    hardware, work = probe(), OtherWork()
    time.sleep(LOOK)
    others = work.share(hardware.cpu.cores)
    return Conditions(
        ram=memory_now(plan.threads),
        others=others,
        swapped=swapped,
        spills=plan.place("attention").tier == "mmap" and not plan.reads_ahead,
    )


def self_check(
    config: ModelConfig, census: Census, plan: Plan, stats: RunStats, experts: ExpertStats
) -> list[str]:
    """Lines for people after an answer; none before TOKENS tokens or where nothing is known."""
    measured = stats.parts
    if stats.decode_tokens < TOKENS or not measured:
        return []
    hardware = probe()
    found = rates_here(hardware, plan.threads)
    if found is None:
        return []
    rates, source = found
    context = stats.prompt_tokens + stats.decode_tokens // 2
    if plan.vram is not None:
        with_gpu = planned(config, census, plan, rates, hardware, context)
        if with_gpu is None or not with_gpu.sides:
            return []
        return [side_line(with_gpu, stats, source), hits_line(with_gpu, experts)]
    predicted = expected(config, census, plan, rates, context)
    measured.pop("sampling")
    lines = [table_line(predicted, measured, source)]
    if off_by(predicted, measured) > OFF:
        now = conditions(plan, stats.swapped_bytes)
        if experts.home == "disk" and experts.read_seconds:
            rate = experts.bytes["disk"] / experts.read_seconds
            now = replace(now, hits=experts.hit_rate, disk=rate)
        hits = expected_hits(plan, config)
        lines.append(explanation(predicted, measured, rates, now, hits))
    return lines


def expectation(config: ModelConfig, census: Census, plan: Plan) -> str:
    """One line: tokens per second of a short answer, and why; nothing is measured for it."""
    rates = saved(hardware := probe())
    if rates is None:
        return "expected speed: unknown before `kimi-offload doctor --measure`"
    if plan.vram is not None:
        return _with_gpu(planned(config, census, plan, rates, hardware, CONTEXT), plan.vram.gpu)
    parts = expected(config, census, plan, rates, CONTEXT)
    steps = parts.total - parts.memory - parts.kernels
    reasons = {
        "reading weights from the processor's cache"
        if parts.fits_cache
        else "memory's bandwidth": parts.memory,
        "the cores' arithmetic": parts.kernels,
        "what lies between kernels": steps,
    }
    reason = max(reasons, key=lambda name: reasons[name])
    routed = plan.placements.get("routed")
    hits = expected_hits(plan, config)
    condition = f", if {hits:.0%} of experts hit" if routed and routed.tier == "disk" else ""
    return (
        f"expected speed: {parts.tps:.2f} t/s after {CONTEXT} tokens{condition}; {reason} takes "
        f"{reasons[reason] / parts.total:.0%} (rates: measured on {rates.date})"
    )


def _with_gpu(found: Planned | None, gpu: str) -> str:
    if found is None:
        return f"expected speed: unknown, for the figures of {shown(gpu)} are not known"
    limit = max(found.seconds, key=lambda resource: found.seconds[resource])
    hits = f", if {found.hits:.0%} of experts hit" if found.sides else ""
    return (
        f"expected speed: {1 / found.total:.2f} t/s after {CONTEXT} tokens{hits}; "
        f"{found.seconds[limit] / found.total:.0%} of the time for {limit} (the card's rates: "
        f"{found.card}'s as published, not measured here)"
    )


def side_line(found: Planned, stats: RunStats, source: str) -> str:
    """Both rates of CPU and GPU together, and milliseconds by side.

    Of a pass of few rows "attention" is what the CPU waits for the GPU, and the head is the rest.
    """
    parts = stats.parts
    total = sum(parts.values()) - parts["sampling"]
    measured = {SIDES[0]: parts["experts"], SIDES[1]: parts["attention"] + parts["router"]}
    measured[SIDES[2]] = total - sum(measured.values())
    by_side = ", ".join(
        f"{side} {1e3 * found.sides[side]:.3g}/{1e3 * measured[side]:.3g}" for side in SIDES
    )
    return (
        f"predicted {1 / found.total:.2f} t/s, measured {1 / total:.2f}; the CPU waited "
        f"{measured[SIDES[1]] / total:.0%} of the time for the GPU; ms per token: {by_side} "
        f"(rates: {source}; {found.card}'s as published, not measured here)"
    )


def hits_line(found: Planned, experts: ExpertStats) -> str:
    """What VRAM had, and what was copied there, since loading."""
    hot = experts.hot or experts
    rate = f" at {hot.bytes_copied / hot.copy_seconds / 1e9:.1f} GB/s" if hot.copy_seconds else ""
    return (
        f"experts in VRAM: {found.hits:.0%} of those asked for predicted, {hot.hit_rate:.0%} "
        f"measured; {hot.bytes_copied / max(1, hot.passes) / 1e6:.1f} MB copied per pass{rate}"
    )


def off_by(predicted: Parts, measured: Mapping[str, float]) -> float:
    """How far the measured time is from the predicted one, as a share of the measured."""
    total = sum(measured.values())
    return abs(predicted.total - total) / total if total else 0.0


def table_line(predicted: Parts, measured: Mapping[str, float], source: str) -> str:
    """Both rates, and milliseconds by part."""
    total = sum(measured.values())
    parts = ", ".join(
        f"{part} {1e3 * predicted.seconds.get(part, 0.0):.3g}/{1e3 * seconds:.3g}"  # type: ignore[call-overload]
        for part, seconds in measured.items()
        if seconds > 0.01 * total
    )
    unknown = f"; no rates of {', '.join(predicted.unknown)}" if predicted.unknown else ""
    return (
        f"predicted {predicted.tps:.2f} t/s, measured {1 / total:.2f}; ms per token: {parts} "
        f"(rates: {source}{unknown})"
    )


def explanation(
    predicted: Parts,
    measured: Mapping[str, float],
    rates: Rates,
    now: Conditions,
    hits: float = 1.0,
) -> str:
    """Which part was wrong, and the likely reason; hits: expected of experts from the disk."""
    gaps = {part: s - predicted.seconds.get(part, 0.0) for part, s in measured.items()}  # type: ignore[call-overload]
    part = max(gaps, key=lambda name: abs(gaps[name]))
    word = "longer" if gaps[part] > 0 else "shorter"
    head = f"{part} took {1e3 * abs(gaps[part]):.3g} ms {word} than predicted"
    slower = now.ram / rates.ram if rates.ram else 1.0
    if part == "experts" and now.disk is not None and now.hits is not None and rates.disk:
        return (
            f"{head}: {now.hits:.0%} of experts hit where {hits:.0%} were expected, and the disk "
            f"gave {now.disk / 1e9:.2f} GB/s where the profile has {rates.disk / 1e9:.2f}"
        )
    if gaps[part] < 0:
        if slower > 1 + OFF and not predicted.fits_cache:
            return f"{head}: memory is read {slower:.2f} times as fast as in the profile; " + AGAIN
        return f"{head}: the profile was measured on a busier machine; {AGAIN}"
    if now.swapped:
        return f"{head}: parts of this process are swapped out"
    if now.spills:
        return f"{head}: the weights exceed free RAM, so parts of them come from disk"
    if now.others is not None and now.others > BUSY:
        return f"{head}: other programs use {now.others:.0%} of the cores"
    if slower < 1 - OFF and not predicted.fits_cache:
        return f"{head}: memory gives {now.ram / 1e9:.1f} GB/s now, {rates.ram / 1e9:.1f} then"
    if predicted.unknown:
        return f"{head}: {', '.join(predicted.unknown)} were not measured; {AGAIN}"
    return f"{head}; memory, other programs and swap do not explain it"


AGAIN = "`kimi-offload doctor --measure` measures again"
