"""A GPU with memory of a size that computes nothing: for plans larger than any emulation holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from offload.errors import PlanError
from offload.gpu.base import Mapped

Array = np.ndarray


class Nothing:
    """What is prepared: launches that do nothing."""

    start = 0, 0

    def run(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class NullGpu:
    """See Gpu. free: bytes; taken: of these, now; most: at once, so far."""

    name, architecture, status_at = "null GPU", 90, 0

    def __init__(self, free: int = 1 << 60) -> None:
        self.taken = self.most = 0
        self._free = free
        self._next = 1 << 40
        self._sizes: dict[int, int] = {}
        self._hosts: list[Array] = []

    def memory(self) -> tuple[int, int]:
        """(free, total)."""
        return self._free - self.taken, self._free

    def alloc(self, n_bytes: int) -> int:
        """The next address; PlanError if there is no room."""
        size = -(-n_bytes // 256) * 256
        if self.taken + size > self._free:
            raise PlanError(f"{n_bytes:,} bytes are wanted, {self._free - self.taken:,} are free")
        at = self._next
        self._next += size
        self._sizes[at] = size
        self.taken += size
        self.most = max(self.most, self.taken)
        return at

    def free(self, address: int) -> None:
        """Give it back."""
        self.taken -= self._sizes.pop(address)

    def upload(self, to: int, data: Array) -> None:
        """Nothing."""

    def mark(self) -> int:
        """Nothing is under way."""
        return 0

    def send(self, to: int, data: Array, behind: int) -> int:
        """Nothing."""
        return 0

    def after(self, sent: int) -> None:
        """Nothing."""

    def sending(self) -> int:
        """Nothing is sent."""
        return 0

    def has_arrived(self, sent: int) -> bool:
        """All has."""
        return True

    def mapped(self, n_bytes: int) -> Mapped:
        """Zeros."""
        room = np.zeros(n_bytes + 64, np.uint8)
        first = -room.ctypes.data % 64
        self._hosts.append(room)
        array = room[first : first + n_bytes]
        return Mapped(array, int(array.ctypes.data))

    def pin(self, data: Array) -> str:
        """Done."""
        return ""

    def download(self, at: int, out: Array) -> None:
        """Zeros."""
        out[...] = 0

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """Nothing."""

    def clear(self, at: int, n_bytes: int) -> None:
        """Nothing."""

    def compile(self, kernels: Sequence[Any], progress: Callable[[int, int], None]) -> None:
        """Nothing."""

    def prepare(self, launches: Sequence[Any], *, beside: bool = False) -> Nothing:
        """Nothing to run."""
        return Nothing()

    def check_started(self) -> None:
        """Nothing failed."""

    def seconds(self, prepared: Any, times: int) -> float:
        """None."""
        return 0.0

    def rest(self, check: Callable[[], None] | None = None) -> None:
        """The queue is empty."""

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """It is over."""

    def close(self) -> None:
        """Give everything back."""
        self.taken = 0
        self._sizes.clear()
