"""What programs did under memory budgets, as lines and a table for people."""

from __future__ import annotations

from typing import Any

from offload.amounts import binary_amount

NAMES = {"ours": "kimi-offload", "mmap": "kimi-offload, plain mmap", "llama_cpp": "llama.cpp"}
COLUMNS = (
    "RAM", "of the model>", "program", "load s>", "prompt t/s>", "first t/s>", "steady t/s>",
    "median>", "ours is x>", "MB/token>", "disk GB/s>", "hits>", "arrival GB/s>", "of the disk's>",
)  # fmt: skip


def summed_up(run: dict[str, Any]) -> str:
    """One program under one budget, in a line."""
    for trouble in ("killed", "error"):
        if trouble in run:
            return f"{trouble}: {run[trouble]}"
    return (
        f"{run['steady_tps']:.2f} tokens/s after {run['warmup_tokens']} tokens, "
        f"{run['bytes_per_token'] / 1e6:.1f} MB per token from the disk"
    )


def budget_table(
    result: dict[str, Any],
) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """All budgets and programs."""
    rows = []
    for entry in result["budgets"]:
        for side in NAMES:
            if side not in entry:
                continue
            run, name = entry[side], NAMES[side]
            if "steady_tps" not in run:
                name += f": {summed_up(run)}"
            figures = _figures(run, entry["ratio"].get(side))
            rows.append((binary_amount(entry["ram"]), f"{entry['share']:.0%}", name, *figures))
    model = result["model"]
    return (f"{model['name']} ({model['path']}), {binary_amount(model['bytes'])}", COLUMNS, rows)


def _figures(run: dict[str, Any], ratio: float | None) -> tuple[str, ...]:
    if "steady_tps" not in run:
        return ("",) * (len(COLUMNS) - 3)
    return (
        f"{run['load_seconds']:.1f}",
        f"{run['prompt_tps']:.2f}",
        f"{run['first_tps']:.2f}",
        f"{run['steady_tps']:.2f}",
        f"{run['steady_tps_median']:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{run['bytes_per_token'] / 1e6:.1f}",
        f"{run['disk_gbps']:.2f}",
        f"{run['hit_rate']:.0%}" if "hit_rate" in run else "",
        f"{run['arrival_gbps']:.2f}" if run.get("arrival_gbps") else "",
        f"{run['of_sequential']:.0%}" if "of_sequential" in run else "",
    )
