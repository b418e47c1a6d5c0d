"""What a plan says that a model takes in a GPU's memory is what the device takes: counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import gpu
from family import K25, LITE, Q4_K, Q8_0, Sizes, metadata, tensors
from gguf_bytes import write_model

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


class CountingGpu:
    """See Gpu: gives out addresses, and does nothing else."""

    name, architecture = "counting GPU", 90

    def __init__(self) -> None:
        self._next = 1 << 40

    def memory(self) -> tuple[int, int]:
        """(free, total)."""
        return 1 << 60, 1 << 60

    def alloc(self, n_bytes: int) -> int:
        """The next address."""
        at = self._next
        self._next += -(-n_bytes // 256) * 256
        return at

    def free(self, address: int) -> None:
        """Nothing."""

    def upload(self, to: int, data: np.ndarray) -> None:
        """Nothing."""

    def mark(self) -> int:
        """Nothing is under way."""
        return 0

    def send(self, to: int, data: np.ndarray, behind: int) -> int:
        """Nothing."""
        return 0

    def after(self, sent: int) -> None:
        """Nothing."""

    def download(self, at: int, out: np.ndarray) -> None:
        """Zeros."""
        out[...] = 0

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """Nothing."""

    def clear(self, at: int, n_bytes: int) -> None:
        """Nothing."""

    def prepare(self, launches: Sequence[Any]) -> CountingGpu:
        """Nothing to run."""
        return self

    def run(self) -> None:
        """Nothing."""

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """It is over."""

    def close(self) -> None:
        """Nothing."""


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
        device = CudaDevice(config, kv, vram=endless, gpu=CountingGpu())  # type: ignore[arg-type]
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
        model.forward(Batch(spans=(span,), ids=ids, wanted=np.arange(rows)))
    assert weights[-1] == plan.vram.weights
    assert max(pages) <= plan.kv.n_bytes <= max(pages) + 2 * MIB
    assert max(workspace) <= plan.vram.workspace - 32 * MIB  # a gap is left where weights came by
    assert plan.vram.workspace <= 1.25 * max(workspace) + 80 * MIB
