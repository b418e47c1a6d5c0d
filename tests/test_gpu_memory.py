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
from offload.batch import EXACT_CONTEXT, Batch, Span, expanded_runs
from offload.config import ModelConfig
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_pass import PassMemory
from offload.devices.cuda_segment import CudaSegment
from offload.devices.cuda_vram import Spaces
from offload.devices.cuda_weights import CudaMatrix
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.gpu.probe import GpuFacts
from offload.models import architecture
from offload.opening import Opened
from offload.plan import Plan
from offload.vram import table_bytes
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
        runs = expanded_runs(context)
        span = Span(slot=0, first=context - rows, count=rows, expanded=runs)
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


def opened(plan: Plan, config: ModelConfig, null: NullGpu) -> Opened:
    """Both devices of a plan, on a GPU that computes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offload.devices.cuda.CudaGpu", lambda *_: null)
        made = Opened(plan, config)
    made.set_tiers(None)
    return made


@pytest.mark.parametrize(
    ("sizes", "types", "card", "options"),
    [
        (K25, (Q4_K, TQ1_0), gpu(23.5, total=24), {"context": 262_144, "kv_type": "q8_0"}),
        (K25, (Q4_K, TQ1_0), gpu(7.6, total=8), {"context": 65_536}),
        (LITE, (Q8_0, Q8_0), gpu(11.5, total=12), {"context": 32_768, "vram": "10GiB"}),
        (replace(LITE, layers=3), (0, Q8_0), gpu(9, total=12), {"device": "hybrid"}),
    ],
    ids=[
        "K2.5, 256K tokens, 24 GiB",
        "K2.5, 8 GiB",
        "Moonlight, 10 of 12 GiB",
        "float weights, tied",
    ],
)
def test_plan_for_both_has_room_for_what_its_gpu_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    types: tuple[int, int],
    card: GpuFacts,
    options: dict[str, Any],
) -> None:
    """All layers, taken from a memory of this size; steps are written, and one is streamed."""
    weight, experts = types
    monkeypatch.setattr(CudaMatrix, "kernel", lambda self, _: of_type(self.kind)["repack"])
    monkeypatch.setattr(
        PassMemory,
        "expert_ids",  # all in turn
        lambda self, _: np.arange(self.n_rows * sizes.k).reshape(-1, sizes.k) % sizes.E,
    )
    keys = metadata(sizes, context_length=262_144)
    table = tensors(sizes, weight=weight, experts=experts, tied=weight == 0)
    with GGUFFile.open(write_model(tmp_path / "m.gguf", keys, table)) as file:
        config = ModelConfig.from_gguf(file)
        wish = PlanOptions(threads=1, **options)
        plan = make_plan(config, census(file, config), machine(256), wish, gpus=[card])
        vram = plan.vram
        assert plan.is_hybrid
        assert vram is not None
        null = NullGpu(card.free - vram.reserve)
        with closing(opened(plan, config, null)) as devices:
            both = devices.hybrid
            assert both is not None
            spaces = both.gpu.spaces
            names = "weights", "kv", "workspace", "ring"
            weights, pages, workspace, ring = (counted(spaces, name) for name in names)
            store = WeightStore(file, config)
            store.vector = lambda name: np.ones(file.tensors[name].shape, "f4")  # type: ignore
            blocks = architecture(config.architecture).blocks(config, store, devices.maker)
            model = Model(config, blocks, store)
            if vram.ring_experts:
                both.set_stream(vram.ring_experts, range(sizes.layers))
                both.route = Streamed()  # type: ignore[assignment]
            both.compile_steps()  # what they launch is written for that
            assert both.hot is not None
            both.hot.open()
            assert sum(pool.group.slots for pool in both.hot._pools) == plan.hot.slots
            model.kv.open(0)
            (few,) = (segment for _, segment in model._whole)
            ids = np.zeros(vram.rows, np.int64)
            end = plan.kv.context
            span = Span(
                slot=0,
                first=end - vram.rows,
                count=vram.rows,
                expanded=((EXACT_CONTEXT, end - 64),),
            )
            both.begin(Batch(spans=(replace(span, count=8, expanded=()),), ids=ids[:8], wanted=ids))
            few.tape()
            many = Batch(spans=(span,), ids=ids, wanted=np.arange(64))
            if vram.ring_experts:
                model.forward(many)
            else:  # but for what the CPU computes
                both.begin(many)
                for piece in few._pieces:  # type: ignore[attr-defined]
                    if isinstance(piece, CudaSegment):
                        piece.run(lambda: None)
            held = null.taken
            if plan.hot.lent:  # what is not lent stays
                (pool,) = both.hot._pools
                stage = both.hot.layers[1].copy.stage_bytes
                assert pool.cache.slots == (vram.slots - stage) // pool.group.slot_bytes
    assert weights[-1] == vram.weights
    assert max(pages) == vram.kv - table_bytes(plan.kv.context)
    assert max(ring, default=0) == vram.ring
    parts = vram.weights + vram.kv + vram.workspace + vram.slots + vram.ring
    assert held == parts // 256 * 256 <= vram.limit
    assert max(workspace) <= vram.workspace - 32 * MIB  # a gap is left where weights came by
    assert vram.workspace <= 1.25 * max(workspace) + 80 * MIB
