"""What a bench measured beside what was predicted for it, by part; for its JSON and one note."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from offload.bench.layout import Layout
from offload.bench.shapes import TensorSpec
from offload.config import ModelConfig
from offload.devices.block_times import KINDS
from offload.hardware import probe
from offload.known_rates import rates_here
from offload.kv_cache import cache_bytes as kv_cache_bytes
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.plan import Plan
from offload.prediction import Load, Part, Parts, decode_parts, predicted_parts
from offload.rates import Rates
from offload.tensor_census import Census
from quant.ggml import BLOCK
from quant.packed.registry import packed_type


def pairs_of_model(
    config: ModelConfig, census: Census, plan: Plan, ours: Mapping[str, Any], program: Any
) -> dict[str, Any]:
    """Of every depth at which tokens were decoded; {} if there are no rates for this machine."""
    found = rates_here(probe(), plan.threads)
    if found is None:
        return {}
    rates, source = found
    cache = cache_bytes() or ASSUMED_CACHE
    entries = {}
    for depth, samples in program.block_seconds.items():
        work = f"decode {depth}"
        if work not in ours:
            continue
        parts = predicted_parts(config, census, plan, rates, context=depth, cache=cache)
        measured = _medians(KINDS, samples)
        measured["rest"] = max(0.0, 1 / ours[work]["tps"] - sum(measured.values()))
        entries[work] = pair(parts, measured, ours[work]["tps"])
    return {"predicted": {"rates": source, **entries}}


def pairs_of_shape(
    layout: Layout, ours: Mapping[str, Any], facts: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    """Of one MoE layer, routed and shared experts together; memory as this run has read it."""
    threads = int(facts["threads"])
    found = rates_here(probe(), threads)
    if found is None:
        return {}
    rates, source = found
    rates = replace(rates, ram=1e9 * facts["read_gbps"])
    parts = layer_parts(layout, rates, threads, depth)
    measured = {
        "attention": 1e-3 * ours["attention_ms"],
        "router": 1e-3 * ours["router_ms"],
        "experts": 1e-3 * (ours["routed_ms"] + ours["shared_ms"]),
    }
    return {
        "predicted": {
            "rates": f"{source}; memory as read in this run",
            "layer": pair(parts, measured, 1e3 / ours["layer_ms"]),
        }
    }


def layer_parts(layout: Layout, rates: Rates, threads: int, depth: int) -> Parts:
    """One MoE layer of a shape whose weights no cache holds."""
    config = replace(layout.full, num_layers=1, first_k_dense=0)
    share = layout.full.num_experts_per_tok / layout.experts
    loads = [
        _load(name, spec, share, layout.arranged == "packed")
        for name, spec in layout.specs.items()
        if name.startswith("blk.0.") and spec.n_bytes
    ]
    kv_bytes = depth * kv_cache_bytes(config, 1, "f16")
    parts = decode_parts(config, loads, rates, threads, context=depth, kv_bytes=kv_bytes)
    of_layer: tuple[Part, ...] = ("attention", "router", "experts")
    return replace(parts, seconds={part: parts.seconds[part] for part in of_layer})


def _load(name: str, spec: TensorSpec, share: float, packed: bool) -> Load:
    is_routed = "_exps." in name
    t = spec.ggml_type
    part: Part = "attention"
    if is_routed or "_shexp" in name:
        part = "experts"
    elif "ffn_" in name or "exp_probs" in name:
        part = "router"
    key, growth = (t.name if is_routed else f"{t.name} q16"), 1.0
    kind = packed_type(t)
    if packed and is_routed and kind is not None:
        _, n_rows, n_cols = spec.shape
        key, growth = f"{t.name} packed", kind.matrix_bytes(n_rows, n_cols) * spec.shape[0]
        growth /= spec.n_bytes
    used = spec.n_bytes * (share if is_routed else 1.0)
    weights = used * BLOCK[t].size / BLOCK[t].n_bytes
    return Load(
        part=part, key=key, n_bytes=used * growth, weights=weights, stored=spec.n_bytes * growth
    )


def pair(parts: Parts, measured: Mapping[str, float], tps: float) -> dict[str, Any]:
    """Milliseconds by part of both, and how far apart they are as a share of the measured."""
    return {
        "predicted_tps": round(parts.tps, 3),
        "measured_tps": round(tps, 3),
        "off": round(parts.total * tps - 1, 4),
        "predicted_ms": {part: round(1e3 * s, 5) for part, s in parts.seconds.items()},
        "measured_ms": {part: round(1e3 * s, 5) for part, s in measured.items()},
        "unknown": list(parts.unknown),
    }


def prediction_lines(result: Mapping[str, Any]) -> list[str]:
    """One line for people per pair."""
    found = dict(result.get("predicted", {}))
    source = found.pop("rates", "")
    return [
        f"{work}: predicted {p['predicted_tps']:.2f}, measured {p['measured_tps']:.2f} per second "
        f"({-p['off'] / (1 + p['off']):+.0%}; rates: {source})"
        for work, p in found.items()
    ]


def _medians(names: Sequence[str], samples: Sequence[Sequence[float]]) -> dict[str, float]:
    return {
        name: statistics.median(values)
        for name, values in zip(names, zip(*samples, strict=True), strict=True)
    }
