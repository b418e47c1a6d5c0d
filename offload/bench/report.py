"""A result as tables for people: (title, column names, rows); `>` ends a right-aligned column."""

from __future__ import annotations

from typing import Any

from offload.bench.budget_report import budget_table
from offload.bench.layer_bench import PARTS
from offload.bench.on_gpu import gpu_tables

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
NAMES = {"ours": "kimi-offload", "llama_cpp": "llama.cpp"}


def tables(result: dict[str, Any]) -> list[Table]:
    """What `kimi-offload bench` prints; notes and warnings are in the result itself."""
    if result["kind"] == "budget":
        return [_machine_table(result["machine"]), budget_table(result)]
    body = _model_tables(result) if result["kind"] == "model" else _shape_tables(result)
    if "gpu" in result:
        body += gpu_tables(result)
    if "parallel" in result:
        body.append(_parallel_table(result))
    return [_machine_table(result["machine"]), *body]


def _parallel_table(r: dict[str, Any]) -> Table:
    numbers: dict[str, dict[str, Any]] = r["parallel"]
    first = numbers["1"]
    programs = [name for name in NAMES if name in first]
    columns = ["decoded together>"]
    for name in programs:
        columns += [f"{NAMES[name]} tokens/s>", "best>"]
    columns += ["ratio>", "of bests>"] if "ratio" in first else []
    columns += ["speedup>", "of bests>", "bound>", "of the bound>", "experts>", "MB read>", "GB/s>"]
    rows = []
    for n, entry in numbers.items():
        row = [n]
        for name in programs:
            row += [f"{entry[name]['tps']:.2f}", f"{entry[name]['tps_best']:.2f}"]
        if "ratio" in entry:
            row += [f"{entry['ratio']:.2f}", f"{entry['ratio_best']:.2f}"]
        row += [f"{entry['speedup']:.2f}", f"{entry['speedup_best']:.2f}"]
        row += [f"{entry['bound']:.2f}", f"{entry['of_bound']:.0%}"]
        row += [f"{entry['distinct_experts']:.1f}", f"{entry['bytes'] / 1e6:.1f}"]
        rows.append((*row, f"{entry['gbps']:.2f}"))
    title = (
        f"Sequences decoded together, each after {first['depth']} tokens; tokens/s of all, "
        "different experts per layer"
    )
    return (title, tuple(columns), rows)


def _known(value: Any, unit: str = "") -> str:
    return "not readable here" if value in (None, []) else f"{value}{unit}"


def _machine_table(m: dict[str, Any]) -> Table:
    one = m.get("read_gbps_one_thread")
    single = f"; one thread {one} (best {m['read_gbps_one_thread_best']})" if one else ""
    clocks = ", ".join(str(x) for x in m["mhz"]) or None
    assumed = " (assumed)" if m["cache_assumed"] else ""
    others = m["others_share"]
    stolen = m["stolen_share"]
    rows: list[tuple[str, ...]] = [
        ("processor", str(m["cpu"])),
        ("kernels", f"{m['isa']}, {m['threads']} threads on {m['cores']} cores"),
        *([("threads", str(m["threads_pinned"]))] if "threads_pinned" in m else []),
        ("last-level cache", f"{m['cache_bytes'] / 2**20:.0f} MiB{assumed}"),
        ("read bandwidth", f"{m['read_gbps']} GB/s (best {m['read_gbps_best']}){single}"),
        ("clock", f"{_known(clocks, ' MHz')}; at most {_known(m['max_mhz'], ' MHz')}"),
        ("governor", _known(m["governor"])),
        ("slowed for heat", _known(m["throttled"], " times")),
        ("load before, after", f"{m['load_before'][:1]}, {m['load_after'][:1]}"),
        ("other programs", _known(None if others is None else f"{others:.1%} of the processors")),
        ("other guests", _known(None if stolen is None else f"{stolen:.1%} of the time")),
    ]
    return ("Machine", ("", ""), rows)


def _shape_tables(r: dict[str, Any]) -> list[Table]:
    programs = [name for name in NAMES if name in r]
    columns = ["part"]
    for name in programs:
        columns += [f"{NAMES[name]} ms>", "best>"]
    columns += ["ratio>", "of bests>"] if "ratio" in r else []
    columns += ["MB read>", "GB/s>", "per core>", "of the roof>"]
    rows = []
    for part in (*PARTS, "layer"):
        row = [part if part != "layer" else "whole layer"]
        for name in programs:
            row += [f"{r[name][f'{part}_ms']:.3f}", f"{r[name]['best'][f'{part}_ms']:.3f}"]
        if "ratio" in r:
            row += [f"{r['ratio'][part]:.2f}", f"{r['ratio_best'][part]:.2f}"]
        row.append(f"{r['shape']['part_bytes'][part] / 1e6:.1f}")
        row += [f"{r['gbps'][part]:.2f}", f"{r['gbps_per_core'][part]:.2f}"]
        row.append(f"{r['roof_fraction'][part]:.0%}")
        rows.append(tuple(row))
    shape = r["shape"]
    title = (
        f"{shape['name']}: experts {shape['gate_up']}:{shape['down']} {r['layout']}, attention "
        f"{shape['attention']}, shared {shape['shared']}; one decoded token, one layer"
    )
    return [(title, tuple(columns), rows), _totals(r, programs)]


def _totals(r: dict[str, Any], programs: list[str]) -> Table:
    columns = ["the whole model, extrapolated"]
    decode, prefill, head = ["decode tokens/s"], ["prompt tokens/s"], ["head, ms per token"]
    for name in programs:
        side = r[name]
        columns += [f"{NAMES[name]}>", "best>"]
        spread = f"{side['decode_tps']} ({side['decode_tps_low']} .. {side['decode_tps_high']})"
        decode += [spread, str(side["best"]["decode_tps"])]
        prefill += [str(side["prefill_tps"]), str(side["best"]["prefill_tps"])]
        head += [f"{side['head_ms']:.2f}", f"{side['best']['head_ms']:.2f}"]
    if "ratio" in r:
        columns += ["ratio>", "of bests>"]
        for row, what in ((decode, "decode_tps"), (prefill, "prefill")):
            row += [f"{r['ratio'][what]:.2f}", f"{r['ratio_best'][what]:.2f}"]
        head += ["", ""]
    cores = ["such cores for 80 GB/s", f"{r['cores_for_80_gbps']}"]
    cores += [""] * (len(columns) - len(cores))
    return ("", tuple(columns), [tuple(x) for x in (decode, prefill, head, cores)])


def _model_tables(r: dict[str, Any]) -> list[Table]:
    programs = [name for name in NAMES if name in r]
    columns = ["tokens/s"]
    for name in programs:
        columns += [f"{NAMES[name]}>", "best>", "runs>"]
    columns += ["ratio>"] if "ratio" in r else []
    rows = []
    for work in r["ours"]:
        kind, n = work.split()
        row = [f"prompt of {n}" if kind == "prompt" else f"decode after {n}"]
        for name in programs:
            side = r[name][work]
            row += [f"{side['tps']:.1f}", f"{side['tps_best']:.1f}", str(side["runs"])]
        if "ratio" in r:
            row.append(f"{r['ratio'][work]:.2f}")
        rows.append(tuple(row))
    return [(f"{r['model']['name']} ({r['model']['path']})", tuple(columns), rows)]
