"""Row: one thing that was checked or measured. Their table, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
HEAD = ("part", "check", "value", "unit", "goal", "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """ok None: there is nothing to hold it to. goal: in the unit of value, in words."""

    check: str
    value: float | str
    unit: str = ""
    goal: str = ""
    ok: bool | None = None


def fact(check: str, value: float | str | None, unit: str = "") -> Row:
    """Something without a goal; None: it could not be found out."""
    return Row(check=check, value="unknown" if value is None else value, unit=unit)


def missing(check: str, why: object) -> Row:
    """What this version, or this machine, does not have."""
    return Row(check=check, value=f"missing: {why}")


def at_least(check: str, value: float, unit: str, goal: float) -> Row:
    """A rate."""
    return Row(check=check, value=value, unit=unit, goal=f">= {goal:g}", ok=value >= goal)


def at_most(check: str, value: float, unit: str, goal: float) -> Row:
    """An error, or a cost."""
    return Row(check=check, value=value, unit=unit, goal=f"<= {goal:g}", ok=value <= goal)


def same_bits(check: str, found: Array, exact: Array) -> Row:
    """How many of an array's numbers differ in a bit; what is not a number is all the same."""
    if found.shape != exact.shape or found.dtype != exact.dtype:
        raise ValueError(f"{check}: {found.dtype} {found.shape}, {exact.dtype} {exact.shape}")
    bits = np.dtype(f"u{found.itemsize}")
    differ = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(exact).view(bits)
    if found.dtype.kind == "f":
        differ &= ~(np.isnan(found) & np.isnan(exact))
    count = int(differ.sum())
    return Row(check=check, value=count, unit=f"of {found.size} differ", goal="0", ok=not count)


def near(check: str, found: Array, exact: Array, goal: float) -> Row:
    """Relative L2 distance; not a number counts as far away."""
    distance = np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact)
    return at_most(check, float(np.nan_to_num(distance, nan=np.inf)), "relative error", goal)


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 with one rounding: rounded to odd as float64 first."""
    product = a.astype(np.float64) * b
    total = product + c
    back = total - product
    rest = (product - (total - back)) + (c - back)
    even = (total.view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (rest != 0) & even
    nudged = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
    rounded: Array = np.where(inexact, nudged, total).astype(np.float32)
    return rounded


def table(rows: Iterable[tuple[str, Row]]) -> list[str]:
    """Lines of (part, row)."""
    shown = [HEAD, *((part, *_cells(row)) for part, row in rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(HEAD))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in shown]


def _cells(row: Row) -> Sequence[str]:
    value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
    return row.check, value, row.unit, row.goal, {None: "", True: "yes", False: "NO"}[row.ok]
