"""Which chosen expert of a layer runs where and when, and what to copy meanwhile. Pure.

Experts whose weights lie in a faster place come first: an accelerator's work is only submitted, and
what is computed at home goes on in the meantime. Outputs are added in the router's order whatever
the order here. A prompt's routing is scheduled by `schedule`; a tape's by its native twin, over the
same source (quant/run/layer_ops.group_choices).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.run.layer_ops import group_by_expert

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where a layer's experts lie. Kernels look here whenever the layer runs.

    addresses (n_experts, 3) int64: of gate, up and down of each: in the file's map, packed, or a
    copy elsewhere, all in one layout. resident (n_experts,) int64: not 0 where that is a faster
    place than home; such experts are scheduled first. home: the addresses without a copy. uses
    (n_experts,) int64: rows that each expert has computed, counted by whoever runs the layer.
    """

    addresses: Array
    resident: Array
    home: Array
    uses: Array

    def send_home(self, expert: int) -> None:
        """It has no copy any more."""
        self.addresses[expert] = self.home[expert]
        self.resident[expert] = 0

    @staticmethod
    def at(*matrices: tuple[int, int], count: int) -> Places:
        """`count` experts one after the other: (address, bytes from expert to expert) of each."""
        index = np.arange(count, dtype=np.int64)
        addresses = np.stack([at + index * stride for at, stride in matrices], axis=1)
        resident, uses = (np.zeros(count, np.int64) for _ in range(2))
        return Places(addresses, resident, addresses.copy(), uses)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """The work of one layer, one entry per expert in use; all int64.

    experts (n,): resident ones first, then the others, ascending. Expert experts[i] has the slots
    starts[i] .. starts[i + 1] - 1, and tokens (T * K,) is the row of each slot. slots (T, K): the
    slot of each choice, in the router's order.
    """

    experts: Array
    starts: Array
    tokens: Array
    slots: Array

    @property
    def used(self) -> int:
        """Experts in use."""
        return len(self.experts)


def schedule(expert_ids: Array, resident: Array) -> Schedule:
    """Group a routing (T, K) by expert; resident: see Places."""
    n, n_experts = expert_ids.size, len(resident)
    experts, starts, tokens = (np.empty(n + 1, np.int64) for _ in range(3))
    slots = np.empty(expert_ids.shape, np.int64)
    ids = np.ascontiguousarray(expert_ids, np.int64)
    used = group_by_expert(ids, resident, n_experts, experts, starts, tokens, slots)
    return Schedule(
        experts=experts[:used], starts=starts[: used + 1], tokens=tokens[:n], slots=slots
    )


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


def next_copies(work: Schedule, weights: Array, resident: Array, budget: CopyBudget) -> list[int]:
    """The experts to copy next, best first: of those computed at home, the most asked for.

    weights (T, K): the router's. The most tokens count first, then the greatest weight.
    """
    by_slot = np.empty(work.slots.size, np.float32)
    by_slot[work.slots.ravel()] = weights.ravel()
    at_home = [i for i, e in enumerate(work.experts) if not resident[e]]
    spans = {i: slice(work.starts[i], work.starts[i + 1]) for i in at_home}
    ranked = sorted(
        at_home,
        key=lambda i: (work.starts[i] - work.starts[i + 1], -float(by_slot[spans[i]].sum())),
    )
    return [int(work.experts[i]) for i in ranked[: budget.copies(len(at_home))]]
