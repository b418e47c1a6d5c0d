"""What a plan says that a model takes in a GPU's memory is what the device takes: counted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import gpu
from family import K25, LITE, Q4_K, Q8_0, Sizes, metadata, tensors
from gguf_bytes import write_model
from null_gpu import NullGpu
from test_planner import machine

from offload import PlanOptions, census, make_plan, probe
from offload.batch import Batch, Span, expanded_end
from offload.config import ModelConfig
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_pass import PassMemory
from offload.devices.cuda_vram import Spaces
from offload.devices.cuda_weights import CudaMatrix
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.models import architecture
from offload.opening import Opened
from offload.weights import WeightStore
from quant.cuda.kernels import of_type

TQ1_0 = 34
MIB = 2**20


def counted(spaces: Spaces, name: str) -> list[int]:
    """The bytes of a part that are in use after each call of `alloc`."""
    part: Any = getattr(spaces, name)
    part = getattr(part, "_part", part)  # pages' own
    alloc, used = part.alloc, []

    def seen(n_bytes: int) -> int:
        address = alloc(n_bytes)
        used.append(part.used)
        return int(address)

    part.alloc = seen
    return used


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("sizes", "weight", "experts", "context"),
    [
        (replace(K25, layers=2), Q4_K, TQ1_0, 262_144),
        (replace(K25, layers=2), Q4_K, TQ1_0, 4096),
        (replace(LITE, layers=3), Q8_0, Q8_0, 32_768),
        (replace(LITE, layers=2, dense=2), Q8_0, Q8_0, 8192),
        (Sizes(), 0, 0, 1024),
    ],
    ids=["K2.5", "K2.5, short", "Moonlight", "dense", "floats"],
)
def test_plan_has_room_for_what_the_device_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    weight: int,
    experts: int,
    context: int,
    kv_type: Any,
) -> None:
    monkeypatch.setattr(CudaMatrix, "kernel", lambda self, _: of_type(self.kind)["repack"])
    keys = metadata(sizes, context_length=context)
    path = write_model(tmp_path / "m.gguf", keys, tensors(sizes, weight=weight, experts=experts))
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        options = PlanOptions(device="cuda", context=context, kv_tokens=context, kv_type=kv_type)
        big = gpu(1 << 20, total=1 << 20)
        plan = make_plan(config, census(file, config), probe(), options, gpus=[big])
        assert plan.vram is not None
        endless = replace(plan.vram, weights=1 << 40, workspace=1 << 40)
        kv = replace(plan.kv, n_bytes=1 << 40)
        device = CudaDevice(config, kv, vram=endless, gpu=NullGpu())  # type: ignore[arg-type]
        weights, pages, workspace = (
            counted(device.spaces, name) for name in ("weights", "kv", "workspace")
        )
        store = WeightStore(file, config)
        store.vector = lambda name: np.ones(file.tensors[name].shape, np.float32)  # type: ignore
        blocks = architecture(config.architecture).blocks(config, store, lambda *_: device)
        model = Model(config, blocks, store)
        device.compile_steps()
        for rows in (1, 2, 8):
            model.kv.open(0)
            model.forward(Batch.of(np.zeros(rows, np.int64)))
            model.kv.close(0)
        model.kv.open(0)
        rows = min(plan.vram.rows, context)
        first, end = context - rows, expanded_end(context)
        span = Span(slot=0, first=first, count=rows, expanded=end)
        ids = np.zeros(rows, np.int64)
        model.forward(Batch(spans=(span,), ids=ids, wanted=np.arange(rows)[-64:]))
    assert weights[-1] == plan.vram.weights
    assert max(pages) <= plan.kv.n_bytes <= max(pages) + 2 * MIB
    assert max(workspace) <= plan.vram.workspace - 32 * MIB  # a gap is left where weights came by
    assert plan.vram.workspace <= 1.25 * max(workspace) + 80 * MIB


class Streamed:
    """A PromptRoute that knows one way."""

    def choose(self, rows: int) -> str:
        """It."""
        return "stream"

    def ran(self, way: str, rows: int, seconds: float) -> None:
        """Nothing is learnt."""


def choices(rows: int) -> np.ndarray:
    """(rows, 8): all experts in turn."""
    return np.arange(8 * rows).reshape(rows, 8) % 384


def test_256k_tokens_of_k25_fit_on_a_card_of_24_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a plan for GPU and CPU has there, all 61 layers of it, taken from 23.5 GiB."""
    monkeypatch.setattr(CudaMatrix, "kernel", lambda self, _: of_type(self.kind)["repack"])
    monkeypatch.setattr(PassMemory, "expert_ids", lambda self, _: choices(self.n_rows))
    keys = metadata(K25, context_length=262_144)
    path = write_model(tmp_path / "m.gguf", keys, tensors(K25, weight=Q4_K, experts=TQ1_0))
    card = gpu(23.5, total=24)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        options = PlanOptions(context=262_144, kv_type="q8_0", threads=1)
        plan = make_plan(config, census(file, config), machine(256), options, gpus=[card])
        vram = plan.vram
        assert plan.is_hybrid
        assert vram is not None
        null = NullGpu(card.free - vram.reserve)
        monkeypatch.setattr("offload.devices.cuda.CudaGpu", lambda *_: null)
        with closing(Opened(plan, config)) as opened:
            both = opened.hybrid
            assert both is not None
            spaces = both.gpu.spaces
            names = "weights", "kv", "workspace", "ring"
            weights, pages, workspace, ring = (counted(spaces, name) for name in names)
            opened.set_tiers(None)
            store = WeightStore(file, config)
            store.vector = lambda name: np.ones(file.tensors[name].shape, "f4")  # type: ignore
            blocks = architecture(config.architecture).blocks(config, store, opened.maker)
            model = Model(config, blocks, store)
            both.set_stream(vram.ring_experts, range(61))
            both.route = Streamed()  # type: ignore[assignment]
            assert both.hot is not None
            both.hot.open()
            assert sum(p.group.slots for p in both.hot._pools) == plan.hot.slots
            model.kv.open(0)
            (few,) = (segment for _, segment in model._whole)
            ids = np.zeros(vram.rows, np.int64)
            first = 262_144 - vram.rows
            span = Span(slot=0, first=first, count=vram.rows, expanded=262_144 - 64)
            both.begin(Batch(spans=(replace(span, count=8, expanded=0),), ids=ids[:8], wanted=ids))
            few.tape()
            model.forward(Batch(spans=(span,), ids=ids, wanted=np.arange(64)))
            (pool,) = both.hot._pools
            stage = plan.placements["routed"].n_bytes // 60 // 384
            assert pool.cache.slots == (vram.slots - stage) // stage  # what is never lent
            held = null.taken
    assert weights[-1] == vram.weights
    assert max(pages) == plan.hot.lent == 1024 * 61 * 256 * 612  # all that is lent is needed
    assert max(ring) == vram.ring
    parts = vram.weights + vram.kv + vram.workspace + vram.slots + vram.ring
    assert held == parts // 256 * 256 <= card.free - vram.reserve
    assert max(workspace) <= vram.workspace <= 1.1 * max(workspace)
