"""HostMemory: the memory of the host that a GPU reaches by itself: mapped for both, or registered.

Registered are whole pages, each once; a copy reads what is registered without a stage.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left, insort
from typing import Any, Final

import numpy as np

from offload.amounts import binary_amount
from offload.errors import PlanError, reason
from offload.gpu.base import Mapped
from offload.gpu.cuda_calls import NO_MEMORY, CudaCalls, CudaError

Array = np.ndarray

READ_ONLY: Final = 8  # CU_MEMHOSTREGISTER_READ_ONLY
_FOR_BOTH: Final = 1 | 2  # CU_MEMHOSTALLOC_PORTABLE, _DEVICEMAP


class HostMemory:
    """Of one GPU; all of it goes with the driver's context."""

    def __init__(self, calls: CudaCalls, device: Any) -> None:
        self._calls, self._device = calls, device
        self._registered: list[tuple[int, int]] = []  # (start, end), ascending
        self._pinned: list[Array] = []  # nobody else may get memory that is registered

    def mapped(self, n_bytes: int) -> Mapped:
        """See Gpu."""
        calls = self._calls
        calls.enter()
        size = max(1, n_bytes)
        try:
            at = int(calls.make("cuMemFreeHost", "cuMemHostAlloc", size, _FOR_BOTH))
        except CudaError as exc:
            if exc.code != NO_MEMORY:
                raise
            raise PlanError(
                f"{calls.name}: {binary_amount(n_bytes)} of the host's memory that the GPU reaches,"
                " too, are refused; end programs that hold memory; --device cpu does without"
            ) from exc
        address = int(calls.call("cuMemHostGetDevicePointer", at, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at))[:n_bytes]
        array[:] = 0
        return Mapped(array, address)

    def pin(self, data: Array) -> str:
        """See Gpu; pages that it shares with nobody."""
        calls = self._calls
        calls.enter()
        first, end = whole_pages(data)
        read_only = not data.flags.writeable
        try:
            if read_only and not self._pins_read_only():
                return "this GPU cannot pin memory that is for reading"
            if end > first:
                self.register(data.ctypes.data + first, end - first, read_only=read_only)
                self._pinned.append(data)
        except CudaError as exc:
            calls.must_live()
            return reason(exc).partition("; ")[0]
        return ""

    def _pins_read_only(self) -> bool:
        names = self._calls.module.CUdevice_attribute
        attribute = names.CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED
        return bool(self._calls.call("cuDeviceGetAttribute", attribute, self._device))

    def register(self, address: int, n_bytes: int, *, read_only: bool) -> None:
        """Whole pages that the GPU reads by itself from now on. read_only: the mapping is."""
        self._calls.enter()
        self._calls.call("cuMemHostRegister", address, n_bytes, READ_ONLY if read_only else 0)
        self._calls.own("cuMemHostUnregister", address)
        insort(self._registered, (address, address + n_bytes))

    def unregister(self, address: int) -> None:
        """Undo `register`, when no copy needs it any more."""
        self._calls.enter()
        self._calls.drop("cuMemHostUnregister", address)
        del self._registered[bisect_left(self._registered, (address, 0))]

    def close(self) -> None:
        """All that was registered is not any more."""
        self._registered.clear()
        self._pinned.clear()

    def part(self, data: Array) -> tuple[int, int]:
        """(first, end) bytes of an array that are registered; none: (0, 0)."""
        start, end = data.ctypes.data, data.ctypes.data + data.nbytes
        at = bisect_left(self._registered, (end, 0))
        if at:
            low, high = self._registered[at - 1]
            if max(low, start) < min(high, end):
                return max(low, start) - start, min(high, end) - start
        return 0, 0

    def can_pin(self, n_bytes: int) -> bool:
        """Whether so much memory of the host could be pinned; it is given back at once."""
        calls = self._calls
        calls.enter()
        try:
            calls.drop("cuMemFreeHost", calls.make("cuMemFreeHost", "cuMemHostAlloc", n_bytes, 0))
        except CudaError:
            calls.must_live()
            return False
        return True


def whole_pages(data: Array) -> tuple[int, int]:
    """(first, end) bytes of an array: the pages that belong to it alone."""
    first = -data.ctypes.data % mmap.PAGESIZE
    return first, first + max(0, data.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
