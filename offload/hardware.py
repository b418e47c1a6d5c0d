"""probe(): what this machine has. Nothing here is measured by running a load."""

from __future__ import annotations

import os
import platform
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offload.amounts import binary_amount
from offload.arguments import integer, quoted
from offload.cgroups import Limits, read_limits
from offload.errors import DeviceError, PlanError, reason
from offload.memory import free_hugetlb, thp_mode
from offload.topology import Topology, read_topology
from quant.compiler import isa, kernel_cache

if TYPE_CHECKING:
    from offload.gpu.probe import GpuFacts

BUSY = 0.2  # share of the cores that others may use before pinning would hurt


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The processor and its memory. ram_*: bytes; usable: logical cores open to this process.

    usable and ram_* are within the limits of containers already.
    """

    name: str
    cores: int
    threads: int
    usable: int
    ram_total: int
    ram_free: int
    simd: str
    topology: Topology = Topology()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """What the planner looks at of the CPU's side; GPUs are looked for when one is wanted."""

    cpu: CpuInfo

    def default_threads(self) -> tuple[int, str]:
        """Number of threads and the reason."""
        cpu = self.cpu
        if cpu.usable < cpu.cores and cpu.usable == cpu.limits.whole_cpus:
            return cpu.usable, (
                f"the container has {cpu.limits.cpus:g} processors' time ({cpu.limits.cpus_from})"
            )
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
        if integer(threads) is None:
            raise PlanError(f"threads must be a whole number, not {quoted(threads)}")
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
        return kinds.get(mode, str(mode)) + (
            f"; {binary_amount(reserved)} set aside" if reserved else ""
        )

    def container(self) -> str:
        """What control groups leave to this process."""
        limits, parts = self.cpu.limits, []
        if limits.cpus is not None:
            parts.append(f"{limits.cpus:g} processors ({limits.cpus_from})")
        if limits.memory is not None:
            parts.append(f"{binary_amount(limits.memory)} of memory ({limits.memory_from})")
        if limits.swap is not None:
            parts.append(f"{binary_amount(limits.swap)} of swap" if limits.swap else "no swap")
        return ", ".join(parts) or "no limits"

    def kernel_cache(self) -> str:
        """Where compiled kernels are kept, or why they are not."""
        return kernel_cache.store().state

    def numa(self) -> str:
        """What was found, and what follows."""
        nodes = len(self.cpu.topology.nodes)
        if nodes == 1:
            return "1 node: nothing needs doing"
        return (
            f"{nodes} nodes: packed and resident weights are interleaved over them; mapped files "
            "lie where they were first read (numactl --interleave=all spreads them)"
        )


def gpus() -> list[GpuFacts] | str:
    """GPUs that can be used; or one line, why none can."""
    from offload.gpu import probe

    return probe.gpus()


def pinnable(gpu: GpuFacts, most: int) -> tuple[int, str] | str:
    """(bytes that can be pinned for a GPU, `most` at most; why a mapped file's cannot, or "").

    Or one line, why that was not tried.
    """
    from offload.gpu import pinned
    from offload.gpu.driver import CudaGpu

    try:
        with closing(CudaGpu(gpu.index)) as opened:
            return pinned.pinnable(opened, most), pinned.refused_map(opened)
    except DeviceError as exc:
        return str(exc)


def gpu_kernels(gpu: GpuFacts) -> str:
    """Where kernels for a GPU are kept, or why they are not."""
    try:
        from quant.cuda.cubin_cache import store
    except ImportError as exc:
        return f"cannot be made ({reason(exc)}): pip install 'kimi-offload[cuda]'"
    return store(gpu.architecture).state


def probe() -> HardwareProfile:
    """Look at this machine; takes a few milliseconds."""
    import psutil

    threads = psutil.cpu_count(logical=True) or 1
    cores = psutil.cpu_count(logical=False) or threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    limits = read_limits()
    if limits.whole_cpus is not None:
        usable = min(usable, limits.whole_cpus)
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    if limits.memory is not None and limits.memory_free is not None:
        free, total = min(free, limits.memory_free), min(total, limits.memory)
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
            limits=limits,
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
