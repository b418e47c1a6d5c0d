"""probe(): what this machine has. Nothing here is measured by running a load."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from offload.memory import amount, free_hugetlb, thp_mode
from offload.topology import Topology, read_topology
from quant import isa

BUSY = 0.2  # share of the cores that others may use before pinning would hurt


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
    topology: Topology = Topology()


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
        slow = len(cpu.topology.cores) - len(cpu.topology.fast)
        if slow:
            return min(cpu.usable, len(cpu.topology.fast)), (
                f"one per performance core (the {slow} efficiency cores would be waited for)"
            )
        if cpu.cores < cpu.threads:
            return cpu.cores, "one per physical core (hyper-threads only share their bandwidth)"
        return cpu.cores, "one per core"

    def pinning(
        self, threads: int, wish: bool | None = None, others: float | None = None
    ) -> tuple[tuple[frozenset[int], ...] | None, str]:
        """(logical cores of each thread, or None: where the system likes; why).

        wish: the user's, None leaves it to us. others: share of the cores that other programs use.
        """
        cpu, cores = self.cpu, self.cpu.topology.cores
        if wish is False:
            return None, "not pinned, as asked"
        if threads == 1:
            return None, "not pinned: the only thread is the caller's"
        if not cores or not hasattr(os, "sched_setaffinity"):
            return None, "not pinned: this system does not allow or describe it"
        if cpu.usable < cpu.threads:
            return None, (
                f"not pinned: of {cpu.threads} logical cores this process has {cpu.usable}, and "
                "others may be sent to the same ones"
            )
        if threads > len(cores):
            return None, f"not pinned: {threads} threads share {len(cores)} cores"
        if wish is None and others is not None and others > BUSY:
            return None, (
                f"not pinned: other programs use {others:.0%} of the cores, and a thread must be "
                "free to leave a busy one (--pin does it all the same)"
            )
        return tuple(frozenset(core.cpus) for core in cores[:threads]), (
            "workers pinned, one to a physical core"
        )

    def huge_pages(self) -> str:
        """What --memory hugepages can expect."""
        mode, reserved = thp_mode(), free_hugetlb()
        kinds = {
            "always": "transparent ones for all memory",
            "madvise": "transparent ones where a program asks (we do)",
            "never": "switched off (/sys/kernel/mm/transparent_hugepage/enabled: never)",
            None: "not available on this system",
        }
        return kinds.get(mode, str(mode)) + (f"; {amount(reserved)} set aside" if reserved else "")

    def numa(self) -> str:
        """What was found, and what follows."""
        nodes = len(self.cpu.topology.nodes)
        if nodes == 1:
            return "1 node: nothing needs doing"
        return (
            f"{nodes} nodes: packed and resident weights are interleaved over them; mapped files "
            "lie where they were first read (numactl --interleave=all spreads them)"
        )


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
            simd=isa.NAME,
            topology=read_topology(),
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
