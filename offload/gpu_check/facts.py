"""What the machine is: the GPU, its driver and link, the versions of what is installed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from offload.gpu.probe import gpus
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row, fact, missing

PACKAGES = ("numpy", "numba", "llvmlite", "numba-cuda", "cuda-bindings", "cuda-core",
            "nvidia-nvjitlink-cu12")  # fmt: skip


def facts(bench: Bench) -> Iterator[Row]:
    """All of them; what cannot be found out is said to be unknown."""
    free, total = bench.gpu.memory()
    yield fact("GPU", bench.gpu.name)
    yield fact("architecture", f"sm_{bench.gpu.architecture}")
    yield fact("memory that can be had", free / 2**30, "GiB")
    yield fact("memory", total / 2**30, "GiB")
    yield from _probed()
    yield fact("system", platform.platform())
    yield fact("processor threads", float(os.cpu_count() or 0))
    yield fact("Python", platform.python_version())
    for package in PACKAGES:
        try:
            yield fact(package, version(package))
        except PackageNotFoundError:
            yield missing(package, "not installed")


def _probed() -> Iterator[Row]:
    """Of every GPU: driver, link, power, as `doctor` shows them."""
    found = gpus()
    if isinstance(found, str):
        yield missing("driver, link, power", found)
        return
    for gpu in found:
        values = asdict(gpu)
        for name, value in values.items():
            shown = value if isinstance(value, float | str) or value is None else str(value)
            yield fact(f"GPU {values.get('index', '')} {name}", shown)
