"""A forecast as a plain dictionary for JSON, and as rows of words for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from offload.amounts import amount
from offload.forecast.alternatives import Verdict, alternatives, verdict
from offload.forecast.box_forecast import Forecast, Speed
from offload.forecast.hits import Hits
from offload.forecast.placement import Place, placed

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
BAR: Final = 40  # characters


def forecast_json(found: Forecast) -> dict[str, Any]:
    """Everything that is known of one forecast. Bytes, seconds, tokens per second."""
    layout, box, facts = found.layout, found.box, found.facts
    content = _figures(found)
    content |= {
        "model": {
            "name": facts.name,
            "bytes": facts.n_bytes,
            "bits_per_expert_weight": facts.bits_per_expert_weight,
            "expert_bytes": facts.expert_bytes,
            "experts": facts.n_experts,
            "experts_per_token": facts.config.num_experts_per_tok * facts.config.num_moe_layers,
            "kv_bytes_per_token": facts.kv_bytes(found.question.kv_type),
        },
        "box": {
            "name": box.name,
            "gpus": [gpu.name for gpu in box.gpus],
            "vram": sum(gpu.vram for gpu in box.gpus),
            "vram_usable": box.vram,
            "vram_bandwidth": sum(gpu.bandwidth for gpu in box.gpus),
            "ram_free": box.ram,
            "ram_bandwidth": box.ram_bandwidth,
            "cores": box.rates.cores,
            "isa": box.rates.isa,
            "pcie": box.pcie,
            "disk": box.disk,
        },
        "context": layout.context,
        "depth": found.question.depth,
        "kv_type": found.question.kv_type,
        "kv_bytes": layout.kv_bytes,
        "seconds_per_token": dict(found.seconds),
        "placements": [p._asdict() for p in placed(layout, box)],
        "alternatives": [{"what": a.what} | _figures(a.forecast) for a in alternatives(found)],
        "remarks": [*found.remarks, *_today_line(found)],
    }
    if box.gpus:
        today = found.this_version
        content["this_version"] = None if today is None else _figures(today)
    return content


def _figures(found: Forecast) -> dict[str, Any]:
    layout = found.layout
    return {
        "fits": layout.fits,
        "verdict": verdict(found),
        "decode_tps": _speed(found.decode),
        "tps": found.tokens_per_second,
        "prefill_tps": _speed(found.prefill),
        "binding_resource": found.decode.binding,
        "prefill_binding_resource": found.prefill.binding,
        "bytes_per_token": dict(found.bytes_per_token),
        "expert_slots": layout.slots,
        "slots": {"vram": layout.gpu_slots, "ram": layout.ram_experts, "disk": layout.disk_experts},
        "expected_hit_rate": {
            "vram": layout.vram_hits._asdict(),
            "ram": layout.ram_hits._asdict(),
        },
        "max_context": dict(found.max_context),
    }


def _speed(speed: Speed) -> dict[str, float]:
    return {
        "low": speed.low, "expected": speed.expected, "high": speed.high, "roof": speed.roof,
    }  # fmt: skip


def table_json(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """The lines of --table."""
    return [
        {"name": v.name, "model": v.forecast.facts.name, "box": v.forecast.box.name}
        | _figures(v.forecast)
        | {"verdict": v.words}
        for v in verdicts
    ]


def forecast_tables(found: Forecast) -> list[Table]:
    """(title, columns, rows) for people; notes are `forecast_notes`."""
    places = [
        (p.what, _PLACES[p.place], amount(p.n_bytes), amount(p.read) if p.read else "", p.why)
        for p in placed(found.layout, found.box)
    ]
    speeds = [
        ("decode", *_speed_cells(found.decode), found.decode.binding),
        ("prompt", *_speed_cells(found.prefill), found.prefill.binding),
    ]
    others = [
        (a.what, _rate(a.forecast.decode.expected),
         a.forecast.decode.binding, verdict(a.forecast))
        for a in alternatives(found)
    ]  # fmt: skip
    columns = ("what", "where", "size>", "read per token>", "why")
    expected = ("", "tokens/s>", "from>", "to>", "roof>", "limited by")
    tables: list[Table] = [
        (f"{found.facts.name} on {found.box.name}", columns, places),
        ("Memory", ("", "", ""), _bars(found)),
        ("Expected speed", expected, speeds),
    ]
    if others:
        tables.append(("Other choices", ("", "tokens/s>", "limited by", ""), others))
    return tables


_PLACES: Final[dict[Place, str]] = {"vram": "VRAM", "ram": "RAM", "disk": "disk"}


def _speed_cells(speed: Speed) -> tuple[str, str, str, str]:
    return _rate(speed.expected), _rate(speed.low), _rate(speed.high), _rate(speed.roof)


def _rate(tps: float) -> str:
    return f"{tps:.2f}" if tps < 10 else f"{tps:,.1f}" if tps < 100 else f"{tps:,.0f}"


def _bars(found: Forecast) -> list[tuple[str, str, str]]:
    """Memory in use as bars; of the disk what is read from it all the time."""
    used: dict[Place, float] = dict.fromkeys(_PLACES, 0.0)
    for p in placed(found.layout, found.box):
        used[p.place] += p.n_bytes
    room: dict[Place, float] = {"vram": found.box.vram, "ram": found.box.ram}
    rows = []
    for where, n_bytes in used.items():
        if where in room and room[where]:
            filled = round(BAR * min(1.0, n_bytes / room[where]))
            bar = "#" * filled + "." * (BAR - filled)
            rows.append((_PLACES[where], bar, f"{amount(n_bytes)} of {amount(room[where])}"))
        elif n_bytes:
            rows.append((_PLACES[where], "", f"{amount(n_bytes)} stay there"))
    return rows


def forecast_notes(found: Forecast) -> list[str]:
    """Lines below the tables."""
    layout, read = found.layout, found.bytes_per_token
    names = {"vram": "VRAM", "ram": "RAM", "disk": "disk", "pcie": "PCIe (copies to slots)"}
    tiers = ", ".join(f"{names[name]} {amount(n)}" for name, n in read.items() if n)
    lines = [verdict(found), f"a token reads {tiers}"]
    if layout.gpu_slots:
        lines.append(_hits(f"{layout.gpu_slots:,} expert slots in VRAM", layout.vram_hits))
    if layout.disk_experts:
        lines.append(_hits(f"{layout.ram_experts:,} expert slots in RAM", layout.ram_hits))
    if found.is_hybrid and layout.fits:
        timeline = found.timeline()
        lines.append(
            f"simulated: {_rate(timeline.tokens_per_second)} tokens/s with "
            f"{timeline.hit_rate:.0%} hits, "
            f"{_rate(found.timeline(empty=True).tokens_per_second)} with no expert in VRAM"
        )
    longest = ", ".join(f"{kind} {n:,}" for kind, n in found.max_context.items())
    lines.append(f"longest context that fits, in tokens: {longest}")
    return [*lines, *_today_line(found), *found.remarks]


def _hits(what: str, hits: Hits) -> str:
    return f"{what}: {hits.expected:.0%} hits expected ({hits.low:.0%} to {hits.high:.0%})"


def _today_line(found: Forecast) -> list[str]:
    today = found.this_version
    if today is found:
        return []
    one = "this version uses one GPU of a machine"
    if today is None:
        return [f"{one}, and what every token reads does not fit there"]
    return [f"{one}: {_rate(today.tokens_per_second)} tokens/s ({today.decode.binding})"]


def verdict_table(verdicts: list[Verdict]) -> Table:
    """--table for people."""
    columns = ("box and file", "tokens/s>", "from>", "to>", "this version>", "limited by", "")
    rows = []
    for v in verdicts:
        found, today = v.forecast, v.forecast.this_version
        speed = found.decode
        rows.append(
            (v.name, _rate(found.tokens_per_second), _rate(speed.low), _rate(speed.high),
             _rate(today.tokens_per_second) if today else "no", speed.binding, v.words)
        )  # fmt: skip
    return "What people ask about", columns, rows
