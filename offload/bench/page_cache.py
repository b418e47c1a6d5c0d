"""What the system keeps of a file in its page cache, and making it forget that (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def cached_bytes(path: Path) -> int | None:
    """Bytes of a file in the page cache; None where the system does not say."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "mincore"):
        return None
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with path.open("rb") as f, mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        done = libc.mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(pages.ctypes.data),
        )
        del view
    return None if done else int((pages & 1).sum()) * mmap.PAGESIZE


def drop(paths: Sequence[Path]) -> int | None:
    """Ask the system to forget these files; bytes that stayed, None where it does not say.

    Pages stay that somebody maps, or that are not on the disk yet.
    """
    stayed: int | None = 0
    for path in paths:
        with path.open("rb") as f:
            os.fsync(f.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cached = cached_bytes(path)
        stayed = None if stayed is None or cached is None else stayed + cached
    return stayed
