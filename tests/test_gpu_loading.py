"""Weights on their way into VRAM: two stages, a planned slab, loads that end too early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from fake_cuda import FakeCuda, R, cubins
from fake_gpu import gpu as facts
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu
from test_planner import Model, machine, toy

from offload import PlanOptions, make_plan
from offload.devices import cuda_weights
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_kv import CudaKV
from offload.devices.cuda_vram import spaces
from offload.devices.cuda_weights import Loader
from offload.errors import DeviceError, PlanError
from offload.gpu import sending
from offload.gpu.base import Gpu
from offload.gpu.driver import CudaGpu
from offload.kv_cache import cache_shape
from offload.kv_slots import KVSlots, Slot
from offload.plan import KVSpec, VramSpec
from offload.vram import PAGE, table_bytes
from offload.weights import Matrix
from quant.ggml import BLOCK, GGMLType
from quant.registry import quant_type

__all__ = ["toy"]  # a fixture
Array = np.ndarray
KIND = GGMLType.Q8_0


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Pages are worth registering."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "LEAST", 4096)
        yield


def matrices(count: int, n_rows: int, gap: int = 0) -> Matrix:
    """Random bytes of a mapped file; gap: rows that belong to others behind each matrix."""
    n_cols = 256
    row = n_cols // BLOCK[KIND].size * BLOCK[KIND].n_bytes
    data = np.random.default_rng(n_rows).integers(0, 256, count * (n_rows + gap) * row, np.uint8)
    data.flags.writeable = False
    return Matrix(
        name="m", quant=quant_type(KIND), count=count, n_rows=n_rows, n_cols=n_cols,
        used_cols=n_cols, row_bytes=row, stride=(n_rows + gap) * row, address=data.ctypes.data,
        owner=data,
    )  # fmt: skip


def load(gpu: Gpu) -> list[Array]:
    """Planes of some matrices."""
    loader = Loader(gpu, gpu, gpu)
    made = [loader.matrix(matrices(*sizes)) for sizes in ((1, 40), (1, 41), (4, 7, 3), (3, 19))]
    loader.close()
    found = []
    for m in made:
        found.append(np.empty(m.count * m.stride, np.uint8))
        gpu.download(m.address, found[-1])
    return found


@pytest.fixture(scope="module")
def planes() -> list[Array]:
    """All at once, one after the other."""
    return load(SimulatedGpu(1 << 20))


@pytest.mark.parametrize("seed", range(6))
def test_two_stages_bring_what_one_does(
    seed: int, planes: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_weights, "STAGE_BYTES", (3000, 9000)[seed % 2])
    fake = FakeCuda(seed=seed)
    with closing(CudaGpu(module=fake, cubins=cubins)) as gpu:
        for found, expected in zip(load(gpu), planes, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert len(fake.allocated) == 4
        assert not fake.pinned
    assert fake.is_empty
    assert not fake.early


@settings(deadline=None, max_examples=60)
@given(
    st.integers(130, 600),
    st.sampled_from([KeyboardInterrupt, R.CUDA_ERROR_OUT_OF_MEMORY, R.CUDA_ERROR_LAUNCH_FAILED]),
)
def test_load_that_ends_early_leaves_nothing(n: int, error: Any) -> None:
    fake = FakeCuda(failing={n: error})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_weights, "STAGE_BYTES", 9000)
        gpu = None
        with suppress(KeyboardInterrupt, DeviceError, PlanError):
            gpu = CudaGpu(module=fake, cubins=cubins)
            load(gpu)
        if gpu is not None:
            with suppress(KeyboardInterrupt):
                gpu.close()
    if fake.calls[n - 1 : n] != ["cuDevicePrimaryCtxRelease"]:
        assert fake.is_empty


def spec(model: Model, **options: Any) -> tuple[KVSpec, VramSpec]:
    """Of a plan."""
    made = make_plan(*model, machine(), PlanOptions(device="cuda", **options), gpus=[facts()])
    assert made.vram is not None
    return made.kv, made.vram


def test_all_that_is_taken_is_one_slab_within_the_limit(toy: Model) -> None:
    kv, vram = spec(toy, vram="150MiB", context=512, chunk=16)
    assert vram.limit == 150 << 20
    fake = FakeCuda(n_bytes=vram.limit)
    gpu = CudaGpu(0, vram.limit, module=fake, cubins=cubins)
    parts = spaces(gpu, kv, vram)
    (taken,) = fake.allocated.values()
    assert taken <= vram.limit
    for space, n_bytes in (
        (parts.weights, vram.weights), (parts.kv, kv.n_bytes - table_bytes(512)),
        (parts.tables, table_bytes(512)), (parts.workspace, vram.workspace),
    ):  # fmt: skip
        space.alloc(n_bytes)
    with pytest.raises(PlanError, match="--vram"):
        gpu.alloc(vram.limit - taken + 1)
    gpu.close()
    with pytest.raises(PlanError, match=r"--vram 1\.0 MiB"):
        CudaDevice(toy[0], kv, vram=replace(vram, limit=1 << 20),
                   gpu=CudaGpu(0, 1 << 20, module=fake, cubins=cubins))  # fmt: skip
    assert fake.is_empty


@pytest.mark.parametrize("error", [KeyboardInterrupt, R.CUDA_ERROR_LAUNCH_FAILED])
def test_device_that_is_not_finished_leaves_nothing(toy: Model, error: Any) -> None:
    kv, vram = spec(toy, context=512, chunk=16)
    fake = FakeCuda(n_bytes=160 << 20)
    CudaDevice(toy[0], kv, vram=vram, gpu=CudaGpu(module=fake, cubins=cubins)).close()
    count = len(fake.calls)
    first = count - fake.calls[::-1].index("cuMemAlloc")
    for n in range(first, first + 40):
        fake.calls.clear()
        fake.failing = {n: error}
        with suppress(KeyboardInterrupt, DeviceError):
            CudaDevice(toy[0], kv, vram=vram, gpu=CudaGpu(module=fake, cubins=cubins)).close()
        assert fake.is_empty


class Counted(SimulatedGpu):
    """Contents of the KV cache do not matter."""

    def clear(self, at: int, n_bytes: int) -> None:
        pass

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        pass


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2000)), max_size=60))
def test_pages_that_the_budget_has_are_always_found(
    toy: Model, steps: list[tuple[int, int]]
) -> None:
    kv, vram = spec(toy, context=2048, kv_tokens=3072, chunk=16)
    gpu = Counted(1 << 25)
    parts = spaces(gpu, kv, replace(vram, weights=256, workspace=256))
    cache = CudaKV(gpu, parts.kv, parts.tables, cache_shape(toy[0], kv.kv_type), kv.context)
    for layer in range(toy[0].num_layers):
        cache.add(layer)
    slots = KVSlots(cache, kv.tokens, PAGE)
    busy: list[Slot] = []
    for what, n in steps:
        if what == 0 and busy:
            slots.release(busy.pop(n % len(busy)))
        elif what == 1 and busy:
            one = busy[n % len(busy)]
            rows = min(kv.context, one.touched + n)
            if slots.grow(one, rows, rows):
                cache.reserve(one.number, rows)
                one.length = one.touched = rows
        elif (slot := slots.acquire(np.arange(4000) * n, n, (), n)) is not None:
            cache.reserve(slot.number, n)
            slot.length, slot.touched = n, max(n, slot.touched)
            busy.append(slot)
