"""A disk's sequential rate: direct reads of a file, several in flight, one after the other."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from pathlib import Path

from offload.errors import RequestError, reason

SECTOR = 4096


def sequential_rate(path: Path, request: int, threads: int, seconds: float) -> float:
    """Bytes per second of reads of `request` bytes in the order of the file, from its start.

    Each thread takes the next request; at the file's end it goes on from the start. Around the
    page cache, so that what lies there does not count. RequestError where that cannot be.
    """
    size = path.stat().st_size
    request = max(SECTOR, min(request, size) // SECTOR * SECTOR)
    whole = max(1, size // request)
    turns = itertools.count()
    done = [0] * threads
    errors: list[OSError] = []
    end = time.perf_counter() + seconds

    def work(thread: int, descriptor: int) -> None:
        with mmap.mmap(-1, request) as room:
            try:
                while time.perf_counter() < end and not errors:
                    done[thread] += os.preadv(descriptor, [room], next(turns) % whole * request)
            except OSError as exc:
                errors.append(exc)

    began = time.perf_counter()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError) as exc:
        raise RequestError(f"{path}: no direct reads here ({_why(exc)})") from exc
    try:
        workers = [threading.Thread(target=work, args=(i, descriptor)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        os.close(descriptor)
    if errors:
        raise RequestError(f"{path}: no direct reads here ({_why(errors[0])})") from errors[0]
    return sum(done) / (time.perf_counter() - began)


def _why(exc: Exception) -> str:
    return reason(exc) if isinstance(exc, OSError) else "this system has none"
