"""Memory of a GPU that is not there, and its kernels on ptx_machine.py."""

from __future__ import annotations

import numpy as np
from ptx_machine import Machine

from quant.cuda.kept_ptx import kept_ptx
from quant.cuda.kernels import Kernel

Array = np.ndarray


class Vram:
    """A slab, given out from its start; what lies between two parts is never to be touched."""

    def __init__(self, n_bytes: int = 1 << 24) -> None:
        room = np.full(n_bytes + 256, 0xA5, np.uint8)
        start = -room.ctypes.data % 256
        self.slab = room[start : start + n_bytes]
        self.machine = Machine(self.slab)
        self._used = 256

    def room(self, n_bytes: int) -> int:
        """Address of memory that is full of nonsense."""
        at = self._used
        self._used += -(-n_bytes // 256) * 256
        assert self._used <= len(self.slab), "make the slab larger"
        return int(self.slab.ctypes.data) + at

    def put(self, array: Array) -> int:
        """Address of a copy."""
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        at = self.room(data.size)
        self.view(at, data.size)[:] = data
        return at

    def view(self, address: int, n_bytes: int) -> Array:
        """Its bytes."""
        start = address - self.slab.ctypes.data
        return self.slab[start : start + n_bytes]

    def get(self, address: int, shape: tuple[int, ...], dtype: type = np.float32) -> Array:
        """A copy of an array."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.view(address, n_bytes).view(dtype).reshape(shape).copy()

    def run(self, kernel: Kernel, grid: tuple[int, ...], *arguments: int, shared: int = 0) -> None:
        """Launch."""
        x, y, z = (*grid, 1, 1)[:3]
        self.machine.launch(kept_ptx(kernel), (x, y, z), kernel.threads, shared, arguments)
