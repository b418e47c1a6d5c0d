"""A timeline as a picture: one layer's lanes, and how passes go on."""

from __future__ import annotations

from os import PathLike
from typing import Any

from offload.bench.plot import check_matplotlib
from offload.forecast.events import LANES, Event, Timeline

COLOURS = {
    "start": "lightgray",
    "attention": "tab:blue",
    "router": "tab:cyan",
    "post": "tab:gray",
    "shared": "tab:olive",
    "hit": "tab:green",
    "merge": "tab:purple",
    "wake": "black",
    "miss": "tab:orange",
    "copy": "tab:pink",
    "failed copy": "tab:red",
    "read": "tab:brown",
}


def plot(timeline: Timeline, path: str | PathLike[str]) -> None:
    """Write a PNG: a layer of the last pass above, milliseconds and hits of every pass below.

    Raises RequestError without matplotlib.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    lanes, passes = figure.subplots(2, 1)
    _lanes(lanes, timeline.middle_layer())
    _passes(passes, timeline)
    figure.suptitle(
        f"{timeline.tokens_per_second:.1f} tokens/s; {timeline.slots} slots under "
        f"{timeline.policy}, {timeline.hit_rate:.0%} hits"
    )
    figure.savefig(path, dpi=150, format="png")


def _lanes(axes: Any, events: list[Event]) -> None:
    """A row for each lane, in microseconds from the layer's start."""
    names = list(LANES)
    own = [e for e in events if e.lane != "link"]
    start, end = min((e.start for e in own), default=0.0), max((e.end for e in own), default=0.0)
    for what, colour in COLOURS.items():
        shown = [e for e in events if e.what == what]
        axes.barh(
            [names.index(e.lane) for e in shown],
            [1e6 * (e.end - e.start) for e in shown],
            left=[1e6 * (e.start - start) for e in shown],
            color=colour,
            edgecolor="white",
            label=what if shown else None,
        )
    axes.set_xlim(0, max(1e6 * (end - start), 1e-3))
    axes.set_yticks(range(len(names)), list(LANES.values()))
    axes.invert_yaxis()
    axes.set_xlabel("us of one layer")
    axes.legend(ncols=len(COLOURS), fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))


def _passes(axes: Any, timeline: Timeline) -> None:
    """Time and hits, pass by pass."""
    passes = timeline.passes
    axes.plot([1e3 * (p.end - p.start) for p in passes], label="ms a pass")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pass")
    axes.set_ylabel("ms")
    hits = axes.twinx()
    hits.plot([p.hits / max(1, p.hits + p.misses) for p in passes], "C1", label="hits")
    hits.set_ylim(0, 1)
    hits.set_ylabel("hits")
    axes.legend(loc="upper left")
    hits.legend(loc="upper right")
