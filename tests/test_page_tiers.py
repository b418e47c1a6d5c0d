"""What /machine tells of engines with tiers: RAM, disk with slots, an emulated GPU with slots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from emulated import gpus_opened
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

import offload
from offload.engine import Engine
from offload.server.machine_check import check, find_rates
from offload.server.machine_look import look
from offload.server.machine_plan import measured_bytes, plan_facts, what_is_off
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=3, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
WAYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "cpu": ({"device": "cpu"}, {"mmap"}),
    "disk": ({"device": "cpu", "experts_home": "disk"}, {"mmap", "slots", "disk"}),
    "gpu and disk": (
        {"device": "hybrid", "experts_home": "disk"}, {"vram", "mmap", "slots", "disk"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("tiers") / "tiny.gguf", MODEL)


@pytest.mark.parametrize("way", WAYS)
def test_bytes_by_tier_add_up_and_experts_are_where_stats_say(path, way, monkeypatch):
    options, tiers = WAYS[way]
    with (
        gpus_opened(monkeypatch, lambda _: SimulatedGpu(1 << 29)),
        offload.load(path, context=256, **options) as engine,
    ):
        assert len(list(engine.generate("In the beginning", max_tokens=4, temperature=0)))
        check_told(engine, tiers)


def check_told(engine: Engine, tiers: set[str]) -> None:
    seen = look(engine)
    facts = plan_facts(engine.config, engine.census(), seen.plan)
    assert set(facts.predicted) <= tiers
    assert {row["tier"] for row in facts.rows} - {"ram"} <= tiers
    read = measured_bytes(seen, facts)
    assert {tier for tier, n in read.items() if n} <= tiers
    assert sum(read.values()) == pytest.approx(
        max(seen.bytes_read, sum(seen.routed.values())), rel=1e-9
    )
    experts, stats = seen.experts, engine.expert_stats
    assert experts is not None
    top = stats.hot or stats
    np.testing.assert_array_equal(experts.uses, [layer.uses for layer in top.layers.values()])
    assert experts.asked > 0
    assert (experts.vram is not None) == (stats.hot is not None)
    assert (experts.slots is not None) == bool(stats.slots)
    assert experts.home == ("disk" if "disk" in tiers else "mmap")
    known = find_rates(engine.plan.threads)
    told = check(
        engine.config, facts.census, seen.plan, known, seen.latest,
        conditions=seen.conditions(None),
    )  # fmt: skip
    text = json.dumps([told, experts.json(-1), what_is_off(seen), facts.rows, seen.lines])
    assert "NaN" not in text
