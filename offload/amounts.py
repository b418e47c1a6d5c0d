"""Bytes in words for people."""

from __future__ import annotations

GIB = 1 << 30


def amount(n_bytes: float) -> str:
    """In powers of 1000, as disks and files are sold: `245.1 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 999.5:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def binary_amount(n_bytes: float) -> str:
    """In powers of 1024, as memory is sold: `0.31 GiB`, `12.0 MiB`."""
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"
