"""How many slots a budget makes, and for which layers: the arithmetic behind an expert cache. Pure.

Layers whose experts take as many bytes share a *group* of slots; groups get the budget in the
proportion of what their experts weigh. A few slots more, the *ring*, take experts that are read
into RAM and do not stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

RING_BYTES = 64 << 20
RING = (4, 64)  # slots
RING_SHARE = 4  # of the budget, at most, beyond the least


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerExperts:
    """What a layer's routed experts need. slot_bytes: of one; top_k: used by a token."""

    n_experts: int
    slot_bytes: int
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share slots. cycle: experts that one token uses in all of them."""

    layers: tuple[int, ...]
    slot_bytes: int
    slots: int
    n_experts: int
    cycle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """ring: slots of the largest size, `ring_bytes` each."""

    groups: tuple[Group, ...]
    ring: int
    ring_bytes: int

    @property
    def slots(self) -> int:
        """Of all groups."""
        return sum(group.slots for group in self.groups)

    @property
    def n_experts(self) -> int:
        """Of all groups."""
        return sum(group.n_experts for group in self.groups)

    @property
    def n_bytes(self) -> int:
        """Of groups and ring."""
        return self.ring * self.ring_bytes + sum(g.slots * g.slot_bytes for g in self.groups)

    @property
    def is_below_cycle(self) -> bool:
        """Whether a policy that forgets the oldest forgets all of them before they come again."""
        return any(0 < group.slots < group.cycle for group in self.groups)


def ring_slots(n_bytes: int, largest: int) -> int:
    """Slots of the ring, of a budget of n_bytes, when an expert takes `largest` bytes."""
    least, most = RING
    return max(least, min(most, min(RING_BYTES, n_bytes // RING_SHARE) // max(1, largest)))


def divide(n_bytes: int, layers: Mapping[int, LayerExperts], *, ring: bool) -> Division:
    """As many slots as n_bytes hold, no more than there are experts; ring: whether there is one."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for layer, experts in sorted(layers.items()):
        by_size[experts.slot_bytes].append(layer)
    largest = max(by_size, default=0)
    n_ring = ring_slots(n_bytes, largest) if ring and by_size else 0
    left = max(0, n_bytes - n_ring * largest)
    weights = {
        size: size * sum(layers[layer].n_experts for layer in members)
        for size, members in by_size.items()
    }
    total = sum(weights.values())
    groups = []
    for size, members in by_size.items():
        n_experts = sum(layers[layer].n_experts for layer in members)
        groups.append(
            Group(
                layers=tuple(members),
                slot_bytes=size,
                slots=min(n_experts, left * weights[size] // total // size),
                n_experts=n_experts,
                cycle=sum(layers[layer].top_k for layer in members),
            )
        )
    return Division(groups=tuple(groups), ring=n_ring, ring_bytes=largest)
