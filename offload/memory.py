"""Memory for weights that do not stay in the mapped file: resident, in huge pages, interleaved.

    memory = Memory("hugepages", nodes=1)
    data = memory.allocate(n_bytes)      # zeroed uint8, filled by the caller
    memory.settle()                      # then: lock it, and look what became of it

Whatever the system refuses is not an error: it is said in one of the notes, with the way out.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from offload.amounts import GIB, binary_amount
from offload.arguments import quoted
from offload.errors import PlanError

MemoryMode = Literal["mmap", "resident", "hugepages"]
Array = np.ndarray
REUSED = 31 << 20  # bytes of a block that raises the allocator's limits
HUGE = 2 << 20  # bytes of a huge page
PAGE = mmap.PAGESIZE
LINUX = sys.platform.startswith("linux")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")
MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
MAP_HUGETLB = 0x40000
MPOL_INTERLEAVE = 3
MBIND = {"x86_64": 237, "aarch64": 235, "riscv64": 235, "ppc64le": 259, "s390x": 268}
MPOL_MF_MOVE = 2
MADV_POPULATE_READ = 22

Bind = Callable[[int, int, int], bool]


def check_mode(mode: object) -> MemoryMode:
    """The mode, if it is one; PlanError."""
    for known in get_args(MemoryMode):
        if isinstance(mode, str) and mode == known:
            return known  # type: ignore[no-any-return]
    raise PlanError(f"--memory {quoted(mode)}: mmap, resident or hugepages")


class Memory:
    """Anonymous memory for weights, 64-byte aligned at least.

    mode "mmap": ordinary pages, huge ones where they cost nothing. nodes: NUMA nodes with memory;
    with several, pages are spread over them in turn.
    """

    def __init__(self, mode: MemoryMode, nodes: tuple[int, ...] = (0,), bind: Bind | None = None):
        self._mode = mode
        self._nodes = nodes
        self._bind = bind or interleave
        self._blocks: list[tuple[int, int]] = []  # address, bytes
        self._is_interleaved = True
        self._has_hugetlb = False

    @property
    def n_bytes(self) -> int:
        """Allocated so far."""
        return sum(size for _, size in self._blocks)

    def allocate(self, n_bytes: int) -> Array:
        """Zeroed memory of its own: (n_bytes,) uint8; PlanError if the system refuses."""
        data = self._reserved_pages(n_bytes)
        if data is None:
            room = _map(n_bytes + HUGE)
            start = -room.ctypes.data % HUGE  # so that huge pages can serve all of it
            data = room[start : start + n_bytes]
        self._blocks.append((data.ctypes.data, n_bytes))
        if len(self._nodes) > 1:
            mask = sum(1 << node for node in self._nodes)
            self._is_interleaved &= self._bind(data.ctypes.data, n_bytes, mask)
        return data

    def _reserved_pages(self, n_bytes: int) -> Array | None:
        """Memory from the pool of huge pages that the administrator set aside; None if too few."""
        size = -(-n_bytes // HUGE) * HUGE
        if self._mode != "hugepages" or not LINUX or free_hugetlb() < size:
            return None
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
            data = np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
        except OSError:
            return None
        self._has_hugetlb = True
        return data[:n_bytes]

    def settle(self) -> list[str]:
        """Call once all blocks are filled: locks them if resident; what became of them."""
        if not self._blocks:
            return []
        notes = []
        if self._mode == "resident":
            notes.append(self._locked())
        if self._mode == "hugepages":
            notes.append(self._huge())
        if len(self._nodes) > 1:
            notes.append(
                f"NUMA: {binary_amount(self.n_bytes)} interleaved over {len(self._nodes)} nodes"
                if self._is_interleaved
                else f"NUMA: {len(self._nodes)} nodes, but the system does not allow to interleave "
                "memory over them (mbind); start under `numactl --interleave=all`"
            )
        return notes

    def _locked(self) -> str:
        total = binary_amount(self.n_bytes)
        if all(lock(address, size) for address, size in self._blocks):
            return f"resident: {total} locked in RAM"
        limit = lock_limit()
        allowed = "it" if limit is None else f"{binary_amount(limit)} at most"
        return (
            f"resident: {total} copied into RAM but not locked there: the system allows "
            f"{allowed} (raise `ulimit -l`); pages may be swapped out while they are not used"
        )

    def _huge(self) -> str:
        huge = huge_bytes(self._blocks)
        if self._has_hugetlb:
            kind = " (MAP_HUGETLB)"
        elif thp_mode() in ("never", None):
            return (
                f"huge pages: not available here ({THP}: {thp_mode() or 'missing'}); ordinary pages"
                f" are used for {binary_amount(self.n_bytes)}"
            )
        else:
            kind = " (MADV_HUGEPAGE)"
        if huge is None:
            return f"huge pages{kind}: asked for {binary_amount(self.n_bytes)}"
        short = "" if huge > 0.9 * self.n_bytes else "; memory is too fragmented for the rest"
        shares = f"{binary_amount(huge)} of {binary_amount(self.n_bytes)}"
        return f"huge pages{kind}: {shares} are in them{short}"


def _map(n_bytes: int) -> Array:
    try:
        if not LINUX:
            return np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
        pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError) as exc:
        raise PlanError(
            f"the system refuses {n_bytes / GIB:.2f} GiB of memory for weights; close other "
            "programs, or leave --memory and --experts-layout packed out"
        ) from exc
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def thp_mode(path: Path | None = None) -> str | None:
    """'always', 'madvise' or 'never'; None where the system has no transparent huge pages."""
    try:
        text = (path or THP).read_text()
    except OSError:
        return None
    chosen = text.partition("[")[2].partition("]")[0]
    return chosen or None


def free_hugetlb(path: Path | None = None) -> int:
    """Bytes of 2 MiB pages that the administrator set aside and nobody uses."""
    facts = {}
    try:
        for line in (path or MEMINFO).read_text().splitlines():
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    if facts.get("Hugepagesize") != HUGE >> 10:
        return 0
    return max(0, facts.get("HugePages_Free", 0) - facts.get("HugePages_Rsvd", 0)) * HUGE


def huge_bytes(blocks: list[tuple[int, int]], path: Path | None = None) -> int | None:
    """Bytes of the maps that hold these (address, size) blocks which lie in huge pages."""
    try:
        lines = (path or SMAPS).read_text().splitlines()
    except OSError:
        return None
    total, counts = 0, False
    for line in lines:
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            counts = any(a < high and low < a + size for a, size in blocks)
        elif counts and first in ("AnonHugePages:", "Private_Hugetlb:"):
            total += int(rest.split()[0]) << 10
    return min(total, sum(size for _, size in blocks))


def swapped_bytes(path: Path | None = None) -> int:
    """Bytes of this process that lie in swap space; 0 where the system does not say."""
    try:
        text = (path or STATUS).read_text()
    except OSError:
        return 0
    fields = text.partition("VmSwap:")[2].split(maxsplit=1)[:1]
    return int(fields[0]) << 10 if fields and fields[0].isdecimal() else 0


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def lock(address: int, n_bytes: int) -> bool:
    """Keep these pages in RAM; False if the system does not allow it."""
    libc = _libc()
    if libc is None or not hasattr(libc, "mlock"):
        return False
    return bool(libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes)) == 0)


def lock_limit() -> int | None:
    """Bytes that this process may lock; None if there is no limit or nothing is known."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit


