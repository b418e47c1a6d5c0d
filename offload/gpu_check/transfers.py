"""What crosses between the host's memory and the GPU's, and what pinning costs."""

from __future__ import annotations

import mmap
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from offload.errors import DeviceError, reason
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row, fact, missing, same_bits

Array = np.ndarray


def transfers(bench: Bench) -> Iterator[Row]:
    """Ordinary memory, then pinned: allocated, registered, and read-only of a mapped file."""
    n_bytes = bench.setup.transfer_bytes
    with bench.scope():
        there = bench.room(n_bytes)
        host: Array = np.empty(n_bytes + mmap.PAGESIZE, np.uint8)
        start = -host.ctypes.data % mmap.PAGESIZE
        host = host[start : start + n_bytes]
        host[:] = np.arange(n_bytes, dtype=np.uint8)
        yield from _both_ways(bench, "pageable", host, there)
        if not hasattr(bench.gpu, "host"):
            yield missing("pinned memory", "this GPU has none")
            return
        yield from _pinned(bench, bench.gpu, host, there)
        yield from _mapped(bench, bench.gpu, there)


def _rate(bench: Bench, n_bytes: int, move: Callable[[], None]) -> float:
    """GB/s, the best of some."""
    best = np.inf
    for _ in range(bench.setup.repeats):
        began = time.perf_counter()
        move()
        bench.gpu.wait()
        best = min(best, time.perf_counter() - began)
    return n_bytes / best / 1e9


def _both_ways(bench: Bench, name: str, host: Array, there: int) -> Iterator[Row]:
    gpu, back = bench.gpu, np.zeros_like(host)
    yield fact(
        f"{name}, to the GPU", _rate(bench, host.nbytes, lambda: gpu.upload(there, host)), "GB/s"
    )
    gpu.download(there, back)
    yield same_bits(f"{name}, there and back", back, host)
    yield fact(
        f"{name}, from the GPU", _rate(bench, host.nbytes, lambda: gpu.download(there, back)),
        "GB/s",
    )  # fmt: skip


def _pinned(bench: Bench, gpu: Any, host: Array, there: int) -> Iterator[Row]:
    """gpu: has a host, as CudaGpu."""
    began = time.perf_counter()
    can = gpu.host.can_pin(host.nbytes)
    seconds = time.perf_counter() - began
    if can:
        yield fact("pinned memory, taken and given back", host.nbytes / seconds / 1e9, "GB/s")
    else:
        yield missing("pinned memory", f"{host.nbytes >> 20} MiB were refused")
    yield from _registered(bench, gpu, "registered", host, there, read_only=False)


def _mapped(bench: Bench, gpu: Any, there: int) -> Iterator[Row]:
    """A file as models are mapped: read-only, in the page cache."""
    with tempfile.TemporaryFile() as file:
        data = np.arange(bench.setup.transfer_bytes, dtype=np.uint8)
        file.write(data.tobytes())
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            host = np.frombuffer(mapped, np.uint8)
            try:
                yield fact("file's pages read once, sum", float(host[:: mmap.PAGESIZE].sum()))
                yield from _registered(bench, gpu, "mapped file", host, there, read_only=True)
            finally:
                del host


def _registered(
    bench: Bench, gpu: Any, name: str, host: Array, there: int, *, read_only: bool
) -> Iterator[Row]:
    began = time.perf_counter()
    try:
        gpu.host.register(host.ctypes.data, host.nbytes, read_only=read_only)
    except DeviceError as exc:
        yield missing(f"{name}, pinned", reason(exc))
        return
    try:
        seconds = time.perf_counter() - began
        yield fact(f"{name}, pinning", host.nbytes / seconds / 1e9, "GB/s")
        yield from _both_ways(bench, f"{name}, pinned", host, there)
    finally:
        gpu.host.unregister(host.ctypes.data)
