"""SimulatedGpu: see offload/gpu/base.py; kernels are compiled, and run by ptx_machine.py."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from ptx_machine import Machine

from offload.errors import PlanError
from offload.gpu.base import Launch, Mark, Sent
from quant.cuda.kept_ptx import kept_ptx
from quant.cuda.kernels import Kernel

Array = np.ndarray
GAP = 256  # bytes between two parts, never to be touched


class Recorded:
    """See Prepared."""

    def __init__(self, gpu: SimulatedGpu, launches: Sequence[Launch]) -> None:
        self.gpu, self.launches = gpu, list(launches)

    def run(self) -> None:
        """One after the other."""
        for one in self.launches:
            self.gpu.launched += 1
            self.gpu.machine.launch(
                kept_ptx(one.kernel), one.grid, one.kernel.threads, one.shared, one.arguments
            )

    def close(self) -> None:
        """Nothing."""


class SimulatedGpu:
    """See Gpu. n_bytes: of its memory. What is sent is there once it is waited for, no sooner."""

    name = "simulated GPU"
    architecture = 80

    def __init__(self, n_bytes: int = 1 << 26) -> None:
        room = np.empty(n_bytes + 256, np.uint8)  # the system gives memory as it is written
        start = -room.ctypes.data % 256
        self.slab = room[start : start + n_bytes]
        self.base = int(self.slab.ctypes.data)
        self.machine = Machine(self.slab)
        self.launched = 0
        self.closed = False
        self._parts: dict[int, int] = {}
        self._on_the_way: deque[tuple[int, Array]] = deque()
        self._arrived = 0

    def memory(self) -> tuple[int, int]:
        """(free, total)."""
        return len(self.slab) - sum(self._parts.values()), len(self.slab)

    def alloc(self, n_bytes: int) -> int:
        """The first gap that is large enough."""
        size = -(-n_bytes // 256) * 256 + GAP
        at = 0
        for start, length in sorted(self._parts.items()):
            if start - self.base - at >= size:
                break
            at = start - self.base + length
        if at + size > len(self.slab):
            raise PlanError(f"{n_bytes} bytes of VRAM are not free")
        self._parts[self.base + at] = size
        self.slab[at : at + size] = 0xA5
        return self.base + at

    def free(self, address: int) -> None:
        """Give memory back."""
        self.wait()
        del self._parts[address]

    def view(self, at: int, n_bytes: int) -> Array:
        """Bytes."""
        start = at - self.base
        assert 0 <= start <= start + n_bytes <= len(self.slab)
        return self.slab[start : start + n_bytes]

    def upload(self, to: int, data: Array) -> None:
        """Copy."""
        data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self.view(to, data.size)[:] = data

    def mark(self) -> Mark:
        """What was launched is over."""
        return Mark(0)

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """Later."""
        assert behind == 0
        kept = data.copy() if data.flags.writeable else data
        self._on_the_way.append((to, kept))
        return Sent(self._arrived + len(self._on_the_way))

    def after(self, sent: Sent) -> None:
        """Copy."""
        while self._arrived < sent:
            self.upload(*self._on_the_way.popleft())
            self._arrived += 1

    def download(self, at: int, out: Array) -> None:
        """Copy."""
        assert out.flags.c_contiguous
        out.reshape(-1).view(np.uint8)[:] = self.view(at, out.nbytes)

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """Copy."""
        self.view(to, n_bytes)[:] = self.view(at, n_bytes).copy()

    def clear(self, at: int, n_bytes: int) -> None:
        """Zeros."""
        self.view(at, n_bytes)[:] = 0

    def compile(self, kernels: Sequence[Kernel], progress: Callable[[int, int], None]) -> None:
        """They are compiled as they are launched."""
        self.compiled = list(kernels)

    def prepare(self, launches: Sequence[Launch]) -> Recorded:
        """Keep them."""
        return Recorded(self, launches)

    def seconds(self, prepared: Recorded, times: int) -> float:
        """By the wall clock."""
        began = time.perf_counter()
        for _ in range(times):
            prepared.run()
        return time.perf_counter() - began

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """Nothing but copies is ever under way."""
        self.after(Sent(self._arrived + len(self._on_the_way)))
        if check is not None:
            check()

    def close(self) -> None:
        """Nothing is left: not even memory that a device in a circle of references would keep."""
        self.closed = True
        self.slab = self.machine.memory = self.slab[:0].copy()
