"""A page of results for one machine, from what `kimi-offload bench --json FILE` wrote.

    python -m offload.bench.results FILE.json ... > bench/results/MACHINE.md

One row per run of a shape, then every run's tables as the terminal showed them, with its notes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offload.bench.report import tables
from offload.errors import OffloadError, RequestError

COMPARED = ("cpu", "isa", "threads")  # facts of a machine that all runs of a page share
SUMMARY = (
    "experts",
    "after>",
    "routed ms>",
    "llama.cpp>",
    "ratio>",
    "layer ms>",
    "llama.cpp>",
    "ratio>",
    "prompt ratio>",
    "of the roof>",
    "read GB/s>",
    "decode t/s>",
    "llama.cpp>",
    "others>",
)


def page(results: Sequence[dict[str, Any]]) -> str:
    """Markdown with all runs; RequestError if they are of different machines."""
    machine = results[0]["machine"]
    for result in results[1:]:
        for fact in COMPARED:
            if result["machine"][fact] != machine[fact]:
                raise RequestError(
                    f"one page is one machine, but {fact} is {machine[fact]} in the first run and "
                    f"{result['machine'][fact]} in another; make a page of each"
                )
    versions = sorted({result["version"] for result in results})
    parts = [
        f"# {machine['cpu']}",
        f"{machine['isa']}, {machine['threads']} threads, kimi-offload {', '.join(versions)}. "
        "Made by `python -m offload.bench.results` from results of `kimi-offload bench --json`; "
        "medians, ratio = llama.cpp's time over ours.",
    ]
    shapes = [result for result in results if result["kind"] == "shape"]
    for head in dict.fromkeys(_command(result) for result in shapes):
        rows = [_row(result) for result in shapes if _command(result) == head]
        parts += [f"## {head}", _table(SUMMARY, rows)]
    for result in results:
        parts += _whole(result)
    return "\n\n".join(parts) + "\n"


def _command(result: dict[str, Any]) -> str:
    """What the runs of one summary table have in common, as a command."""
    shape = result["shape"]
    compared = " --compare llama.cpp" if "llama_cpp" in result else ""
    return (
        f"`kimi-offload bench --shape {shape['name']} --attention {shape['attention']} "
        f"--shared {shape['shared']}{compared}`, with `--experts TYPE --experts-layout LAYOUT`"
    )


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    """One run of a shape; what was not measured stays empty."""
    shape, ours, theirs = result["shape"], result["ours"], result.get("llama_cpp", {})
    machine, ratio = result["machine"], result.get("ratio", {})
    types = dict.fromkeys((shape["gate_up"], shape["down"]))
    return (
        f"{':'.join(types)} {result['layout']}",
        str(shape["depth"]),
        _figure(ours, "routed_ms"),
        _figure(theirs, "routed_ms"),
        _figure(ratio, "routed"),
        _figure(ours, "layer_ms"),
        _figure(theirs, "layer_ms"),
        _figure(ratio, "layer"),
        _figure(ratio, "prefill"),
        f"{result['roof_fraction']['routed']:.0%}",
        f"{machine['read_gbps']:.1f}",
        _figure(ours, "decode_tps"),
        _figure(theirs, "decode_tps"),
        "" if machine["others_share"] is None else f"{machine['others_share']:.1%}",
    )


def _figure(side: dict[str, Any], name: str) -> str:
    return f"{side[name]:.2f}" if name in side else ""


def _whole(result: dict[str, Any]) -> list[str]:
    """All tables of one run; of a model's path only the file's name."""
    machine, (title, columns, rows), *others = tables(result)
    if result["kind"] != "shape":
        title = f"{result['model']['name']} ({Path(result['model']['path']).name})"
    parts = [f"## {title}", _table(columns, rows)]
    parts += [_table(*table[1:]) for table in (*others, machine)]
    told = [*result["notes"], *(f"WARNING: {text}" for text in result["warnings"])]
    return [*parts, "\n".join(f"- {_cell(text)}" for text in told)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns whose title ends in `>` are aligned right."""
    lines = [[name.rstrip(">") for name in columns]]
    lines.append(["---:" if name.endswith(">") else "---" for name in columns])
    lines += [[_cell(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def read(path: Path) -> dict[str, Any]:
    """One result; RequestError if the file is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise RequestError(f"{path}: {exc}") from exc
    if not isinstance(result, dict) or result.get("kind") not in ("shape", "model", "budget"):
        raise RequestError(f"{path} is not what `kimi-offload bench --json` writes")
    return result


def main(names: list[str]) -> int:
    """The command in the module's docstring; returns the exit code."""
    try:
        if not names:
            raise RequestError("name the JSON files of one machine's runs")
        sys.stdout.write(page([read(Path(name)) for name in names]))
    except OffloadError as exc:
        sys.stderr.write(f"results: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
