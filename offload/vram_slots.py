"""Slots of hot experts in VRAM: who lies where, and the tables in which kernels look it up.

    high end   slot 0 | slot 0' | slot 1 | slot 1' | ..   low end, which KV pages take first

Slots of all sizes lie in turn, so that all groups of layers lose alike when memory goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_vram import Space
from offload.expert_cache import ExpertCache
from offload.gpu.base import Gpu
from offload.policies import CachePolicy, ExpertKey
from offload.slot_budget import Group

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class SlotLayer:
    """What kernels and the CPU's scheduler look at; both say the same while a pass runs.

    tables: addresses in VRAM of (E,) int64 each, where gate, up and down of an expert lie, 0: in no
    slot. resident: (E,) int64 on the host, not 0: in a slot.
    """

    tables: tuple[int, int, int]
    resident: Array
    copy: ExpertCopy


class SlotTables:
    """The tables of all layers, here and in VRAM. resident: (layers, E) int64."""

    def __init__(self, gpu: Gpu, workspace: Space, n_layers: int, n_experts: int) -> None:
        self._gpu = gpu
        self._tables = np.zeros((n_layers, 3, n_experts), np.int64)
        self.resident = np.zeros((n_layers, n_experts), np.int64)
        self._at = workspace.alloc(self._tables.nbytes)
        self._changed = [0, n_layers]  # layers from .. to - 1
        self.upload()

    def layer(self, layer: int, copy: ExpertCopy) -> SlotLayer:
        """A layer's part."""
        of_matrix = self._tables[0, 0].nbytes
        gate, up, down = (self._at + (3 * layer + i) * of_matrix for i in range(3))
        return SlotLayer((gate, up, down), self.resident[layer], copy)

    def set(self, key: ExpertKey, slot: int, copy: ExpertCopy) -> None:
        """It lies in a slot; kernels know after `upload`."""
        self._write(key, [slot + at for at in copy.offsets], 1)

    def clear(self, key: ExpertKey) -> None:
        """It lies in no slot; kernels know after `upload`."""
        self._write(key, (0, 0, 0), 0)

    def upload(self) -> None:
        """Bring over what has changed, in one piece."""
        first, end = self._changed
        if first < end:
            at = self._at + first * self._tables[0].nbytes
            self._gpu.upload(at, self._tables[first:end])
            self._changed = [len(self._tables), 0]

    def _write(self, key: ExpertKey, addresses: Sequence[int], resident: int) -> None:
        layer, expert = key
        self._tables[layer, :, expert] = addresses
        self.resident[layer, expert] = resident
        self._changed = [min(self._changed[0], layer), max(self._changed[1], layer + 1)]


class Pool:
    """Slots of one size and who has them. at: their addresses, highest first.

    planned: have a slot, and nothing of them lies there yet; leaving: have none any more, and are
    still in the tables. Both in order. Those whose copy is not over are held.
    """

    def __init__(self, group: Group, at: Sequence[int], policy: CachePolicy) -> None:
        self.group, self.at, self.policy = group, at, policy
        self.cache = ExpertCache(len(at), policy, self._load)
        self.planned: list[ExpertKey] = []
        self.leaving: list[ExpertKey] = []
        self._owner: dict[int, ExpertKey] = {}
        self._held: Counter[int] = Counter()  # slots by layer

    @property
    def is_full(self) -> bool:
        """Whether a newcomer takes somebody's slot."""
        return len(self.cache.resident) == self.cache.slots

    def address(self, key: ExpertKey) -> int:
        """Of its slot."""
        return self.at[self.cache.resident[key]]

    def share(self, layer: int) -> int:
        """Free slots that a layer may take if all layers are to have as many."""
        fair = -(-self.cache.slots // len(self.group.layers))
        return min(fair - self._held[layer], self.cache.slots - len(self.cache.resident))

    def drop(self, key: ExpertKey) -> None:
        """Forget one that is held: its copy has failed."""
        self._turn_out(self.cache.resident[key])
        self.cache.release(key)
        self.cache.drop(key)

    def narrow(self, end: int) -> list[ExpertKey]:
        """Have the slots from an address on; gives those whose slot is gone."""
        slots = sum(address >= end for address in self.at)
        if slots == self.cache.slots:
            return []
        gone = self.cache.keep_first(slots)
        for slot in [slot for slot in self._owner if slot >= slots]:
            self._turn_out(slot)
        return gone

    def _load(self, key: ExpertKey, slot: int) -> None:
        if (before := self._turn_out(slot)) is not None:
            self.leaving.append(before)
        self._owner[slot] = key
        self._held[key.layer] += 1
        self.planned.append(key)
        self.cache.hold(key)

    def _turn_out(self, slot: int) -> ExpertKey | None:
        if (before := self._owner.pop(slot, None)) is not None:
            self._held[before.layer] -= 1
        return before


def slot_addresses(groups: Sequence[Group], end: int) -> list[list[int]]:
    """Of each group's slots, from `end` downwards, so that groups lie in turn."""
    found: list[list[int]] = [[] for _ in groups]
    turns = sorted(
        ((i + 0.5) / group.slots, g) for g, group in enumerate(groups) for i in range(group.slots)
    )
    for _, g in turns:
        end -= groups[g].slot_bytes
        found[g].append(end)
    return found
