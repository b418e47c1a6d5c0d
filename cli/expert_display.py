"""What the expert tiers do, for people: a heat map of the experts, and lines of figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
HOT, RESIDENT, MISSED = "O", "o", "x"
NARROWEST = 8  # columns of a row
AROUND = 13  # columns beside the cells: the layer, its hit rate


def show_experts(stats: ExpertStats, before: Mapping[int, np.ndarray], why: str) -> None:
    """The map, as far as anything was asked for, and the lines. why: there are no slots."""
    top = stats.hot or stats
    if any(layer.uses.any() for layer in top.layers.values()):
        styled = has_style(sys.stdout)
        seen = before if top.slots else {}
        show_text(heat_map(stats, seen, columns(sys.stdout), styled=styled))
    for line in tier_lines(stats):
        say(line)
    if not stats.slots and stats.hot is None:
        say(f"No slots: {why.removeprefix('off').lstrip(':, ') or 'off'}.")


def stats_lines(stats: ExpertStats) -> list[str]:
    """What `--stats` says of tiers: nothing where all experts are computed where they lie."""
    return tier_lines(stats) if stats.slots or stats.home == "disk" or stats.hot else []


def uses_so_far(stats: ExpertStats) -> dict[int, np.ndarray]:
    """By layer, a copy: to tell later what was asked for since."""
    return {number: layer.uses.copy() for number, layer in (stats.hot or stats).layers.items()}


def tier_lines(stats: ExpertStats) -> list[str]:
    """Hits, bytes, waiting and prediction, and why misses are treated as they are; VRAM first."""
    lines = []
    if stats.hot is not None:
        lines += _hot_lines(stats.hot)
    if stats.slots:
        lines.append(f"expert cache: {_slots_line(stats)}")
    elif stats.hot is None or stats.home == "disk":
        lines.append(f"expert cache: off; experts lie in {_place(stats.home)}")
    if parts := _bytes_a_pass(stats):
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


def _slots_line(stats: ExpertStats) -> str:
    asked = sum(layer.hits + layer.misses for layer in stats.layers.values())
    return (
        f"{stats.hit_rate:.1%} hits of {asked:,} asked for; {stats.slots:,} slots"
        f" ({binary_amount(stats.slot_bytes)}) under {stats.policy}, {stats.copies:,} copies"
    )


def _hot_lines(hot: ExpertStats) -> list[str]:
    """Slots in VRAM, and what filling them took."""
    lines = [f"experts in VRAM: {_slots_line(hot)}" if hot.slots else "experts in VRAM: no slots"]
    if hot.bytes_copied and hot.copy_seconds:
        failed = f", {hot.failures:,} failed" if hot.failures else ""
        lines.append(
            f"copies into VRAM: {amount(hot.bytes_copied)} in {hot.copy_seconds:.2f} s"
            f" ({hot.bytes_copied / hot.copy_seconds / 1e9:.1f} GB/s){failed}; choosing them took"
            f" {hot.bookkeeping:.2f} s beside the computation"
        )
    return lines + [line for line in (hot.off_because, hot.decision) if line]


def _bytes_a_pass(stats: ExpertStats) -> list[str]:
    """From each tier, the fastest first."""
    parts = []
    if stats.hot is not None and stats.hot.passes:
        hot = stats.hot
        below = {} if stats.slots or stats.home == "disk" else {hot.home: hot.bytes[hot.home]}
        parts = [
            f"{amount(n / hot.passes)} from {_place(tier)}"
            for tier, n in ({"vram": hot.bytes["vram"]} | below).items()
        ]
    if stats.passes and any(stats.bytes.values()):
        names = {"slots": "slots in RAM"} if stats.hot is not None else {}
        parts += [
            f"{amount(n / stats.passes)} from {names.get(tier) or _place(tier)}"
            for tier, n in stats.bytes.items()
        ]
    return parts


def _place(tier: str) -> str:
    """A tier's name in words."""
    words = {
        "vram": "VRAM", "ram": "RAM", "hugepages": "huge pages", "mmap": "the mapped file",
        "disk": "the disk",
    }  # fmt: skip
    return words.get(tier, tier)


def heat_map(
    stats: ExpertStats, before: Mapping[int, np.ndarray], width: int, *, styled: bool
) -> Text:
    """A row for each layer; columns: experts, as many in a cell as the width demands.

    A cell is as warm as its hottest expert, and marked if that one lies in a slot, or was asked for
    since `before` and does not. The hit rate, of VRAM if it has slots, ends the row.
    """
    from rich.text import Text

    top = stats.hot or stats
    total = sum(int(layer.uses.sum()) for layer in top.layers.values())
    mean = total / max(1, sum(len(layer.uses) for layer in top.layers.values()))
    text = Text()
    for number, layer in sorted(top.layers.items()):
        marks = []
        if stats.hot is not None:
            marks.append((HOT, layer.resident))
        if number in stats.layers:
            marks.append((RESIDENT, stats.layers[number].resident))
        text.append(f"{number:>5} ")
        _add_cells(text, layer, marks, before.get(number), width - AROUND, mean, styled)
        text.append(f" {layer.hit_rate:4.0%}\n" if top.slots else "\n")
    text.append(" " * 6)
    for (_, colour, letter), name in zip(HEAT[1:], ("<1/2", "<1", "<2", "<4", "more"), strict=True):
        text.append(" " if styled else letter, f"on {colour}" if styled else "")
        text.append(f" {name}  ")
    text.append("times the average use")
    if top.slots or stats.slots:
        names = f"{HOT} in VRAM  " if stats.hot is not None else ""
        names += f"{RESIDENT} in a slot{' in RAM' * bool(names)}  " if stats.slots else ""
        text.append(f"\n{' ' * 6}{names}{MISSED} missed by the last answer")
    return text


def _add_cells(
    text: Text,
    layer: LayerTiers,
    marks: Sequence[tuple[str, np.ndarray]],
    before: np.ndarray | None,
    width: int,
    mean: float,
    styled: bool,
) -> None:
    """marks: (letter, who has it), the first counts. before None: nothing is marked as missed."""
    n_experts = len(layer.uses)
    cells = min(n_experts, max(NARROWEST, width))
    for cell in range(cells):
        first, end = -(-cell * n_experts // cells), -(-(cell + 1) * n_experts // cells)
        hottest = first + int(layer.uses[first:end].argmax())
        uses = int(layer.uses[hottest])
        heat = next(h for h in HEAT if uses <= h[0] * mean)
        mark = " " if styled else heat[2]
        found = [letter for letter, there in marks if there[hottest]]
        if found:
            mark = found[0]
        elif before is not None and uses > before[hottest]:
            mark = MISSED
        text.append(mark, f"bold white on {heat[1]}" if styled else "")
