"""Predictions against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offload import make_plan, probe
from offload.config import ModelConfig
from offload.gguf import GGUFFile
from offload.layer_set import Layers
from offload.plan import Packed, Placement, Plan
from offload.planner import PlanOptions
from offload.prediction import Load, decode_parts, loads_of, predicted_parts, prompt_parts
from offload.rates import KernelRates, Rates
from offload.tensor_census import Census, census

KERNEL = KernelRates(decode=1e9, few=5e8, prompt=1e11)
RATES = Rates(
    processor="a processor", isa="avx2", cores=2, date="2026-01-02", source="measured",
    ram=1e9, ram_one=6e8, kernels={"Q8_0 q16": KERNEL, "TQ1_0": KERNEL}, region=2e-6, token=5e-5,
    disk=1e8,
)  # fmt: skip


@pytest.fixture(scope="module")
def mini() -> tuple[ModelConfig, Census, Plan]:
    from offload import embedded_model

    with GGUFFile.open(embedded_model()) as file:
        config = ModelConfig.from_gguf(file)
        counted = census(file, config)
    plan = make_plan(config, counted, probe(), PlanOptions(threads=1))
    return config, counted, plan


def load(n_bytes: float, key: str = "Q8_0 q16") -> Load:
    return Load(part="head", key=key, n_bytes=n_bytes, weights=n_bytes, stored=n_bytes)


def head(config: ModelConfig, loads: list[Load], threads: int, cache: int = 0) -> float:
    parts = decode_parts(config, loads, RATES, threads, cache=cache)
    return parts.seconds["head"] - RATES.region


def test_the_slower_of_memory_and_kernels_counts(mini: tuple[ModelConfig, Census, Plan]) -> None:
    config = mini[0]
    assert head(config, [load(1e9)], 1) == pytest.approx(1e9 / 6e8)  # one thread's memory
    assert head(config, [load(1e9)], 2) == pytest.approx(1.0)  # memory; kernels take 0.5
    assert head(config, [load(1e9)], 2, cache=2 * 10**9) == pytest.approx(0.5)
    slow = replace(RATES, kernels={"Q8_0 q16": replace(KERNEL, decode=2e8)})
    parts = decode_parts(config, [load(1e9)], slow, 2)
    assert parts.seconds["head"] == pytest.approx(2.5 + 2e-6)


def test_a_kernel_without_a_rate_is_told(mini: tuple[ModelConfig, Census, Plan]) -> None:
    parts = decode_parts(mini[0], [load(1e9, "Q4_K q16")], RATES, 2)
    assert parts.unknown == ("Q4_K q16",)
    assert parts.seconds["head"] == pytest.approx(1.0 + 2e-6)


def test_regions_and_python_are_added(mini: tuple[ModelConfig, Census, Plan]) -> None:
    parts = decode_parts(mini[0], [], RATES, 2)  # 4 layers, the first dense; q_lora: 6 regions
    micro = {k: round(1e6 * s, 6) for k, s in parts.seconds.items()}
    assert micro == {
        "embedding": 0, "attention": 48, "mlp": 4, "router": 6, "experts": 12, "head": 2, "rest": 50
    }  # fmt: skip
    assert parts.tps == pytest.approx(1 / 122e-6)


def test_vectors_and_context_take_time(mini: tuple[ModelConfig, Census, Plan]) -> None:
    rates = replace(RATES, attend=1e9, vector=1e9)
    parts = decode_parts(mini[0], [], rates, 2, context=1000, kv_bytes=1e6)
    products = 1000 * 4 * (2 * 128 + 32) * 4  # positions, heads, width, layers
    numbers = 4 * (256 + 128 + 160)
    expected = 24 * 2e-6 + max(products / 2e9, 1e6 / 1e9) + numbers / 1e9
    assert parts.seconds["attention"] == pytest.approx(expected)


def test_loads_are_all_bytes_of_a_token(mini: tuple[ModelConfig, Census, Plan]) -> None:
    config, counted, plan = mini
    loads = loads_of(config, counted, plan)
    norms = next(f for f in counted.families if f.name == "norms")
    total = sum(x.n_bytes for x in loads) + norms.bytes_per_token
    assert total == pytest.approx(counted.bytes_per_token)
    assert {x.key for x in loads} == {"Q8_0 q16 narrow", "TQ1_0 narrow", "F32 q16 narrow"}
    packed = replace(plan, packed=Packed(layers=Layers.of([1, 2, 3])))
    routed = [x for x in loads_of(config, counted, packed) if x.key == "TQ1_0 packed narrow"]
    assert sum(x.weights for x in routed) == 3 * 8 * 3 * 256 * 256


def test_what_misses_comes_from_disk(mini: tuple[ModelConfig, Census, Plan]) -> None:
    config, counted, plan = mini
    disk = Placement(device="cpu", tier="disk")
    tiered = replace(plan, placements={**plan.placements, "routed": disk})
    a, b = (
        predicted_parts(config, counted, tiered, RATES, hit_rate=h).seconds["experts"]
        for h in (1.0, 0.25)
    )
    assert b == pytest.approx(0.75 * 3 * 331_776 / 1e8)  # and the others are computed meanwhile
    assert a < b


def test_what_is_not_hidden_behind_memory_is_added(mini: tuple[ModelConfig, Census, Plan]) -> None:
    config, counted, plan = mini
    exposed = {key: replace(k, exposed=0.5) for key, k in RATES.kernels.items()}
    partly = replace(RATES, kernels=exposed)
    rates = {"none": RATES, "half": partly}
    head = {
        name: predicted_parts(config, counted, plan, r).seconds["head"] for name, r in rates.items()
    }
    n_bytes = config.vocab_size * 256 * 34 / 32
    shorter = n_bytes / max(RATES.ram, 1e9 * plan.threads)
    assert head["half"] - head["none"] == pytest.approx(shorter / 2, rel=1e-6)


def test_a_prompt_reads_weights_once(mini: tuple[ModelConfig, Census, Plan]) -> None:
    config, counted, plan = mini
    one = prompt_parts(config, counted, plan, RATES, tokens=1)
    many = prompt_parts(config, counted, plan, RATES, tokens=100)
    assert one.total < many.total < 100 * one.total
    mlp = 835_584 * 32 / 34 * 100 / 1e11  # weights times tokens over the kernel's rate
    assert many.seconds["mlp"] == pytest.approx(max(mlp, 835_584 / 6e8))
