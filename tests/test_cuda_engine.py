"""Whole models on an emulated GPU, through the engine: plan, load, prompts, several answers."""

from __future__ import annotations

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
from offload import batch
from offload.devices import cuda_attention, cuda_compile, cuda_expanded
from offload.requests import Requests
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=2, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPTS = ("In the beginning there was a prompt.", "And then another, " * 4, "so on")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("cuda") / "tiny.gguf", MODEL)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimulatedGpu]]:
    """Every GPU that was opened."""
    with gpus_opened(monkeypatch, lambda _: SimulatedGpu(1 << 29)) as opened:
        yield opened


def test_text_is_the_cpus(path: Path, gpus: list[SimulatedGpu]) -> None:
    results = {}
    for device in ("cpu", "auto"):
        with offload.load(path, context=512, device=device) as engine:
            results[device] = answers(engine, PROMPTS, 6)
            stats = engine.expert_stats
            assert stats.home == ("vram" if device == "auto" else "mmap")
            if device == "auto":
                assert engine.plan.placements
                (only,) = gpus
                assert only.compiled, "kernels are made ahead of the first answer"
    assert results["auto"] == results["cpu"]


def test_long_prompts_take_the_expanded_form(
    path: Path, gpus: list[SimulatedGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the GPU as of the CPU: a shorter EXACT_CONTEXT and shorter pieces stand for long ones."""
    for module in (batch, cuda_attention, cuda_compile):
        monkeypatch.setattr(module, "EXACT_CONTEXT", 16)
    monkeypatch.setattr(batch, "EXPANDED_TOKENS", 8)
    ids = np.arange(44) * 7 % 200 + 3
    logits = {}
    for device in ("cpu", "auto"):
        with offload.load(path, context=512, device=device) as engine:
            logits[device] = engine.logits(ids.tolist(), kv_type="f16")
    distance = np.linalg.norm(logits["auto"] - logits["cpu"]) / np.linalg.norm(logits["cpu"])
    assert distance < 5e-3
    del gpus


def test_a_pass_may_hold_pieces_of_several_turns(
    path: Path, gpus: list[SimulatedGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cuda_attention, cuda_compile):
        monkeypatch.setattr(module, "EXACT_CONTEXT", 8)
    monkeypatch.setattr(Requests, "expanded", lambda self, ids: ((16, 24), (29, 37)))
    written: list[tuple[int, int]] = []
    write = cuda_expanded.Expanded.write

    def noting(self: Any, w: Any, layer: int, first: int, rows: int, *rest: Any) -> None:
        written.append((first, rows))
        write(self, w, layer, first, rows, *rest)

    monkeypatch.setattr(cuda_expanded.Expanded, "write", noting)
    ids = np.arange(44) * 7 % 200 + 3
    logits = {}
    for device in ("cpu", "auto"):
        with offload.load(path, context=512, device=device) as engine:
            logits[device] = engine.logits(ids.tolist(), kv_type="f16")
    distance = np.linalg.norm(logits["auto"] - logits["cpu"]) / np.linalg.norm(logits["cpu"])
    assert distance < 5e-3
    assert written[-2 * MODEL.layers :] == [(16, 8), (29, 8)] * MODEL.layers
    del gpus
