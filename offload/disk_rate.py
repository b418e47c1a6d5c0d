"""How fast a file comes from its disk: direct reads, several at once, past the system's cache."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

REQUEST = 1 << 20  # bytes, about those of a matrix of an expert
AT_ONCE = 8
SECONDS = 2.0
LEAST = 16  # requests


def disk_rate(path: Path) -> float | None:
    """Bytes per second of reads at random places; None where the system has no direct reads.

    OSError if the file cannot be opened.
    """
    flag = getattr(os, "O_DIRECT", 0)
    n = path.stat().st_size // REQUEST
    if not flag or n < LEAST:
        return None
    order = iter(np.random.default_rng(0).permutation(n).tolist())
    try:
        fd = os.open(path, os.O_RDONLY | flag)
    except OSError as exc:
        if path.is_file() and os.access(path, os.R_OK):
            return None  # a file system that does not know them
        raise exc
    began = time.perf_counter()

    def reader(_: int) -> int:
        done = 0
        with mmap.mmap(-1, REQUEST) as room:
            for i in order:
                done += os.preadv(fd, [room], i * REQUEST)
                if time.perf_counter() - began > SECONDS:
                    break
        return done

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            n_bytes = sum(pool.map(reader, range(AT_ONCE)))
        return n_bytes / (time.perf_counter() - began)
    except OSError:
        return None
    finally:
        os.close(fd)
