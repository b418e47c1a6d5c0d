"""Sequences decoded together: what sharing weights could win, and what it wins.

What N sequences can gain follows from the bytes: every matrix but the routed experts is read once
for all of them, and each different expert that they choose once. The bound of the speed-up over one
sequence is N * bytes(1) / bytes(N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offload.bench.draws import Draws
from offload.bench.layout import Layout
from offload.timing import Timing

Result = dict[str, dict[str, Any]]  # by the number of sequences, in digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Seconds of a pass through the whole model."""

    median: float
    best: float
    samples: int

    @staticmethod
    def of(t: Timing) -> Pass:
        """From passes through the whole model."""
        return Pass(median=t.median, best=t.best, samples=len(t.samples))


def sizes(parallel: Sequence[int]) -> tuple[int, ...]:
    """Numbers of sequences to measure: one for comparison, then those asked for."""
    return tuple(sorted({1, *parallel}))


def expected_distinct(experts: int, top_k: int, n: int) -> float:
    """Different experts of n sequences that choose at random and apart."""
    return float(experts * (1 - (1 - top_k / experts) ** n))


def part_bytes(layout: Layout, distinct: float) -> dict[str, float]:
    """What one layer and the head read when so many different experts are chosen, by part."""
    routed = distinct * layout.part_bytes["routed"] / layout.full.num_experts_per_tok
    layer = layout.part_bytes["layer"] - layout.part_bytes["routed"] + routed
    return {**layout.part_bytes, "routed": routed, "layer": layer}


def results(
    passes: Mapping[str, Mapping[int, Pass]],
    n_bytes: Mapping[int, float],
    distinct: Mapping[int, float],
    depth: int,
) -> Result:
    """Figures by number of sequences, 1 among them.

    passes: by program and number; n_bytes: of weights that a pass reads,
    by our definition and not by what a program does; distinct: experts per layer and pass, of ours.
    """
    found: Result = {}
    for n in n_bytes:
        entry: dict[str, Any] = {name: _figures(of[n], of[1], n) for name, of in passes.items()}
        ours = entry["ours"]
        bound = n * n_bytes[1] / n_bytes[n]
        entry |= {
            "speedup": ours["speedup"],
            "speedup_best": ours["speedup_best"],
            "bound": round(bound, 3),
            "of_bound": round(ours["speedup"] / bound, 3),
            "distinct_experts": round(distinct[n], 2),
            "bytes": round(n_bytes[n]),
            "gbps": round(n_bytes[n] / passes["ours"][n].median * 1e-9, 3),
            "depth": depth,
        }
        if "llama_cpp" in entry:
            theirs = entry["llama_cpp"]
            entry["ratio"] = round(ours["tps"] / theirs["tps"], 3)
            entry["ratio_best"] = round(ours["tps_best"] / theirs["tps_best"], 3)
        found[str(n)] = entry
    return found


def _figures(t: Pass, alone: Pass, n: int) -> dict[str, Any]:
    """Tokens per second of all n sequences together, and over one sequence's."""
    return {
        "tps": round(n / t.median, 3),
        "tps_best": round(n / t.best, 3),
        "speedup": round(n * alone.median / t.median, 3),
        "speedup_best": round(n * alone.best / t.best, 3),
        "samples": t.samples,
    }


def note_on_draws(layout: Layout, draws: Draws, numbers: Sequence[int]) -> str:
    """How experts of sequences that are decoded together were chosen."""
    full, top_k = layout.full.n_routed_experts, layout.full.num_experts_per_tok
    stored = "" if layout.experts == full else (
        f" and mapped to the {layout.experts} stored ones, equal to equal, so that as many "
        "different ones are read as in the whole model"
    )  # fmt: skip
    if draws.overlap is not None:
        return (
            f"together: of its {top_k} experts a sequence shares {draws.overlap:.0%} with the one "
            f"before it; drawn among {full}{stored}"
        )
    means = ", ".join(f"{n}: {expected_distinct(full, top_k, n):.1f}" for n in numbers if n > 1)
    return (
        f"together: each sequence's {top_k} experts are drawn at random among {full}{stored} "
        f"(on average for {means})"
    )
