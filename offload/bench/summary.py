"""From samples to the result that is printed and written as JSON: extrapolation, ratios, roofs.

Main figures are medians; "best" beside them holds the fastest sample of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offload.bench.layer_bench import PARTS
from offload.bench.layout import Layout
from offload.bench.parallel import Pass
from offload.timing import Timing
from offload.version import __version__

TARGET_GBPS = 80.0  # a desktop's two channels of DDR5
PROMPT_TOKENS = 512


def whole_model(layout: Layout, s: Mapping[str, float]) -> float:
    """A decoding pass through all layers and the head, from seconds (or bytes) by part.

    Leading dense layers: attention and a shared expert as much wider; a router with fewer rows than
    the model's: in proportion.
    """
    full = layout.full
    rows = full.n_routed_experts / layout.model.n_routed_experts
    layer = s["layer"] + s["router"] * (rows - 1)
    dense = s["attention"] + s["shared"] * layout.dense_over_shared
    return full.num_moe_layers * layer + full.first_k_dense * dense + s["head"] * layout.head_scale


def decode_pass(layout: Layout, samples: Mapping[str, Timing]) -> Pass:
    """The same from the timings of the parts."""
    return Pass(
        median=whole_model(layout, {name: t.median for name, t in samples.items() if t.samples}),
        best=whole_model(layout, {name: t.best for name, t in samples.items() if t.samples}),
        samples=len(samples["layer"].samples),
    )


def prefill_seconds(layout: Layout, s: dict[str, float]) -> float:
    """A prompt through all layers; dense layers by their share of multiplications."""
    full = layout.full
    moe, dense = _weights_per_token(layout)
    layers = full.num_moe_layers + full.first_k_dense * dense / moe
    return s["prefill"] * layers + s["head"] * layout.head_scale


def _weights_per_token(layout: Layout) -> tuple[float, float]:
    """Weights that one token uses in an MoE layer and in a dense one."""
    full = layout.full
    h, a = full.hidden_size, full.num_heads
    q = full.q_lora_rank
    heads = a * full.qk_head_dim
    attention = (h * q + q * heads) if q else h * heads
    attention += h * full.latent_dim + h * a * full.v_head_dim
    attention += a * full.kv_lora_rank * (full.qk_nope_head_dim + full.v_head_dim)
    experts = full.num_experts_per_tok + full.n_shared_experts
    moe = 3 * h * full.moe_intermediate_size * experts + h * full.n_routed_experts
    return attention + moe, attention + 3 * h * full.intermediate_size


def side(layout: Layout, samples: dict[str, Timing]) -> dict[str, Any]:
    """The figures of one program: milliseconds per layer, tokens per second, by median and best."""
    median = {name: t.median for name, t in samples.items()}
    best = {name: t.best for name, t in samples.items()}
    slow = {name: t.quartiles[1] for name, t in samples.items()}
    fast = {name: t.quartiles[0] for name, t in samples.items()}
    figures = _figures(layout, median)
    figures["decode_tps_low"] = round(1 / whole_model(layout, slow), 3)
    figures["decode_tps_high"] = round(1 / whole_model(layout, fast), 3)
    figures["best"] = _figures(layout, best)
    figures["samples"] = {name: len(t.samples) for name, t in samples.items()}
    return figures


def _figures(layout: Layout, s: dict[str, float]) -> dict[str, Any]:
    out: dict[str, Any] = {f"{name}_ms": round(1e3 * s[name], 4) for name in (*PARTS, "layer")}
    out["head_ms"] = round(1e3 * s["head"] * layout.head_scale, 4)
    out["prefill_layer_ms"] = round(1e3 * s["prefill"], 3)
    out["decode_tps"] = round(1 / whole_model(layout, s), 3)
    out["prefill_tps"] = round(PROMPT_TOKENS / prefill_seconds(layout, s), 3)
    return out


def summarise(
    layout: Layout,
    shape: str,
    facts: dict[str, Any],
    reads: Timing,
    reads_one: Timing,
    results: dict[str, dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    """Everything about one run. reads: seconds per byte with all threads, reads_one with one."""
    ours = results["ours"]
    roof = 1e-9 / reads.median
    threads = facts["threads"]
    gbps = {
        part: round(layout.part_bytes[part] / ours[f"{part}_ms"] * 1e-6, 3)
        for part in (*PARTS, "layer")
    }
    routed_core = gbps["routed"] / threads
    facts |= {
        "read_gbps": round(roof, 3),
        "read_gbps_best": round(1e-9 / reads.best, 3),
        "read_gbps_one_thread": round(1e-9 / reads_one.median, 3),
        "read_gbps_one_thread_best": round(1e-9 / reads_one.best, 3),
    }
    types = layout.types
    result: dict[str, Any] = {
        "kind": "shape",
        "version": __version__,
        "machine": facts,
        "shape": {
            "name": shape,
            "gate_up": types.gate_up.name,
            "down": types.down.name,
            "attention": types.attention.name,
            "shared": types.shared.name,
            "layers": layout.model.num_layers,
            "experts": layout.experts,
            "bytes": layout.n_bytes,
            "part_bytes": layout.part_bytes,
            "distance_over_cache": round(layout.distance / layout.cache_bytes, 2),
        },
        "layout": layout.arranged,
        **results,
        "gbps": gbps,
        "roof_fraction": {part: round(value / roof, 4) for part, value in gbps.items()},
        "gbps_per_core": {part: round(value / threads, 3) for part, value in gbps.items()},
        "cores_for_80_gbps": round(TARGET_GBPS / routed_core, 1),
        "notes": notes,
        "warnings": facts.pop("warnings"),
    }
    if "llama_cpp" in results:
        result["ratio"] = ratios(results["llama_cpp"], ours)
        result["ratio_best"] = ratios(results["llama_cpp"]["best"], ours["best"])
    return result


def ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """The other's time over ours: above 1, we are faster."""
    out = {part: round(theirs[f"{part}_ms"] / ours[f"{part}_ms"], 3) for part in (*PARTS, "layer")}
    out["prefill"] = round(theirs["prefill_layer_ms"] / ours["prefill_layer_ms"], 3)
    out["decode_tps"] = round(ours["decode_tps"] / theirs["decode_tps"], 3)
    return out
