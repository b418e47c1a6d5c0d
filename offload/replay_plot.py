"""Hit rates as a picture: a line for each policy over the number of slots."""

from __future__ import annotations

from os import PathLike

from offload.bench.plot import check_matplotlib
from offload.replay import HitRates


def plot_hit_rates(rates: HitRates, path: str | PathLike[str]) -> None:
    """Write a PNG. Raises RequestError without matplotlib."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, hits in rates.hits.items():
        style = "k--" if name == "belady" else "o-"
        axes.plot(rates.slots, [100 * h for h in hits], style, label=name, markersize=4)
    axes.axvline(rates.token_cycle, color="gray", linestyle=":", label="one token's experts")
    axes.set_ylim(0, 100)
    axes.set_xlabel("slots")
    axes.set_ylabel("% hits")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
