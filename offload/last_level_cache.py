"""How many bytes the processors' last-level caches hold."""

from __future__ import annotations

from pathlib import Path

CPU = Path("/sys/devices/system/cpu")
ASSUMED_CACHE = 32 << 20


def read_text(path: Path) -> str | None:
    """The stripped text of a small file of the kernel; None where there is none."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def cache_bytes(root: Path = CPU) -> int | None:
    """Bytes of all last-level caches together; None where the system does not say."""
    seen: dict[tuple[int, str], int] = {}
    for index in root.glob("cpu[0-9]*/cache/index*"):
        level, size = read_text(index / "level"), read_text(index / "size")
        shared = read_text(index / "shared_cpu_list") or index.parent.parent.name
        if level and size and size[:-1].isdigit() and read_text(index / "type") != "Instruction":
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            seen[int(level), shared] = int(size[:-1]) * unit
    if not seen:
        return None
    top = max(level for level, _ in seen)
    return sum(size for (level, _), size in seen.items() if level == top)
