"""What a container may use: the tightest limit of all control groups this process is in (Linux).

A group's limit binds everything below it, so every level counts, from the process's own group up to
the mount. Version 2 (one tree) and version 1 (a tree for each controller) are read alike; what is
not there limits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_BOTH = "memory.memsw.limit_in_bytes"
UNLIMITED = 1 << 60  # version 1 writes 2^63 less a page for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The tightest of each kind, None without one; *_from: the file that says so.

    cpus: processors' worth of time (2.5). memory, memory_free: bytes, each of its own tightest
    group; page cache that can be dropped counts as free. swap: bytes of swap allowed.
    """

    cpus: float | None = None
    cpus_from: str = ""
    memory: int | None = None
    memory_from: str = ""
    memory_free: int | None = None
    swap: int | None = None

    @property
    def whole_cpus(self) -> int | None:
        """Threads that the quota keeps busy: rounded down, at least 1."""
        return None if self.cpus is None else max(1, int(self.cpus))


def read_limits(root: Path = Path("/")) -> Limits:
    """Limits of this process. root: where /proc and /sys are, for tests."""
    cpus: list[tuple[float, str]] = []
    memory: list[tuple[int, str]] = []
    free: list[int] = []
    swap: list[int] = []
    for group, shown in groups(root):
        for name, quota in (("cpu.max", _quota_2(group)), ("cpu.cfs_quota_us", _quota_1(group))):
            if quota is not None:
                cpus.append((quota, f"{shown}/{name}"))
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(group / name)
            if limit is None or limit >= UNLIMITED:
                continue
            memory.append((limit, f"{shown}/{name}"))
            used = _number(group / "memory.current", group / "memory.usage_in_bytes")
            if used is not None:
                free.append(max(0, limit - max(0, used - _droppable(group))))
        swap += _swap(group)
    quota, quota_from = min(cpus, default=(None, ""))
    limit, limit_from = min(memory, default=(None, ""))
    return Limits(
        cpus=quota,
        cpus_from=quota_from,
        memory=limit,
        memory_from=limit_from,
        memory_free=min(free, default=limit),
        swap=min(swap, default=None),
    )


def groups(root: Path) -> Iterator[tuple[Path, str]]:
    """Every group that this process is in: its folder, and the same as people know it."""
    own = _own_groups(_text(root / "proc/self/cgroup"))
    for controllers, base, mounted in _mounts(_text(root / "proc/self/mountinfo")):
        path = next((own[name] for name in controllers if name in own), None)
        if path is None:
            continue
        top = root / mounted.lstrip("/")
        inside = _below(path, base)
        for group in (inside, *inside.parents):  # the last one is the mount's top
            folder = top / group
            if folder.is_dir():  # a group may be gone, or not shown here
                yield folder, "/" + str(folder.relative_to(root))


def _own_groups(text: str) -> dict[str, str]:
    """Controller ("" for version 2) -> the path of this process's group."""
    found = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            found.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return found


def _mounts(text: str) -> Iterator[tuple[list[str], str, str]]:
    """Mounted trees with processors or memory: controllers, the mount's root, where it is."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        place, kind = left.split(), right.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        base, mounted = (_unescaped(part) for part in place[3:5])
        if kind[0] == "cgroup2":
            yield [""], base, mounted
        elif kind[0] == "cgroup":
            wanted = [name for name in kind[2].split(",") if name in ("cpu", "memory")]
            if wanted:
                yield wanted, base, mounted


def _unescaped(text: str) -> str:
    r"""Mount tables write a space as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(path: str, base: str) -> PurePosixPath:
    """A group's path as seen from a mount's root; empty where it lies elsewhere."""
    inside = PurePosixPath(path)
    if ".." in inside.parts or not inside.is_relative_to(base):
        return PurePosixPath()
    return inside.relative_to(base)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _number(*paths: Path) -> int | None:
    """The first of these files that holds a whole number."""
    for path in paths:
        text = _text(path).strip()
        if text.isdecimal():
            return int(text)
    return None


def _quota_2(group: Path) -> float | None:
    return _share((_text(group / "cpu.max").split() + ["100000"])[:2])


def _quota_1(group: Path) -> float | None:
    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _share([_text(group / name).strip() for name in files])


def _share(fields: list[str]) -> float | None:
    """Quota over period; "max", -1 and anything else that is no number: no limit."""
    if len(fields) < 2 or not all(text.isdecimal() for text in fields):
        return None
    quota, period = map(int, fields)
    return quota / period if quota and period else None


def _swap(group: Path) -> list[int]:
    """Bytes of swap that a group allows; version 1 limits memory and swap together."""
    allowed, both = _number(group / "memory.swap.max"), _number(group / _BOTH)
    if allowed is None and both is not None and both < UNLIMITED:
        allowed = max(0, both - (_number(group / "memory.limit_in_bytes") or 0))
    return [] if allowed is None else [allowed]


def _droppable(group: Path) -> int:
    """Bytes of page cache in a group's use that the system gives up when they are needed."""
    stat = dict.fromkeys(("inactive_file", "active_file"), 0)
    counts = {}
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            counts[name] = int(value)
    for prefix in ("total_", ""):  # version 1 counts the groups below only under total_
        if any(prefix + name in counts for name in stat):
            return sum(counts.get(prefix + name, 0) for name in stat)
    return max(0, counts.get("file", counts.get("cache", 0)) - counts.get("shmem", 0))
