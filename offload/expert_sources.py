"""Where routed experts lie without a slot, and how a slot is filled from there.

A source is of one layer. Its `fill` gives small tasks, one for each contiguous range of an expert,
that threads run in any order (filler.py); its `addresses` say where gate, up and down then are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from offload.devices.base import GatedMLP
from offload.direct_file import SECTOR, DirectFile
from offload.mapped_file import MappedFile

Array = np.ndarray
READ_AROUND = 16 << 20  # bytes that a system may read ahead of, or behind, what is touched
Task = Callable[[], int]  # fills a part of a slot; bytes


class Source(Protocol):
    """The routed experts of a layer."""

    @property
    def n_experts(self) -> int:
        """How many."""

    @property
    def expert_bytes(self) -> int:
        """Of gate, up and down of one."""

    @property
    def slot_bytes(self) -> int:
        """Of a slot that holds one."""

    def fill(self, expert: int, slot: Array) -> list[Task]:
        """What brings an expert into a slot, (slot_bytes,) uint8."""

    def addresses(self, expert: int, slot: Array) -> tuple[int, int, int]:
        """Of gate, up and down in the slot."""


def lined_up(n_bytes: int, unit: int = 64) -> int:
    """The next multiple."""
    return -(-n_bytes // unit) * unit


class MemorySource:
    """Experts in memory or in a mapped file; home (E, 3): addresses of their matrices."""

    def __init__(self, mlp: GatedMLP, home: Array) -> None:
        self.n_experts = mlp.gate.count
        self._sizes = [m.n_bytes for m in (mlp.gate, mlp.up, mlp.down)]
        self._home = home
        self._at = [0, *np.cumsum([lined_up(n) for n in self._sizes]).tolist()]
        self.expert_bytes = sum(self._sizes)
        self.slot_bytes = self._at.pop()

    def fill(self, expert: int, slot: Array) -> list[Task]:
        """See Source."""
        base = slot.ctypes.data
        return [
            partial(_copy, base + at, int(address), n)
            for at, address, n in zip(self._at, self._home[expert], self._sizes, strict=True)
        ]

    def addresses(self, expert: int, slot: Array) -> tuple[int, int, int]:
        """See Source."""
        base = slot.ctypes.data
        gate, up, down = (base + at for at in self._at)
        return gate, up, down


def _copy(target: int, source: int, n_bytes: int) -> int:
    ctypes.memmove(target, source, n_bytes)
    return n_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Bytes of an expert that lie together in a part of the file: of expert 0, and from there."""

    part: int
    offset: int
    stride: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class FileExperts:
    """Where the experts of a layer lie in the file. where: (extent, bytes into it) of a matrix."""

    extents: tuple[Extent, ...]
    where: tuple[tuple[int, int], ...]

    @property
    def slot_bytes(self) -> int:
        """Of a slot that takes whole sectors of each extent, wherever it begins."""
        return sum(lined_up(e.n_bytes, SECTOR) + SECTOR for e in self.extents)


def file_experts(mlp: GatedMLP, parts: Sequence[MappedFile]) -> FileExperts | None:
    """Of experts that lie in mapped files; None if they do not (padded, or copied).

    Matrices of an expert that follow one another in the file, as fused gate and up do, are one
    extent.
    """
    found = []
    for i, m in enumerate((mlp.gate, mlp.up, mlp.down)):
        for number, part in enumerate(parts):
            offset = m.address - part.data.ctypes.data
            if offset >= 0 and offset + (m.count - 1) * m.stride + m.n_bytes <= part.size:
                found.append((number, offset, m.stride, m.n_bytes, i))
    if len(found) != 3:
        return None
    extents: list[Extent] = []
    where = [(0, 0)] * 3
    for part_no, offset, stride, n_bytes, i in sorted(found):
        last = extents[-1] if extents else None
        if (
            last is not None
            and (last.part, last.stride) == (part_no, stride)
            and last.offset + last.n_bytes == offset
        ):
            where[i] = len(extents) - 1, last.n_bytes
            extents[-1] = Extent(
                part=part_no, offset=last.offset, stride=stride, n_bytes=last.n_bytes + n_bytes
            )
            continue
        where[i] = len(extents), 0
        extents.append(Extent(part=part_no, offset=offset, stride=stride, n_bytes=n_bytes))
    return FileExperts(tuple(extents), tuple(where))


class FileSource:
    """Experts in a file that is read around the page cache, whole sectors at a time.

    files: of its parts.
    """

    def __init__(self, mlp: GatedMLP, experts: FileExperts, files: Sequence[DirectFile]) -> None:
        self.n_experts = mlp.gate.count
        self.expert_bytes = sum(e.n_bytes for e in experts.extents)
        self.slot_bytes = experts.slot_bytes
        self._experts = experts
        self._files = files
        sizes = [lined_up(e.n_bytes, SECTOR) + SECTOR for e in experts.extents]
        self._at = [0, *np.cumsum(sizes).tolist()][:-1]

    def fill(self, expert: int, slot: Array) -> list[Task]:
        """See Source; the extents in the order of the file."""
        tasks: list[Task] = []
        for at, extent in zip(self._at, self._experts.extents, strict=True):
            start = extent.offset + expert * extent.stride
            first = start // SECTOR * SECTOR
            size = lined_up(start - first + extent.n_bytes, SECTOR)
            file = self._files[extent.part]
            tasks.append(
                partial(file.read, first, slot[at : at + size], start - first + extent.n_bytes)
            )
        return tasks

    def addresses(self, expert: int, slot: Array) -> tuple[int, int, int]:
        """See Source."""
        base = slot.ctypes.data
        gate, up, down = (
            base + self._at[i] + self._skew(i, expert) + inside for i, inside in self._experts.where
        )
        return gate, up, down

    def forget(self, expert: int) -> None:
        """Let the system drop what it holds of an expert in its page cache, and around it."""
        for extent in self._experts.extents:
            first = max(0, extent.offset + expert * extent.stride - READ_AROUND)
            self._files[extent.part].forget(first, extent.n_bytes + 2 * READ_AROUND)

    def _skew(self, i: int, expert: int) -> int:
        extent = self._experts.extents[i]
        return (extent.offset + expert * extent.stride) % SECTOR
