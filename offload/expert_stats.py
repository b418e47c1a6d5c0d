"""What the expert tiers did: hits and misses by layer, bytes by tier, waiting; for people to read.

A *hit* is an expert that lay in a slot when its layer asked for it; experts of one forward pass and
layer count once, as in `offload.replay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from offload.layer_scheduler import Places

Array = np.ndarray


@dataclass(slots=True, kw_only=True)
class LayerTiers:
    """One layer. uses (E,) int64: how often each expert was asked for; resident (E,) bool: now."""

    uses: Array
    resident: Array
    hits: int = 0
    misses: int = 0
    loads: int = 0  # copies into slots, those made ahead included
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits of all that was asked for, 0 .. 1; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


@dataclass(slots=True, kw_only=True)
class ExpertStats:
    """All layers with routed experts.

    home: where an expert lies that is in no slot: "disk", or "mmap", "ram", "hugepages".
    slots, slot_bytes: in use at most, of all layers. policy: as in POLICIES; "" without slots.
    bytes: read from each tier so far ("slots", and home). passes: forward passes so far.
    stalled: seconds in which computing waited for reads. read_seconds: in which reads were under
    way. copies: experts copied into slots behind the computation. prefetched, prefetch_used: bytes
    read ahead by prediction, and those of them that were asked for afterwards.
    guesses: whether that is done, with its figures. decision: why misses wait for a copy, or run at
    home, with the measured costs.
    bytes_copied, copy_seconds: into slots in VRAM, and with such copies under way. failures: copies
    that could not be made. bookkeeping: seconds in which it was decided on copies, beside passes.
    off_because: why there are no slots, or nothing is copied any more. hot: of slots in VRAM, which
    are asked first; all else is then of the tiers below.
    """

    layers: dict[int, LayerTiers] = field(default_factory=dict)
    home: str = "mmap"
    policy: str = ""
    slots: int = 0
    slot_bytes: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    passes: int = 0
    stalled: float = 0.0
    read_seconds: float = 0.0
    copies: int = 0
    prefetched: int = 0
    prefetch_used: int = 0
    guesses: str = ""
    decision: str = ""
    bytes_copied: int = 0
    copy_seconds: float = 0.0
    failures: int = 0
    bookkeeping: float = 0.0
    off_because: str = ""
    hot: ExpertStats | None = None

    @property
    def bytes_per_pass(self) -> dict[str, float]:
        """By tier."""
        return {name: n / max(1, self.passes) for name, n in self.bytes.items()}

    @property
    def hit_rate(self) -> float:
        """Of all layers together, 0 .. 1."""
        hits = sum(layer.hits for layer in self.layers.values())
        return hits / max(1, hits + sum(layer.misses for layer in self.layers.values()))

    def go_on_from(self, before: ExpertStats) -> None:
        """Count how often experts were asked for from there on."""
        for layer, counts in self.layers.items():
            if layer in before.layers:
                counts.uses[:] += before.layers[layer].uses
        if self.hot is not None and before.hot is not None:
            self.hot.go_on_from(before.hot)


def stats_without_slots(places: Mapping[int, Places]) -> ExpertStats:
    """Of experts that are computed where they lie: how often each was asked for."""
    return ExpertStats(
        layers={
            layer: LayerTiers(uses=p.uses, resident=np.zeros(len(p.uses), np.bool_))
            for layer, p in sorted(places.items())
        }
    )
