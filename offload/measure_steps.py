"""What the blocks of a token cost beside reading and multiplying weights, seen on kimi-mini."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial

import numpy as np

from offload.batch import Batch
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.devices.block_times import KINDS
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.loading import open_model
from offload.plan_options import PlanOptions
from offload.planning import plan_model
from offload.prediction import Part, blocks_of, predicted_parts
from offload.rates import Rates
from offload.tensor_census import census
from offload.timing import Timing, seconds_of


def embedded_seconds(times: int = 40) -> tuple[float, Mapping[Part, float]]:
    """The embedded model's decoded token: seconds beside its tape, and of its blocks, by part."""
    file, _, _, _, model, _ = open_model(
        None, PlanOptions(device="cpu", context=256), lambda progress: None
    )
    with contextlib.closing(file), contextlib.closing(model):
        model.kv.open(0)
        beside, blocks = Timing(), [Timing() for _ in KINDS]
        for i in range(times):
            batch = Batch.of(np.array([1 + i]), 0, i)
            before = model.block_seconds()
            seconds = seconds_of(partial(model.forward, batch))
            spent = [b - a for a, b in zip(before, model.block_seconds(), strict=True)]
            beside.add(seconds - sum(spent))
            for timing, one in zip(blocks, spent, strict=True):
                timing.add(one)
    by_part: dict[Part, float] = dict(zip(KINDS, (timing.median for timing in blocks), strict=True))
    return max(0.0, beside.median), by_part


def step_seconds(rates: Rates, blocks: Mapping[Part, float]) -> dict[str, float]:
    """See Rates.steps: `blocks` of the embedded model beyond what the rates predict of them."""
    with GGUFFile.open(embedded_model()) as file:
        config = ModelConfig.from_gguf(file)
        plan = plan_model(file, config, PlanOptions(device="cpu", context=256), probe())
        cache = cache_bytes() or ASSUMED_CACHE
        found = predicted_parts(config, census(file, config), plan, rates, context=20, cache=cache)
    count = blocks_of(config)
    return {
        part: max(0.0, blocks[part] - found.seconds[part]) / count[part]
        for part in count
        if part in blocks and count[part]
    }
