"""Bytes in words for people."""

from __future__ import annotations

import re

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


UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]i?)?(b?)\s*", re.IGNORECASE | re.ASCII)


def parse_amount(text: str) -> int:
    """Bytes that a text means: '24GiB', '1.5 GB', '512M', '4096'; ValueError says what is needed.

    A plain letter is a power of 1000, with an i one of 1024.
    """
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError("an amount is written like 24GiB, 1.5GB or 512MiB")
    return round(float(found[1]) * UNITS[(found[2] or "").lower()])


_PLAIN = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)


def parse_rate(text: str) -> float:
    """Bytes per second: '89.6GB/s', '500 MB/s'; a plain number counts GB/s; ValueError."""
    words = text.strip().lower().removesuffix("/s").strip()
    if _PLAIN.fullmatch(words):
        return float(words) * 1e9
    try:
        return float(parse_amount(words))
    except ValueError:
        raise ValueError("a rate is written like 89.6GB/s or 500MB/s") from None