def interleave(address: int, n_bytes: int, nodes: int) -> bool:
    """Spread untouched pages over the nodes of a bit mask; False if the system does not allow."""
    number = MBIND.get(platform.machine()) if LINUX else None
    if number is None:
        return False
    start = address // PAGE * PAGE
    mask = (ctypes.c_ulong * 16)(*(nodes >> 64 * i & (1 << 64) - 1 for i in range(16)))
    done = _libc().syscall(
        ctypes.c_long(number),
        ctypes.c_ulong(start),
        ctypes.c_ulong(address + n_bytes - start),
        ctypes.c_int(MPOL_INTERLEAVE),
        mask,
        ctypes.c_ulong(1024),
        ctypes.c_uint(MPOL_MF_MOVE),
    )
    return bool(done == 0)


def wants_huge_pages(data: Array) -> None:
    """Ask for huge pages where `data`, memory of our own, will be written as a whole.

    The first touch of 575 MB in small pages took 2.8 s, in huge ones 0.5.
    """
    if not LINUX or data.nbytes < HUGE:
        return
    start = data.ctypes.data // HUGE * HUGE
    end = -(-(data.ctypes.data + data.nbytes) // HUGE) * HUGE
    _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)


def keep_freed_memory() -> None:
    """Have the allocator keep what a pass frees, for the next one, instead of giving it back.

    glibc raises its limits to the largest block that was freed, 32 MiB at most. Without it a prompt
    of 128 tokens of kimi-mini spent 15 % of its time on first touches of the same arrays.
    """
    np.empty(REUSED, np.uint8)


def advise_unused(data: Array) -> None:
    """Give pages of our own back: they are zeros when they are touched again."""
    if LINUX and data.size:
        _libc().madvise(
            ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes), mmap.MADV_DONTNEED
        )


def populate(data: Array) -> bool:
    """Read a view of a mapped file and keep its pages in our page table; False if not done.

    Kernels then meet no page fault there. Old systems cannot, and what cannot be read is not.
    """
    if not LINUX:
        return False
    start = data.ctypes.data // PAGE * PAGE
    size = ctypes.c_size_t(data.ctypes.data + data.nbytes - start)
    return bool(_libc().madvise(ctypes.c_void_p(start), size, MADV_POPULATE_READ) == 0)


def advise(data: Array, advice: Literal["need", "drop"]) -> None:
    """Tell the system about a view of a mapped file: read it ahead, or forget our part of it."""
    if not LINUX or not data.size:
        return
    start = data.ctypes.data // PAGE * PAGE
    end = data.ctypes.data + data.nbytes
    if advice == "drop":  # whole pages only; their bytes are still in the file
        start, end = -(-data.ctypes.data // PAGE) * PAGE, end // PAGE * PAGE
    if end > start:
        number = mmap.MADV_WILLNEED if advice == "need" else mmap.MADV_DONTNEED
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), number)
