"""Memory of the host that a GPU reads by itself: how much can be had, and of which kind."""

from __future__ import annotations

import mmap
import tempfile
from typing import Final

import numpy as np

from offload.errors import OffloadError, reason
from offload.gpu.driver import CudaGpu

LEAST: Final = 64 << 20  # worth pinning


def pinnable(gpu: CudaGpu, most: int) -> int:
    """Bytes that could be pinned just now: `most`, its half, .., or 0. Takes 0.6 s a GiB."""
    while most >= LEAST:
        if gpu.host.can_pin(most):
            return most
        most //= 2
    return 0


def refused_map(gpu: CudaGpu) -> str:
    """Why pages of a file that is mapped for reading cannot be pinned, or ""."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                address = np.frombuffer(mapped, np.uint8).ctypes.data
                gpu.host.register(address, mmap.PAGESIZE, read_only=True)
                gpu.host.unregister(address)
    except (OffloadError, OSError) as exc:
        gpu.must_live()
        return reason(exc).partition("; ")[0]  # copies go on without, there is nothing to do
    return ""
