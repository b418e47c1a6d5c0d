"""Whole models on an emulated GPU and the CPU, through the engine: plan, load, prompts, answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from fake_gpu import gpu
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

import offload
from offload.devices import cuda
from offload.engine import Engine
from offload.gpu import probe
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=3, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPTS = ("In the beginning there was a prompt.", "And then another, " * 4, "so on")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", MODEL)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimulatedGpu]]:
    """Every GPU that was opened."""
    opened: list[SimulatedGpu] = []

    def one(index: int, limit: int | None) -> SimulatedGpu:
        opened.append(SimulatedGpu(1 << 29, delays=len(opened)))
        return opened[-1]

    monkeypatch.setattr(probe, "gpus", lambda *_, **__: [gpu(free=0.45, total=1)])
    monkeypatch.setattr(cuda, "CudaGpu", one)
    yield opened
    assert all(gpu.closed for gpu in opened)


def answers(engine: Engine) -> list[tuple[int, ...]]:
    """Of all prompts, decoded together."""
    found = engine.batch(PROMPTS, temperature=0, max_tokens=6)
    return [one.ids for one in sorted(found, key=lambda one: one.index)]


@pytest.fixture(scope="module")
def of_gpu(path: Path) -> Any:
    return None


def test_text_is_the_same_on_all_devices(path: Path, gpus: list[SimulatedGpu]) -> None:
    texts, logits = {}, {}
    for device, options in (("cpu", {}), ("cuda", {}), ("hybrid", {}),
                            ("hybrid", {"expert_cache": "off"})):  # fmt: skip
        with offload.load(path, context=512, device=device, **options) as engine:
            name = f"{device} {options}"
            texts[name] = answers(engine)
            logits[name] = engine.logits(list(range(3, 40)))
            print(engine.plan)
            if device == "hybrid":
                print(engine.expert_stats)
    first, *others = texts.values()
    assert all(other == first for other in others)
    _, alone, *shared = logits.values()
    assert all(np.array_equal(one, alone) for one in shared)
