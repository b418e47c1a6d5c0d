"""Memory of slots: one arena for a group of layers, given back slot by slot."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from offload.expert_sources import lined_up
from offload.memory import PAGE, Memory, advise_unused

Array = np.ndarray


class Arena:
    """`slots` slots of slot_bytes each, (slot_bytes,) uint8 on pages of their own."""

    def __init__(self, slots: int, slot_bytes: int, memory: Memory) -> None:
        self._stride = lined_up(slot_bytes, PAGE)
        self._room = memory.allocate(slots * self._stride) if slots else np.empty(0, np.uint8)

    def __getitem__(self, slot: int) -> Array:
        at = slot * self._stride
        return self._room[at : at + self._stride]

    def forget(self, slots: Iterable[int]) -> None:
        """Give the memory of slots back; they are zeros if they are used again."""
        for slot in slots:
            advise_unused(self[slot])
