"""Routed experts that a GPU reads by itself: which layers' memory is pinned, and what became of it.

Layers are all alike to a prompt, so they are pinned in their order, until the budget is spent or
the system refuses; all others pass through a stage. Whether pages of a mapped file can be pinned
at all is known after the first tensor. Pinned memory cannot be swapped, and pages of a file that
are pinned cannot be dropped: something must be left to everybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from offload.amounts import binary_amount
from offload.devices.base import GatedMLP
from offload.gpu.base import Gpu

Array = np.ndarray
Tell = Callable[[int, int], None]  # bytes (done, to do) so far

LEAST_LEFT: Final = 6 << 30  # bytes of RAM, or
SHARE_LEFT: Final = 16  # 1 / 16 of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """layers: whose experts are. n_bytes: of them, of `total`; why: not all of them."""

    layers: frozenset[int]
    n_bytes: int
    total: int
    why: str

    @property
    def note(self) -> str:
        """A line."""
        if not self.why:
            return f"{binary_amount(self.total)} of experts are pinned for the GPU to read"
        if not self.layers:
            return f"experts pass through a stage on their way to the GPU: {self.why}"
        some = f"{binary_amount(self.n_bytes)} of {binary_amount(self.total)} of experts are pinned"
        return f"{some} for the GPU to read; the rest passes through a stage: {self.why}"


def pin_budget(ram: int, free: int) -> int:
    """Bytes that may be pinned in so much RAM, all that this process may use.

    free: of it, before weights were brought there: what other programs have is not ours to pin.
    """
    return max(0, min(ram, free) - max(LEAST_LEFT, ram // SHARE_LEFT))


def pin_experts(gpu: Gpu, experts: Mapping[int, GatedMLP], budget: int, tell: Tell) -> Pinned:
    """Pin the memory of layers, in order, while it is in the budget (bytes). `tell` may raise.

    Pages of a mapped file are read from the disk for it, if they are not there.
    """
    pinned: set[int] = set()
    done = 0
    memory = {layer: _memory(mlp) for layer, mlp in experts.items()}
    sizes = {layer: sum(array.size for array in arrays) for layer, arrays in memory.items()}
    why = ""
    for layer, arrays in memory.items():
        if done + sizes[layer] > budget:
            why = f"{binary_amount(budget)} may be pinned, more would leave too little RAM"
            break
        for array in arrays:
            tell(done, min(budget, sum(sizes.values())))
            why = gpu.pin(array)
            if why:
                break
        if why:
            break
        pinned.add(layer)
        done += sizes[layer]
    return Pinned(
        layers=frozenset(pinned), n_bytes=done, total=sum(sizes.values()), why=why
    )  # fmt: skip


def _memory(mlp: GatedMLP) -> list[Array]:
    """Where a layer's experts lie, (n,) uint8 each; gate and up may be in one tensor."""
    found = {}
    for m in (mlp.gate, mlp.up, mlp.down):
        whole: Array = m.owner.reshape(-1).view(np.uint8)
        found[whole.ctypes.data] = whole
    return list(found.values())
