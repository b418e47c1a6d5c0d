"""What --stats and `load` expect of a plan with a GPU: the forecast's figures, of this plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_gpu import GIB, gpu
from test_planner import Model, k25, machine

from offload import PlanOptions, make_plan, self_check
from offload.bench.shapes import KIMI_K25, TypeChoice
from offload.devices.block_times import KINDS
from offload.expert_stats import ExpertStats, LayerTiers
from offload.forecast import BoxWish, Question, boxes, facts_of_shape, forecast
from offload.forecast.gpus import card_of
from offload.forecast.planned import SIDES, facts_of_census, layout_of_plan, planned
from offload.plan import BlockName, ExpertSlots, Placement, Plan, VramSpec
from offload.rate_profiles import shipped
from offload.rates import Rates
from offload.stats import RunStats
from offload.vram import reserve_bytes
from quant.ggml import GGMLType

__all__ = ["k25"]  # a fixture
CARD = "NVIDIA GeForce RTX 4090"
CONTEXT = 32_768
ON_GPU: tuple[BlockName, ...] = ("attention", "dense", "router", "shared", "head")


@pytest.fixture(scope="module")
def rates() -> Rates:
    return replace(shipped("avx512"), ram=76e9, ram_one=20e9, cores=16)


def hybrid(m: Model, slots: int, gpu: str = CARD) -> Plan:
    """As a plan for a card of 24 GiB has it."""
    made = make_plan(*m, machine(), PlanOptions(device="cpu", threads=16))
    there = Placement(device="cuda:0", tier="vram")
    return replace(
        made,
        placements={b: there if b in ON_GPU else p for b, p in made.placements.items()},
        vram=VramSpec(
            gpu=gpu, total=24 << 30, free=23 << 30, reserve=1 << 30, limit=22 << 30,
            weights=7 << 30, workspace=5 << 30, rows=4160,
        ),
        hot=ExpertSlots(n_bytes=slots * 9_000_000, slots=slots, policy="layer-lru"),
    )  # fmt: skip


def test_a_plan_is_expected_to_be_as_fast_as_the_forecast_of_its_layout(
    k25: Model, rates: Rates
) -> None:
    config, census = k25
    card = gpu(free=22.5 + reserve_bytes(24 << 30) / GIB, total=24)
    card = replace(card, name=CARD)
    options = PlanOptions(device="hybrid", context=CONTEXT)
    plan = make_plan(*k25, machine(ram=256, cores=16), options, gpus=[card])
    types = TypeChoice(gate_up=GGMLType.IQ1_S, down=GGMLType.IQ1_S, head=GGMLType.Q4_K)
    shape = facts_of_shape(KIMI_K25, types)
    assert shape.block_bytes("routed") == census.block_bytes["routed"]
    assert shape.block_bytes("attention") == pytest.approx(
        census.block_bytes["attention"], rel=0.04
    )
    box = boxes.this_machine(machine(ram=256, cores=16), rates, BoxWish(gpus=["24GiB,1008GB/s"]))
    usable = replace(box.gpus[0], vram=round((22.5 * GIB + 300e6) / 0.95))
    asked = forecast(shape, replace(box, gpus=(usable,)), Question(context=CONTEXT))
    assert asked.layout.chunk == plan.chunk
    assert asked.layout.gpu_slots == pytest.approx(plan.hot.slots, rel=0.02)
    found = planned(config, census, plan, rates, machine(), 512)
    assert found is not None
    assert 1 / found.total == pytest.approx(asked.decode.expected, rel=0.03)
    assert sum(found.sides.values()) == pytest.approx(found.total)
    assert found.sides[SIDES[0]] > 0.8 * found.total
    assert found.hits == pytest.approx(asked.layout.vram_hits.expected, rel=0.03)


def test_attention_that_has_left_the_gpu_is_the_cpus(k25: Model, rates: Rates) -> None:
    config, census = k25
    plan = hybrid(k25, 0)
    here = plan.placements["attention"]
    away = replace(here, device="cpu", tier="mmap")
    half = replace(plan, placements={**plan.placements, "attention": away})
    layout = layout_of_plan(facts_of_census(config, census), census, half)
    assert layout.gpu_kv == 0
    assert not layout.is_cache
    slow = planned(config, census, half, rates, machine(), 512)
    fast = planned(config, census, plan, rates, machine(), 512)
    assert slow is not None
    assert fast is not None
    assert slow.total > fast.total + 0.03  # 3.7 GB from RAM
    assert fast.hits == 0


def test_cards_by_the_driver_s_names() -> None:
    names = {
        CARD: "rtx4090", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4060 Ti": "rtx4060ti",
        "NVIDIA H200": "h200", "NVIDIA RTX A6000": "a6000",
    }  # fmt: skip
    for name, known in names.items():
        card = card_of(name)
        assert card is not None
        assert card.name == known
    others = ("NVIDIA GeForce RTX 4080 SUPER", "NVIDIA GeForce RTX 4090 Laptop GPU", "L40", "x")
    assert [card_of(name) for name in others] == [None] * 4


def test_stats_compare_both_sides(
    k25: Model, rates: Rates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "probe", machine)
    monkeypatch.setattr(self_check, "rates_here", lambda *_: (rates, "of today"))
    monkeypatch.setattr(self_check, "saved", lambda *_: rates)
    stats = RunStats(prompt_tokens=400, decode_tokens=100)
    blocks = dict.fromkeys(KINDS, 0.0) | {"attention": 0.010, "experts": 0.060}
    for _ in range(100):
        stats.count_step(0.075, 1e6, [blocks[kind] for kind in KINDS])
    layer = LayerTiers(uses=None, resident=None, hits=30, misses=70)  # type: ignore[arg-type]
    experts = ExpertStats(
        hot=ExpertStats(layers={1: layer}, passes=100, bytes_copied=2 * 10**9, copy_seconds=0.1)
    )
    sides, hits = self_check.self_check(*k25, hybrid(k25, 990), stats, experts)
    assert "measured 13.33" in sides
    assert "/60, waiting for the GPU" in sides
    assert "/5 (rates: of today" in sides
    assert "rtx4090's as published, not measured here" in sides
    assert "the CPU waited 13% of the time for the GPU" in sides
    assert "30% measured; 20.0 MB copied per pass at 20.0 GB/s" in hits
    words = self_check.expectation(*k25, hybrid(k25, 990))
    assert "if 23% of experts hit; 64% of the time for cores" in words
    assert "not measured here" in words
    unknown = self_check.expectation(*k25, hybrid(k25, 990, "NVIDIA Titan X"))
    assert "the figures of NVIDIA Titan X are not known" in unknown
    assert self_check.self_check(*k25, hybrid(k25, 990, "Titan"), stats, experts) == []
