"""Physical cores, efficiency cores, memory nodes, and what other programs do: Linux' own words."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices")
STAT = Path("/proc/stat")
SLOW = 0.6  # of the fastest core's capacity: below, a core counts as an efficiency core
SHORTEST = 0.1  # seconds that say something about other programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A physical core. cpus: its logical cores (hyper-threads)."""

    cpus: tuple[int, ...]
    is_efficient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """cores: fast ones first, () where the system does not say. nodes: those with memory."""

    cores: tuple[Core, ...] = ()
    nodes: tuple[int, ...] = (0,)

    @property
    def fast(self) -> tuple[Core, ...]:
        """The cores that are no efficiency cores."""
        return tuple(core for core in self.cores if not core.is_efficient)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def cpu_list(text: str | None) -> tuple[int, ...]:
    """'0-2,8' -> (0, 1, 2, 8); () for anything else."""
    found: list[int] = []
    try:
        for part in (text or "").split(","):
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    except ValueError:
        return ()
    return tuple(found)


def read_topology(root: Path = SYSTEM) -> Topology:
    """The topology of a /sys/devices tree; takes about a millisecond."""
    base = root / "system/cpu"
    online = cpu_list(_text(base / "online"))
    siblings = {
        cpu: cpu_list(_text(base / f"cpu{cpu}/topology/thread_siblings_list")) or (cpu,)
        for cpu in online
        if (base / f"cpu{cpu}/topology").is_dir()
    }
    slow = _efficiency_cpus(root, online)
    cores = {
        min(cpus): Core(
            cpus=tuple(c for c in cpus if c in online), is_efficient=slow.issuperset(cpus)
        )
        for cpus in siblings.values()
    }
    ordered = sorted(cores.values(), key=lambda core: (core.is_efficient, core.cpus))
    if all(core.is_efficient for core in ordered):
        ordered = [Core(cpus=core.cpus) for core in ordered]
    nodes = cpu_list(_text(root / "system/node/has_memory"))
    return Topology(cores=tuple(ordered), nodes=nodes or (0,))


def _efficiency_cpus(root: Path, online: tuple[int, ...]) -> set[int]:
    """Logical cores of the slower kind: Intel's own list, else by capacity, else by clock."""
    atom = cpu_list(_text(root / "cpu_atom/cpus"))
    if atom and cpu_list(_text(root / "cpu_core/cpus")):
        return set(atom)
    base = root / "system/cpu"
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        texts = {cpu: _text(base / f"cpu{cpu}" / name) for cpu in online}
        speeds = {cpu: int(text) for cpu, text in texts.items() if text and text.isdigit()}
        if speeds and len(speeds) == len(online):
            return {cpu for cpu, speed in speeds.items() if speed < SLOW * max(speeds.values())}
    return set()


class OtherWork:
    """How busy other programs keep the machine from now on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._own = time.process_time()
        self._busy = _busy_seconds()

    def share(self, cores: int) -> float | None:
        """Of `cores` cores' time, by others; None if unknown or too early to say."""
        seconds = time.monotonic() - self._began
        now = _busy_seconds()
        if now is None or self._busy is None or seconds < SHORTEST:
            return None
        own = time.process_time() - self._own
        return max(0.0, now - self._busy - own) / (seconds * cores)


def _busy_seconds() -> float | None:
    """Seconds that all processors have worked for programs."""
    line = (_text(STAT) or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, _idle, _wait, irq, soft, _steal = (int(x) for x in line[1:9])
    return float(user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
