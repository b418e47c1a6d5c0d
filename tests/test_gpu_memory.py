"""What a plan says that a model takes in a GPU's memory is what the device takes: counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

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
from offload.devices.cuda_vram import Spaces
from offload.devices.cuda_weights import CudaMatrix
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.models import architecture
from offload.weights import WeightStore
from quant.cuda.kernels import of_type

TQ1_0 = 34
MIB = 2**20


def counted(spaces: Spaces, name: str) -> list[int]:
    """The bytes of a part that are in use after each call of `alloc`."""
    part: Any = getattr(spaces, name)
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
            counted(device._spaces, name) for name in ("weights", "kv", "workspace")
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


def test_256k_tokens_of_k25_fit_on_a_card_of_24_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a plan for GPU and CPU has there, all 61 layers of it, taken from 23.5 GiB."""
    monkeypatch.setattr(CudaMatrix, "kernel", lambda self, _: of_type(self.kind)["repack"])
    keys = metadata(K25, context_length=262_144)
    path = write_model(tmp_path / "m.gguf", keys, tensors(K25, weight=Q4_K, experts=TQ1_0))
    card = gpu(23.5, total=24)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        options = PlanOptions(context=262_144, kv_type="q8_0")
        plan = make_plan(config, census(file, config), machine(256), options, gpus=[card])
        vram = plan.vram
        assert plan.is_hybrid
        assert vram is not None
        null = NullGpu(card.free - vram.reserve)
        device = CudaDevice(config, plan.kv, vram=vram, gpu=null)  # type: ignore[arg-type]
        weights, pages, workspace = (
            counted(device._spaces, name) for name in ("weights", "kv", "workspace")
        )
        store = WeightStore(file, config)
        store.vector = lambda name: np.ones(file.tensors[name].shape, np.float32)  # type: ignore
        here = MagicMock()  # the CPU: makes blocks that are nobody's
        places = {"cpu": here, "cuda:0": device}
        made = architecture(config.architecture).blocks(
            config, store, lambda block, layer: places[plan.place(block, layer).device]
        )
        segment = device.segment([block for block in made if getattr(block, "device", 0) is device])
        device.compile_steps()
        for rows in (8, vram.rows):
            device.kv.open(0)
            span = Span(slot=0, first=262_144 - rows, count=rows, expanded=262_144 - rows % 512)
            device.begin(
                Batch(spans=(span,), rows=np.zeros((rows, 7168)), wanted=np.arange(rows)[-64:])
            )
            segment.run(lambda: None)
            if rows == 8:
                device.kv.close(0)
        null.alloc(vram.slots)
        null.alloc(vram.ring)
    assert weights[-1] == vram.weights
    assert pages[-1] == plan.hot.lent == 1024 * 61 * 256 * 612  # all that is lent is needed
    assert null.most <= card.free - vram.reserve
    parts = vram.weights + vram.kv + vram.workspace + vram.slots + vram.ring
    assert parts - 1024 < null.most <= parts
    streamed = vram.rows * (
        8 * (4 * 7168 + 32) + 12 * 2048
    )  # outputs of all choices, what is between
    stages = 4 * (plan.placements["routed"].n_bytes // 60 // 384)
    assert max(workspace) + streamed + stages <= vram.workspace
