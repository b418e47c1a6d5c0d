"""Slab: one allocation of VRAM, carved into parts with budgets: weights, KV, workspace, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from offload.amounts import binary_amount
from offload.errors import PlanError
from offload.gpu.base import Gpu

ALIGNED: Final = 256


def rounded(n_bytes: int) -> int:
    """What a piece takes."""
    return -(-max(1, n_bytes) // ALIGNED) * ALIGNED


class Part:
    """Bytes from `start` on, given out by first fit. name: for messages.

    on_end: called with `end` whenever that changes: what lies behind it may be lent.
    """

    def __init__(self, name: str, start: int, n_bytes: int) -> None:
        self.name, self.start, self.n_bytes = name, start, n_bytes
        self.on_end: Callable[[int], None] = lambda end: None
        self._gaps = [(start, n_bytes)] if n_bytes else []
        self._taken: dict[int, int] = {}

    @property
    def used(self) -> int:
        """Bytes given out."""
        return sum(self._taken.values())

    @property
    def end(self) -> int:
        """Address behind the last piece; `start` if there is none."""
        behind = self.start + self.n_bytes
        if self._gaps and sum(self._gaps[-1]) == behind:
            return self._gaps[-1][0]
        return behind

    @property
    def largest_gap(self) -> int:
        """Bytes that `alloc` can still give at once."""
        return max((length for _, length in self._gaps), default=0)

    def alloc(self, n_bytes: int) -> int:
        """Address, a multiple of 256; PlanError if there is no gap."""
        wanted, before = rounded(n_bytes), self.end
        for k, (start, length) in enumerate(self._gaps):
            if length >= wanted:
                rest = (start + wanted, length - wanted)
                self._gaps[k : k + 1] = [rest] if rest[1] else []
                self._taken[start] = wanted
                self._tell(before)
                return start
        raise PlanError(
            f"VRAM for {self.name}: {binary_amount(n_bytes)} are wanted, the largest gap has"
            f" {binary_amount(self.largest_gap)} ({binary_amount(self.used)} of"
            f" {binary_amount(self.n_bytes)} are in use); a smaller --context or a larger --vram"
            " makes room"
        )

    def free(self, address: int) -> None:
        """Give a piece back."""
        end = self.end
        gaps = sorted([*self._gaps, (address, self._taken.pop(address))])
        self._gaps = gaps[:1]
        for start, length in gaps[1:]:
            before, size = self._gaps[-1]
            if before + size == start:
                self._gaps[-1] = before, size + length
            else:
                self._gaps.append((start, length))
        self._tell(end)

    def _tell(self, before: int) -> None:
        if self.end != before:
            self.on_end(self.end)


class Slab:
    """n_bytes of a GPU, taken at once. PlanError if they cannot be had."""

    def __init__(self, gpu: Gpu, n_bytes: int) -> None:
        self._gpu = gpu
        self.n_bytes = n_bytes // ALIGNED * ALIGNED
        self.start = gpu.alloc(self.n_bytes)
        self.parts: dict[str, Part] = {}

    @property
    def left(self) -> int:
        """Bytes that belong to no part."""
        return self.n_bytes - sum(part.n_bytes for part in self.parts.values())

    def part(self, name: str, n_bytes: int) -> Part:
        """The next part; none of its bytes are given out if it has none."""
        wanted = rounded(n_bytes) if n_bytes else 0
        if wanted > self.left:
            shares = ", ".join(f"{p.name} {binary_amount(p.n_bytes)}" for p in self.parts.values())
            raise PlanError(
                f"VRAM for {name}: {binary_amount(n_bytes)} are wanted, {binary_amount(self.left)}"
                f" of {binary_amount(self.n_bytes)} are left ({shares or 'nothing taken'}); a"
                " smaller --context or a larger --vram makes room"
            )
        self.parts[name] = Part(name, self.start + self.n_bytes - self.left, wanted)
        return self.parts[name]

    def close(self) -> None:
        """Give all of it back."""
        self._gpu.free(self.start)
