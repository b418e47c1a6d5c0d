"""Which device computes which chosen expert of a layer, and what to copy meanwhile. Pure.

Work of an accelerator comes first, because it is only submitted; the home device, where all
weights are, computes the rest in the meantime, and copies hide behind it. With nothing resident
the answer is the routing itself, grouped by expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from offload.devices.base import Routing

Array = np.ndarray
NOWHERE: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertWork:
    """One expert for n tokens on one device.

    tokens (n,) int64: rows of x, ascending. weights (n,) float32: what their outputs count.
    """

    device: str
    expert: int
    tokens: Array
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyBudget:
    """Seconds per expert: to compute it at home for one token, to copy it; and copies per layer.

    Copies are made only as far as the home device's work covers them, so they cost no time.
    """

    compute_seconds: float
    copy_seconds: float
    limit: int = 2

    def copies(self, n_experts: int) -> int:
        """How many fit behind n_experts computed at home (each reads its weights once)."""
        time = n_experts * self.compute_seconds
        if time >= self.limit * self.copy_seconds:
            return self.limit
        return int(time / self.copy_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSchedule:
    """work: resident experts first, then home's, ascending inside a device. copies: best first."""

    work: list[ExpertWork]
    copies: list[int]


def schedule(
    routing: Routing,
    resident: Mapping[int, str] = NOWHERE,
    *,
    home: str = "cpu",
    budget: CopyBudget | None = None,
) -> LayerSchedule:
    """Split the routing of one layer among devices.

    resident: expert -> device that holds a copy; all others run on `home`. The next copies are
    those experts computed at home that the most tokens chose, then those of the greatest weight;
    none without a budget.
    """
    flat = routing.expert_ids.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    tokens = order // max(1, routing.expert_ids.shape[1])
    weights = routing.weights.ravel()[order]
    ends = np.append(starts[1:], len(flat))[: len(starts)]
    work = [
        ExpertWork(
            device=resident.get(expert, home),
            expert=expert,
            tokens=tokens[a:b],
            weights=weights[a:b],
        )
        for expert, a, b in zip(experts.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]
    at_home = [item for item in work if item.device == home]
    away = sorted((item for item in work if item.device != home), key=lambda item: item.device)
    ranked = sorted(at_home, key=lambda item: (-len(item.tokens), -float(item.weights.sum())))
    n_copies = budget.copies(len(at_home)) if budget is not None else 0
    return LayerSchedule(work=away + at_home, copies=[item.expert for item in ranked[:n_copies]])
