"""The roofline picture of a shape's result: how near each part comes to the read bandwidth."""

from __future__ import annotations

from os import PathLike
from typing import Any

from offload.bench.layer_bench import PARTS
from offload.errors import RequestError


def write_plot(result: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write a PNG: time of each part beside its bytes over the bandwidth, and GB/s per part.

    Raises RequestError without matplotlib, or for a result of `bench MODEL`.
    """
    if result["kind"] != "shape":
        raise RequestError("--plot draws a layer's parts: give --shape as well")
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    times, roof = figure.subplots(1, 2)
    _times(times, result)
    _roof(roof, result)
    shape, machine = result["shape"], result["machine"]
    figure.suptitle(
        f"{shape['name']}, experts {shape['gate_up']}:{shape['down']} - {machine['cpu']}, "
        f"{machine['isa']}, {machine['threads']} threads"
    )
    figure.savefig(path, dpi=150, format="png")


def check_matplotlib() -> None:
    """Raise RequestError unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise RequestError(
            "--plot needs matplotlib, which is not installed; pip install matplotlib"
        ) from exc


def _times(axes: Any, result: dict[str, Any]) -> None:
    """Milliseconds per part; a line where memory would set the limit."""
    names = [*PARTS, "layer"]
    programs = [p for p in ("ours", "llama_cpp") if p in result]
    width = 0.8 / len(programs)
    label = {"ours": "kimi-offload", "llama_cpp": "llama.cpp"}
    for k, program in enumerate(programs):
        x = [i + (k - (len(programs) - 1) / 2) * width for i in range(len(names))]
        axes.bar(x, [result[program][f"{n}_ms"] for n in names], width, label=label[program])
    for i, name in enumerate(names):
        limit = result["shape"]["part_bytes"][name] / result["machine"]["read_gbps"] * 1e-6
        axes.plot([i - 0.45, i + 0.45], [limit, limit], "k--", label="memory" if i == 0 else None)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("ms per layer and token")
    axes.legend()


def _roof(axes: Any, result: dict[str, Any]) -> None:
    """GB/s of each part under the roof of one thread and of all."""
    names = [*PARTS, "layer"]
    axes.bar(range(len(names)), [result["gbps"][n] for n in names], 0.6)
    machine = result["machine"]
    axes.axhline(machine["read_gbps"], color="k", linestyle="--", label="read bandwidth")
    axes.axhline(machine["read_gbps_one_thread"], color="k", linestyle=":", label="one thread")
    for i, name in enumerate(names):
        axes.text(i, result["gbps"][name], f"{result['roof_fraction'][name]:.0%}", ha="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("GB/s read")
    axes.legend()
