"""A disk's sequential rate: direct reads of a file, several in flight, one after the other."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from collections import Counter
from pathlib import Path

from offload.direct_file import SECTOR
from offload.errors import RequestError, reason
from offload.gguf import GGUFFile
from offload.tiers import READERS

SECONDS = 2.0
REQUEST = 4 << 20  # bytes, of models without experts


def disk_rate(model: Path) -> float | None:
    """Bytes per second that the reader of experts gets from a model's largest part.

    None where there are no direct reads. Raises as GGUFFile.open does.
    """
    with GGUFFile.open(model) as file:
        largest = max(file.paths, key=lambda part: part.stat().st_size)
        request = expert_request(file)
    try:
        return sequential_rate(largest, request, READERS, SECONDS)
    except RequestError:
        return None


def expert_request(file: GGUFFile) -> int:
    """Bytes of what is read at once: most matrices of one routed expert have this size."""
    sizes = [
        info.n_bytes // info.shape[0]
        for name, info in file.tensors.items()
        if "_exps." in name and len(info.shape) == 3
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else REQUEST


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
