"""A GPU, emulated, and the CPU as one device: the same bits wherever an expert is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

from offload.batch import Batch, Span
from offload.config import ModelConfig
from offload.devices.base import Maker
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.hybrid import HybridDevice, SeenMemory
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.models import architecture
from offload.plan import KVSpec
from offload.weights import WeightStore
from quant.ggml import GGMLType

Array = np.ndarray
MODEL = TinyModel(
    layers=3, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=512,
)  # fmt: skip
CONTEXT = 64
ON_CPU = frozenset({"embedding", "routed"})
Place = Callable[[HybridDevice, str, int], Maker]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFFile]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", MODEL)
    with closing(GGUFFile.open(Path(path))) as opened:
        yield opened


def place(device: HybridDevice, block: str, layer: int, away: frozenset[str]) -> Maker:
    """away: blocks, or block and layer, that are the CPU's besides what always is."""
    if block in away or f"{block} {layer}" in away:
        return device.on_cpu
    if block in ("routed", "shared"):
        return device.on_both
    return device.on_cpu if block in ON_CPU else device.on_gpu


def opened(file: GGUFFile, kind: str, *away: str, delays: int | None = None) -> Model:
    """On the CPU, on the GPU, or on both."""
    config = ModelConfig.from_gguf(file)
    kv = KVSpec(context=CONTEXT, tokens=4 * CONTEXT, kv_type="f16")
    store = WeightStore(file, config)
    blocks = architecture(config.architecture).blocks
    if kind == "cpu":
        cpu = CpuDevice(config, kv, 2)
        return Model(config, blocks(config, store, lambda *_: cpu), store)
    gpu = CudaDevice(config, kv, gpu=SimulatedGpu(1 << 28, delays=delays))
    if kind == "cuda":
        return Model(config, blocks(config, store, lambda *_: gpu), store)
    both = HybridDevice(gpu, CpuDevice(config, kv, 2, memory=SeenMemory(gpu.gpu)))
    return Model(
        config, blocks(config, store, lambda b, i: place(both, b, i, frozenset(away))), store
    )


def logits(model: Model) -> list[Array]:
    """A prompt, tokens after it, and steps of several sequences."""
    found = []
    with closing(model):
        for slot in range(3):
            model.kv.open(slot)
        found.append(model.forward(Batch.of(np.arange(20) * 7 % 60 + 3)))
        for i in range(3):
            found.append(model.forward(Batch.of([5 + i], first=20 + i)))
        spans = tuple(Span(slot=i, first=(23, 0, 0)[i], count=1 + (i == 2)) for i in range(3))
        ids = np.array([9, 4, 11, 12])
        for _ in range(2):
            found.append(model.forward(Batch(spans=spans, ids=ids, wanted=np.arange(4))))
            spans = tuple(Span(slot=s.slot, first=s.end, count=s.count) for s in spans)
    return found


@pytest.fixture(scope="module")
def of_gpu(file: GGUFFile) -> list[Array]:
    return logits(opened(file, "cuda"))


def test_experts_of_the_cpu_have_the_bits_of_the_gpu(file: GGUFFile, of_gpu: list[Array]) -> None:
    for a, b in zip(logits(opened(file, "hybrid", delays=1)), of_gpu, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("away", [("head",), ("attention 1",), ("attention 2", "shared 1", "head"),
                                  ("dense", "router 2", "shared 2", "routed 2")],
                         ids=" and ".join)  # fmt: skip
def test_blocks_may_be_anywhere(file: GGUFFile, of_gpu: list[Array], away: tuple[str, ...]) -> None:
    for a, b in zip(logits(opened(file, "hybrid", *away, delays=2)), of_gpu, strict=True):
        assert np.linalg.norm(a - b) < 5e-3 * np.linalg.norm(b)
