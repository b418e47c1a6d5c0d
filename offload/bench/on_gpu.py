"""What a bench with a GPU says besides: the card, both sides' parts, and the cache against none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from offload.bench.options import ModelOptions
from offload.bench.split_times import SplitFigures
from offload.errors import DeviceError, RequestError
from offload.forecast.gpus import card_of
from offload.gpu.probe import GpuFacts
from offload.hardware import gpus
from offload.plan import Plan

GOAL_LAUNCHING: Final = 0.03  # of a token
Result = dict[str, Any]


def found_gpus(device: str) -> list[GpuFacts]:
    """Those that can be used; DeviceError if there is none. device: as asked."""
    if isinstance(found := gpus(), str):
        raise DeviceError(f"--device {device}: {found}; leave --device out to measure the CPU")
    return found


def check_where(plan: Plan, device: str) -> None:
    """RequestError if the plan is not for what was asked."""
    if device == "cuda" and len(plan.devices) > 1:
        raise RequestError(
            "--device cuda: the model does not fit into the GPU as a whole; --device hybrid shares "
            "it with the CPU"
        )


def card_facts(plan: Plan) -> Result:
    """Of the plan's GPU; "published" are its maker's figures, None: not known."""
    found = gpus()
    assert plan.vram is not None
    same = [gpu for gpu in found if isinstance(gpu, GpuFacts) and gpu.name == plan.vram.gpu]
    told: Result = asdict(same[0]) if same else {"name": plan.vram.gpu}
    told["pcie_rate"] = same[0].pcie_rate if same else None
    card = card_of(plan.vram.gpu)
    return told | {"published": None if card is None else asdict(card)}


def of_vram(
    read: Mapping[int, float], ours: Mapping[str, Any], card: Mapping[str, Any]
) -> dict[str, float | None]:
    """Which share of its memory's rate a GPU that has everything reads weights at, by work."""
    rate = (card.get("published") or {}).get("bandwidth")
    works = {f"decode {depth}": n_bytes for depth, n_bytes in read.items()}
    return {w: _share(n * ours[w]["tps"], rate) for w, n in works.items() if w in ours}


def split_result(
    splits: Mapping[int, list[SplitFigures]], card: Mapping[str, Any], read_gbps: float
) -> Result:
    """Medians by work, as milliseconds, and shares of what each memory and link could do."""
    published = card.get("published") or {}
    rates = {
        "vram": published.get("bandwidth"),
        "link": card.get("pcie_rate") or published.get("pcie"),
        "ram": 1e9 * read_gbps,
    }
    return {f"decode {depth}": _figures(found, rates) for depth, found in splits.items()}


def _figures(found: list[SplitFigures], rates: Mapping[str, float | None]) -> Result:
    names = SplitFigures.__dataclass_fields__
    median = SplitFigures(
        **{name: statistics.median(getattr(one, name) for one in found) for name in names}
    )
    used = {
        "vram": median.gpu_read / median.gpu if median.gpu else 0.0,
        "link": median.copied / median.total if median.total else 0.0,
        "ram": median.cpu_read / median.cpu if median.cpu else 0.0,
    }
    shares = {f"{name}_share": _share(used[name], rate) for name, rate in rates.items()}
    times = ("total", "cpu", "gpu", "waited", "launching")
    return {
        **{f"{name}_ms": round(1e3 * getattr(median, name), 4) for name in times},
        "hits": round(median.hits, 4),
        "copied_mb": round(median.copied / 1e6, 3),
        "overlap": round(median.overlap, 4),
        "beyond_longer_side": round(median.over, 4),
        "launching_share": round(median.launching_share, 5),
        **shares,
    }


def _share(used: float, rate: float | None) -> float | None:
    return None if not rate else round(used / rate, 4)


def with_and_without_cache(
    options: ModelOptions, measure: Callable[[ModelOptions], Result]
) -> Result:
    """A hybrid twice, with its slots in VRAM and without, half of the time each."""
    half = replace(options, seconds=options.seconds / 2)
    result = measure(half)
    bare = measure(replace(half, cache="off"))
    result["without_cache"] = {
        "ours": bare["ours"],
        "hybrid": bare["hybrid"],
        "ratio": {
            work: round(figures["tps"] / bare["ours"][work]["tps"], 3)
            for work, figures in result["ours"].items()
        },
    }
    return result


def gpu_tables(result: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], list[Any]]]:
    """For people."""
    card = result["gpu"]
    rows = [
        ("GPU", str(card["name"])),
        ("power limit", _known(card.get("power_limit"), " W")),
        ("driver", _known(card.get("driver"))),
        ("link", _gb(card.get("pcie_rate"))),
        ("memory, published", _gb((card.get("published") or {}).get("bandwidth"))),
    ]
    for work, share in result.get("vram_share", {}).items():
        rows.append((f"of its rate, {work}", "unknown" if share is None else f"{share:.0%}"))
    found: list[tuple[str, tuple[str, ...], list[Any]]] = [("GPU", ("", ""), rows)]
    if "hybrid" in result:
        columns = (
            "GPU and CPU, ms", "token>", "CPU's experts>", "GPU's part>", "waited>", "launching>",
            "hits>", "hidden>", "of VRAM>", "of the link>", "of RAM>", "MB copied>",
        )  # fmt: skip
        rows_of = [_split_row(work, f) for work, f in result["hybrid"].items()]
        if "without_cache" in result:
            bare = result["without_cache"]
            rows_of += [_split_row(f"{w}, no cache", f) for w, f in bare["hybrid"].items()]
            ratios = ", ".join(f"{work}: {ratio:.2f}" for work, ratio in bare["ratio"].items())
            rows_of.append((f"speed over no cache, {ratios}", *[""] * (len(columns) - 1)))
        found.append(("", columns, rows_of))
    return found


def _split_row(work: str, f: Mapping[str, Any]) -> tuple[str, ...]:
    goal = "" if f["launching_share"] <= GOAL_LAUNCHING else " (above 3%)"
    shares = (f[f"{name}_share"] for name in ("vram", "link", "ram"))
    return (
        work,
        *(f"{f[f'{name}_ms']:.3f}" for name in ("total", "cpu", "gpu", "waited")),
        f"{f['launching_ms']:.3f}, {f['launching_share']:.1%}{goal}",
        f"{f['hits']:.0%}",
        f"{f['overlap']:.0%}",
        *("unknown" if share is None else f"{share:.0%}" for share in shares),
        f"{f['copied_mb']:.1f}",
    )


def _known(value: object, unit: str = "") -> str:
    return "not readable here" if value is None else f"{value}{unit}"


def _gb(rate: float | None) -> str:
    return _known(None if rate is None else f"{rate / 1e9:.1f} GB/s")
