"""What an engine knows of itself between two steps: counters and experts, copied."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offload.engine import Engine
from offload.expert_stats import ExpertStats
from offload.plan import Plan
from offload.self_check import Conditions
from offload.stats import RunStats

Array = np.ndarray
WIDE = 1 << 16  # uses from which on they are sent as uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Of L layers with E experts each. uses (L, E) int64; vram, slots (L, E) bool or None: in none.

    hits, misses: by layer, of the fastest slots there are. home: where the others lie.
    """

    layers: tuple[int, ...]
    uses: Array
    vram: Array | None
    slots: Array | None
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    home: str

    @property
    def asked(self) -> int:
        """Uses of all experts."""
        return int(self.uses.sum())

    def json(self, seen: int) -> dict[str, Any]:
        """As the page reads it; seen: `asked` of what it has, so that only news are sent."""
        told: dict[str, Any] = {"asked": self.asked}
        if seen == self.asked:
            return told
        width = 16 if not self.uses.size or self.uses.max() < WIDE else 32
        return told | {
            "layers": self.layers,
            "per_layer": self.uses.shape[1],
            "home": self.home,
            "width": width,
            "uses": _base64(self.uses.astype(f"<u{width // 8}")),
            "vram": None if self.vram is None else _base64(np.packbits(self.vram, axis=1)),
            "slots": None if self.slots is None else _base64(np.packbits(self.slots, axis=1)),
            "hits": self.hits,
            "misses": self.misses,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look. bytes_read: of weights, by kernels; routed: of experts, by tier, where told.

    hits, disk: of experts that come from the disk, the share that lay in slots, and bytes/s.
    latest: the stats of the answer begun last, as they are now. lines: what tiers decided.
    """

    plan: Plan
    bytes_read: int
    routed: Mapping[str, int]
    experts: Experts | None
    hits: float | None
    disk: float | None
    latest: RunStats
    off_because: str
    lines: tuple[str, ...]

    def conditions(self, others: float | None) -> Conditions:
        """What may have slowed the latest answer; of memory's rate nothing is known (0).

        others: share of the cores that other programs used.
        """
        return Conditions(
            ram=0.0,
            others=others,
            swapped=self.latest.swapped_bytes,
            spills=self.plan.place("attention").tier == "mmap" and not self.plan.reads_ahead,
            hits=self.hits,
            disk=self.disk,
        )


def look(engine: Engine) -> Look:
    """By the thread that steps the engine, between two steps; well below a millisecond."""
    stats, plan = engine.expert_stats, engine.plan
    hot = stats.hot
    tiers = [stats] if hot is None else [stats, hot]
    has_read = stats.home == "disk" and stats.read_seconds > 0
    return Look(
        plan=plan,
        bytes_read=engine.bytes_read,
        routed=routed_bytes(stats),
        experts=experts_of(stats, plan),
        hits=stats.hit_rate if has_read else None,
        disk=stats.bytes["disk"] / stats.read_seconds if has_read else None,
        latest=engine.stats,
        off_because="; ".join(tier.off_because for tier in tiers if tier.off_because),
        lines=tuple(line for tier in tiers for line in (tier.decision, tier.guesses) if line),
    )


def routed_bytes(stats: ExpertStats) -> dict[str, int]:
    """Read from each tier so far; {} where the experts have no slots and no disk."""
    hot = stats.hot
    below = dict(stats.bytes)
    if hot is None:
        return below
    if not stats.slots and stats.home != "disk":
        below = {hot.home: hot.bytes.get(hot.home, 0)}
    return {"vram": hot.bytes.get("vram", 0)} | below


def experts_of(stats: ExpertStats, plan: Plan) -> Experts | None:
    """None for a model without routed experts."""
    top = stats.hot or stats
    layers = dict(sorted(top.layers.items()))
    if not layers:
        return None
    slots = None
    if stats.slots:
        none = np.zeros_like(next(iter(layers.values())).resident)
        rows = [stats.layers[n].resident if n in stats.layers else none for n in layers]
        slots = np.array(rows) != 0
    home = stats.home
    if stats.hot is None and not stats.slots:
        home = plan.place("routed", next(iter(layers))).tier
    return Experts(
        layers=tuple(layers),
        uses=np.array([layer.uses for layer in layers.values()]),
        vram=None
        if stats.hot is None
        else np.array([layer.resident for layer in layers.values()]) != 0,
        slots=slots,
        hits=tuple(layer.hits for layer in layers.values()),
        misses=tuple(layer.misses for layer in layers.values()),
        home=home,
    )


def _base64(array: Array) -> str:
    return base64.b64encode(array.tobytes()).decode()
