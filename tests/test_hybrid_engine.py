"""Whole models on an emulated GPU and the CPU, through the engine: plan, load, prompts, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from emulated import answers, gpus_opened
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

import offload
from offload.engine import Engine
from offload.plan import Plan
from quant.ggml import GGMLType

Array = np.ndarray

MODEL = TinyModel(
    layers=3, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPTS = ("In the beginning", "so")
IDS = list(range(3, 15))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", MODEL)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimulatedGpu]]:
    """Every GPU that was opened."""
    with gpus_opened(monkeypatch, lambda _: SimulatedGpu(1 << 29)) as opened:
        yield opened


def told(engine: Engine) -> tuple[Any, Array]:
    """Answers, and logits of a prompt."""
    return answers(engine, PROMPTS, 3), engine.logits(IDS)


def test_text_and_logits_are_the_same_wherever_experts_are(
    path: Path, gpus: list[SimulatedGpu]
) -> None:
    """With slots, without, and from the disk through slots in RAM and in VRAM."""
    ways: list[dict[str, Any]] = [
        {"device": "cpu"}, {"device": "hybrid", "expert_cache": "off"}, {"device": "hybrid"},
        {"device": "hybrid", "experts_home": "disk"},
    ]  # fmt: skip
    found = []
    for options in ways:
        with offload.load(path, context=256, **options) as engine:
            found.append(told(engine))
            stats = engine.expert_stats
            if options["device"] == "hybrid" and "expert_cache" not in options:
                assert stats.hot is not None
                assert stats.hot.copies > 0
                assert stats.home == options.get("experts_home", "mmap")
    (of_cpu, _), (_, without), *_ = found
    for text, logits in found[1:]:
        assert text == of_cpu
        assert np.array_equal(logits, without)
    del gpus


def test_an_edited_plan_is_executed(path: Path, gpus: list[SimulatedGpu]) -> None:
    """Attention of a layer and the head on the CPU, no slots."""
    with offload.load(path, context=256, device="hybrid") as engine:
        plan, (text, logits) = json.loads(engine.plan.to_json()), told(engine)
    on_cpu = {"device": "cpu", "tier": "mmap"}
    plan["placements"]["head"] |= on_cpu
    plan["overrides"] = {"attention": {"2": plan["placements"]["attention"] | on_cpu}}
    plan["hot"] |= {"n_bytes": 0, "lent": 0}
    with offload.load(path, plan=Plan.from_json(json.dumps(plan))) as engine:
        assert engine.plan.place("attention", 2).device == "cpu"
        assert engine.plan.place("attention", 1).device == "cuda:0"
        others, theirs = told(engine)
        assert engine.expert_stats.hot is None
    assert others == text
    assert np.linalg.norm(theirs - logits) < 5e-3 * np.linalg.norm(logits)
    del gpus
