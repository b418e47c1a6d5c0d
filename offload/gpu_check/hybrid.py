"""One model on the CPU, on the GPU, and on both: the same bits wherever an expert is computed.

Only norms and attention may round otherwise on a GPU. A hybrid whose attention is the GPU's has the
GPU's logits, with an expert cache or without, however small; and all have the CPU's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload.data import embedded_model
from offload.gguf import GGUFFile
from offload.gpu_check.bench import Bench
from offload.gpu_check.models import Source, greedy, loaded
from offload.gpu_check.report import Row, fact, near, same_bits
from offload.gpu_check.text import CONTEXT, LOGITS_TOLERANCE
from offload.plan_options import PlanOptions
from offload.tiering import TierOptions

PROMPT = 5  # tokens


def hybrid(bench: Bench) -> Iterator[Row]:
    """Greedy tokens and the logits of every step."""
    with GGUFFile.open(bench.setup.model or embedded_model()) as file:
        source = Source.of(file)
        config = source.config
        ids = np.random.default_rng(3).integers(0, config.vocab_size, PROMPT)
        ways = {
            "cpu": PlanOptions(device="cpu", context=CONTEXT),
            "cuda": PlanOptions(device="cuda", context=CONTEXT),
            "hybrid": PlanOptions(device="hybrid", context=CONTEXT),
            "hybrid, no cache": _cached("off"),
            "hybrid, a slot a layer": _cached(_a_slot_each(source)),
        }
        found = {}
        for name, options in ways.items():
            with loaded(bench, source, options) as (model, _plan):
                found[name] = greedy(model, ids, bench.setup.text_tokens)
                stats = model.expert_stats
                if name.startswith("hybrid"):
                    yield fact(f"{name}: hits", 100 * (stats.hot or stats).hit_rate, "%")
    tokens, logits = found.pop("cpu")
    for name, (others, theirs) in found.items():
        yield same_bits(f"tokens, {name} and cpu", others, tokens)
        if name == "cuda":
            yield near("logits, cuda and cpu", theirs, logits, LOGITS_TOLERANCE)
        else:
            yield same_bits(f"logits, {name} and cuda", theirs, found["cuda"][1])


def _cached(cache: int | str) -> PlanOptions:
    return PlanOptions(device="hybrid", context=CONTEXT, tiers=TierOptions(cache=cache))


def _a_slot_each(source: Source) -> int:
    """Bytes of a slot for an expert of every layer, and of the stage for copies."""
    sizes = source.tensors.experts.values()
    return sum(size.slot for size in sizes) + max(size.stage for size in sizes)
