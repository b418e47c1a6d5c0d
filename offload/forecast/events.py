"""What was simulated: events by lane, figures by pass, and one layer of it as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Lane = Literal["gpu", "cpu", "link", "disk"]
LANES: dict[Lane, str] = {"gpu": "GPU", "cpu": "CPU", "link": "link", "disk": "disk"}
COLUMNS = 88  # of a picture's lane


class Event(NamedTuple):
    """One thing that a lane does, in seconds. number: the pass; layer -1: the head.

    A "failed copy" took its time but brought nothing.
    """

    lane: Lane
    what: str
    start: float
    end: float
    number: int
    layer: int
    expert: int = -1
    slot: int = -1


@dataclass(slots=True, kw_only=True)
class Pass:
    """One forward pass, in seconds. hits, misses: experts that lay in a slot, and that did not.

    copies, reads: begun. gpu_waits: for the CPU; cpu_waits: for the disk. hidden: how much of
    hideable, the shorter of GPU's and CPU's work on experts, ran while the other worked.
    """

    start: float
    end: float = 0.0
    hits: int = 0
    misses: int = 0
    copies: int = 0
    reads: int = 0
    gpu_waits: float = 0.0
    cpu_waits: float = 0.0
    hidden: float = 0.0
    hideable: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All passes. Figures are of their second half, when slots are full. str() shows one layer."""

    events: list[Event]
    passes: list[Pass]
    slots: int
    policy: str

    @property
    def steady(self) -> list[Pass]:
        """The second half."""
        return self.passes[len(self.passes) // 2 :]

    @property
    def seconds_per_token(self) -> float:
        """Of a pass."""
        return (self.steady[-1].end - self.steady[0].start) / len(self.steady)

    @property
    def tokens_per_second(self) -> float:
        """Passes in a second."""
        return 1 / self.seconds_per_token if self.seconds_per_token else float("inf")

    @property
    def hit_rate(self) -> float:
        """Hits of all that was asked for, 0 .. 1."""
        hits = sum(p.hits for p in self.steady)
        return hits / max(1, hits + sum(p.misses for p in self.steady))

    @property
    def overlap(self) -> float:
        """Which share of the shorter side's work on experts, GPU or CPU, is hidden; 0 .. 1."""
        hideable = sum(p.hideable for p in self.steady)
        return sum(p.hidden for p in self.steady) / hideable if hideable else 1.0

    def share(self, seconds: Sequence[float]) -> float:
        """Of the second half's time."""
        return sum(seconds) / max(1e-30, self.steady[-1].end - self.steady[0].start)

    def layer(self, number: int, layer: int) -> list[Event]:
        """What GPU, CPU and disk do for a layer, and whatever the link does meanwhile."""
        own = [e for e in self.events if (e.number, e.layer) == (number, layer)]
        own = [e for e in own if e.lane != "link"]
        start, end = min(e.start for e in own), max(e.end for e in own)
        links = (e for e in self.events if e.lane == "link" and e.start < end and e.end > start)
        return own + list(links)

    def middle_layer(self) -> list[Event]:
        """Of the last pass."""
        last = len(self.passes) - 1
        layers = sorted({e.layer for e in self.events if e.number == last and e.layer >= 0})
        return self.layer(last, layers[len(layers) // 2])

    def __str__(self) -> str:
        n = len(self.steady)
        waits = self.share([p.gpu_waits for p in self.steady])
        lines = [
            f"{self.tokens_per_second:.1f} tokens/s, {1e3 * self.seconds_per_token:.1f} ms each",
            f"{self.slots} slots under {self.policy}: {self.hit_rate:.0%} hits, "
            f"{sum(p.copies for p in self.steady) / n:.1f} copies a token",
            f"{self.overlap:.0%} of the shorter side's work on experts is hidden; "
            f"the GPU waits {waits:.0%} of the time",
        ]
        if any(p.reads for p in self.passes):
            reads = sum(p.reads for p in self.steady) / n
            waits = self.share([p.cpu_waits for p in self.steady])
            lines.append(f"{reads:.1f} reads a token; the CPU waits {waits:.0%} of the time")
        return "\n\n".join([picture(self.middle_layer()), "\n".join(lines)])


def picture(events: Sequence[Event], columns: int = COLUMNS) -> str:
    """A line for each lane in use: `|` is where something starts, `.` where nothing is done."""
    own = [e for e in events if e.lane != "link"]
    start, end = min(e.start for e in own), max(e.end for e in own)
    column = (end - start) / columns
    lines = [
        f"pass {own[0].number}, layer {own[0].layer}: {1e6 * (end - start):.0f} us, "
        f"{1e6 * column:.1f} us a column"
    ]
    for lane, title in LANES.items():
        there = sorted((e for e in events if e.lane == lane), key=lambda e: e.start)
        if there or lane in ("gpu", "cpu"):
            lines.append(f"{title:<5}{_bars(there, start, column, columns)}")
    return "\n".join(lines)


def _bars(events: Sequence[Event], start: float, column: float, columns: int) -> str:
    """Names as far as they have room; what is under way before or after is cut off."""
    cells = ["."] * columns
    for event in events:
        first = round((event.start - start) / column) if column else 0
        last = round((event.end - start) / column) if column else 0
        name = event.what if event.expert < 0 else f"{event.what} {event.expert}"
        text = f"|{name:<{max(0, last - first)}}"[: max(1, last - first)]
        for at, letter in enumerate(text, first):
            if 0 <= at < columns:
                cells[at] = letter
    return "".join(cells) + "|"
