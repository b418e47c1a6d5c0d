"""probe(): what this machine has. Nothing here is measured by running a load."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from quant import isa


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The processor and its memory. ram_*: bytes; usable: logical cores open to this process."""

    name: str
    cores: int
    threads: int
    usable: int
    ram_total: int
    ram_free: int
    simd: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """Everything the planner looks at. gpus: names; empty at this version (CPU only)."""

    cpu: CpuInfo
    gpus: tuple[str, ...] = ()

    def default_threads(self) -> tuple[int, str]:
        """Number of threads and the reason."""
        cpu = self.cpu
        if cpu.usable < cpu.cores:
            return cpu.usable, f"the {cpu.usable} of {cpu.cores} cores this process may use"
        if cpu.cores < cpu.threads:
            return cpu.cores, "one per physical core (hyper-threads only share their bandwidth)"
        return cpu.cores, "one per core"


def probe() -> HardwareProfile:
    """Look at this machine; takes a few milliseconds."""
    threads = psutil.cpu_count(logical=True) or 1
    cores = psutil.cpu_count(logical=False) or threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    quota = _cgroup_cpus()
    if quota is not None:
        usable = max(1, min(usable, quota))
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = _cgroup_memory()
    if limit is not None:
        free, total = min(free, limit[1]), min(total, limit[0])
    return HardwareProfile(
        cpu=CpuInfo(
            name=_cpu_name(),
            cores=cores,
            threads=threads,
            usable=usable,
            ram_total=total,
            ram_free=free,
            simd=isa.ISA,
        )
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cgroup_cpus() -> int | None:
    """Whole CPUs of a container's quota (cgroup v2); None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def _cgroup_memory() -> tuple[int, int] | None:
    """(limit, free) bytes of a container (cgroup v2); page cache counts as free."""
    base = Path("/sys/fs/cgroup")
    try:
        limit = (base / "memory.max").read_text().strip()
        used = int((base / "memory.current").read_text())
        stat = dict(x.split() for x in (base / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    cached = int(stat.get("file", 0))
    return int(limit), max(0, int(limit) - used + cached)
