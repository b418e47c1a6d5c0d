"""What a measurement has to say about its machine: processor, clocks, caches, and who else ran."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from offload.hardware import HardwareProfile
from offload.last_level_cache import ASSUMED_CACHE, CPU, cache_bytes, read_text

DISTURBED = 0.03  # share of the machine's time that another program or guest may take


def _first_numbers(paths: list[Path], scale: float) -> list[float]:
    return [float(t) * scale for p in paths if (t := read_text(p)) and t.isdigit()]


def frequencies_mhz() -> list[float]:
    """The clock of every core now; empty where the system does not say."""
    found = _first_numbers(sorted(CPU.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")), 1e-3)
    if found:
        return found
    lines = (read_text(Path("/proc/cpuinfo")) or "").splitlines()
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]


def throttle_count() -> int | None:
    """How often cores were slowed for heat so far; None where the system does not say."""
    found = _first_numbers(list(CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")), 1)
    return int(sum(found)) if found else None


def _busy() -> tuple[float, float] | None:
    """(seconds that all processors worked, seconds stolen by the host) since the start."""
    lines = (read_text(Path("/proc/stat")) or "").splitlines()
    if not lines or not lines[0].startswith("cpu "):
        return None
    ticks = [int(x) / os.sysconf("SC_CLK_TCK") for x in lines[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, soft, steal = ticks
    return user + nice + system + irq + soft, steal


@dataclass(slots=True)
class Watch:
    """Looks at the machine at the start and the end of a run."""

    cores: int
    began: float = field(default_factory=time.monotonic)
    load_before: tuple[float, ...] = ()
    _own: float = field(default_factory=lambda: _own_seconds())
    _busy: tuple[float, float] | None = field(default_factory=_busy)
    _throttled: int | None = field(default_factory=throttle_count)

    def __post_init__(self) -> None:
        self.load_before = _load()

    def finish(self) -> dict[str, object]:
        """Facts about the run, for the report; "warnings" lists what disturbed it."""
        seconds = max(1e-9, time.monotonic() - self.began)
        facts: dict[str, object] = {
            "seconds": round(seconds, 2),
            "load_before": list(self.load_before),
            "load_after": list(_load()),
            "mhz": [round(x) for x in frequencies_mhz()],
            "throttled": None,
            "others_share": None,
            "stolen_share": None,
        }
        warnings = []
        now = _busy()
        if now is not None and self._busy is not None:
            own = _own_seconds() - self._own
            room = seconds * self.cores
            others = max(0.0, now[0] - self._busy[0] - own) / room
            stolen = max(0.0, now[1] - self._busy[1]) / room
            facts |= {"others_share": round(others, 4), "stolen_share": round(stolen, 4)}
            if others > DISTURBED:
                warnings.append(f"other programs used {others:.0%} of the processors meanwhile")
            if stolen > DISTURBED / 3:
                warnings.append(f"the host gave {stolen:.1%} of the time to other guests")
        after = throttle_count()
        if after is not None and self._throttled is not None:
            facts["throttled"] = after - self._throttled
            if after > self._throttled:
                warnings.append(f"cores were slowed for heat {after - self._throttled} times")
        if warnings:
            warnings[-1] += "; trust the best figures more than the medians, or run it again"
        facts["warnings"] = warnings
        return facts


def _own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _load() -> tuple[float, ...]:
    try:
        return tuple(round(x, 2) for x in os.getloadavg())
    except (OSError, AttributeError):
        return ()


def describe(hardware: HardwareProfile, threads: int) -> dict[str, object]:
    """The facts that do not change during a run."""
    cpu = hardware.cpu
    cache = cache_bytes()
    most = _first_numbers([CPU / "cpu0/cpufreq/cpuinfo_max_freq"], 1e-3)
    return {
        "cpu": cpu.name,
        "isa": cpu.simd,
        "cores": cpu.cores,
        "logical": cpu.threads,
        "threads": threads,
        "max_mhz": most[0] if most else None,
        "governor": read_text(CPU / "cpu0/cpufreq/scaling_governor"),
        "cache_bytes": cache or ASSUMED_CACHE,
        "cache_assumed": cache is None,
        "ram_total": cpu.ram_total,
        "ram_free": cpu.ram_free,
    }
