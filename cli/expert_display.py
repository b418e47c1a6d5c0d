"""What the expert tiers do, for people: a heat map of the experts, and lines of figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cli._render import columns, has_style, say, show_text
from offload.amounts import amount, binary_amount

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

    from offload.expert_stats import ExpertStats, LayerTiers

# how often asked for, in uses of the average expert: up to here; a background, a letter without it
HEAT = ((0.0, "default", " "), (0.5, "grey30", "."), (1.0, "blue", "-"), (2.0, "dark_cyan", "+"),
        (4.0, "dark_orange3", "*"), (float("inf"), "red3", "#"))  # fmt: skip
RESIDENT, MISSED = "o", "x"
NARROWEST = 8  # columns of a row
AROUND = 13  # columns beside the cells: the layer, its hit rate


def show_experts(stats: ExpertStats, before: Mapping[int, np.ndarray], why: str) -> None:
    """The map, as far as anything was asked for, and the lines. why: there are no slots."""
    if any(layer.uses.any() for layer in stats.layers.values()):
        styled = has_style(sys.stdout)
        seen = before if stats.slots else {}
        show_text(heat_map(stats, seen, columns(sys.stdout), styled=styled))
    for line in tier_lines(stats):
        say(line)
    if not stats.slots:
        say(f"No slots: {why.removeprefix('off').lstrip(':, ') or 'off'}.")


def stats_lines(stats: ExpertStats) -> list[str]:
    """What `--stats` says of tiers: nothing where all experts are computed where they lie."""
    return tier_lines(stats) if stats.slots or stats.home == "disk" else []


def uses_so_far(stats: ExpertStats) -> dict[int, np.ndarray]:
    """By layer, a copy: to tell later what was asked for since."""
    return {number: layer.uses.copy() for number, layer in stats.layers.items()}


def tier_lines(stats: ExpertStats) -> list[str]:
    """Hits, bytes, waiting and prediction, and why misses are treated as they are."""
    lines = []
    if stats.slots:
        asked = sum(layer.hits + layer.misses for layer in stats.layers.values())
        lines.append(
            f"expert cache: {stats.hit_rate:.1%} hits of {asked:,} asked for; {stats.slots:,} slots"
            f" ({binary_amount(stats.slot_bytes)}) under {stats.policy}, {stats.copies:,} copies"
        )
    else:
        lines.append(f"expert cache: off; experts lie in {_place(stats.home)}")
    if stats.passes and any(stats.bytes.values()):
        parts = [
            f"{amount(n / stats.passes)} from {_place(tier)}" for tier, n in stats.bytes.items()
        ]
        lines.append(f"routed experts, a pass: {', '.join(parts)}")
    if stats.home == "disk" and stats.read_seconds > 0:
        rate = stats.bytes.get("disk", 0) / stats.read_seconds / 1e9
        lines.append(
            f"reads: {stats.read_seconds:.2f} s at {rate:.2f} GB/s; computing waited for them"
            f" {stats.stalled:.2f} s"
        )
    if stats.prefetched:
        share = stats.prefetch_used / stats.prefetched
        lines.append(
            f"prediction: {amount(stats.prefetched)} read ahead, {share:.0%} of it asked for"
        )
    if stats.guesses:
        lines.append(stats.guesses)
    if stats.decision:
        lines.append(stats.decision)
    return lines


def _place(tier: str) -> str:
    """A tier's name in words."""
    words = {"mmap": "the mapped file", "ram": "RAM", "hugepages": "huge pages", "disk": "the disk"}
    return words.get(tier, tier)


def heat_map(
    stats: ExpertStats, before: Mapping[int, np.ndarray], width: int, *, styled: bool
) -> Text:
    """A row for each layer; columns: experts, as many in a cell as the width demands.

    A cell is as warm as its hottest expert, and marked if that one is resident, or was asked for
    since `before` and is not. The hit rate ends the row where there are slots.
    """
    from rich.text import Text

    total = sum(int(layer.uses.sum()) for layer in stats.layers.values())
    mean = total / max(1, sum(len(layer.uses) for layer in stats.layers.values()))
    text = Text()
    for number, layer in sorted(stats.layers.items()):
        text.append(f"{number:>5} ")
        _add_cells(text, layer, before.get(number), width - AROUND, mean, styled)
        text.append(f" {layer.hit_rate:4.0%}\n" if stats.slots else "\n")
    text.append(" " * 6)
    for (_, colour, letter), name in zip(HEAT[1:], ("<1/2", "<1", "<2", "<4", "more"), strict=True):
        text.append(" " if styled else letter, f"on {colour}" if styled else "")
        text.append(f" {name}  ")
    text.append("times the average use")
    if stats.slots:
        text.append(f"\n{' ' * 6}{RESIDENT} in a slot  {MISSED} missed by the last answer")
    return text


def _add_cells(
    text: Text,
    layer: LayerTiers,
    before: np.ndarray | None,
    width: int,
    mean: float,
    styled: bool,
) -> None:
    """before None: nothing is marked as missed."""
    n_experts = len(layer.uses)
    cells = min(n_experts, max(NARROWEST, width))
    for cell in range(cells):
        first, end = -(-cell * n_experts // cells), -(-(cell + 1) * n_experts // cells)
        hottest = first + int(layer.uses[first:end].argmax())
        uses = int(layer.uses[hottest])
        heat = next(h for h in HEAT if uses <= h[0] * mean)
        mark = " " if styled else heat[2]
        if layer.resident[hottest]:
            mark = RESIDENT
        elif before is not None and uses > before[hottest]:
            mark = MISSED
        text.append(mark, f"bold white on {heat[1]}" if styled else "")
