"""CudaGpu on a driver that is not there: order, lifetimes, errors, what is given back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from driver_use import PLUS, numbers, opened, use, use_both_memories
from fake_cuda import FakeCuda, R, cubins
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import DeviceError, PlanError
from offload.gpu import queue, sending, staging
from offload.gpu.base import Launch
from offload.gpu.driver import CudaGpu
from quant.cuda.kernels import Kernel

Array = np.ndarray
ERRORS = (
    R.CUDA_ERROR_OUT_OF_MEMORY, R.CUDA_ERROR_ILLEGAL_ADDRESS, R.CUDA_ERROR_LAUNCH_TIMEOUT,
    R.CUDA_ERROR_NO_DEVICE, R.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
    R.CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, R.CUDA_ERROR_NOT_SUPPORTED, R.CUDA_ERROR_UNKNOWN,
    KeyboardInterrupt,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    """What is worth registering."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "LEAST", 1 << 12)
        yield


@pytest.fixture
def fake() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def gpu(fake: FakeCuda) -> Iterator[CudaGpu]:
    with_it = opened(fake)
    yield with_it
    with_it.close()
    assert fake.is_empty


def test_copies_and_launches_go_in_order(gpu: CudaGpu, fake: FakeCuda) -> None:
    assert (gpu.name, gpu.architecture) == ("Fake 3090", 86)
    use(gpu)
    assert fake.calls.count("cuGraphLaunch") == 1
    assert fake.calls.count("cuLaunchKernel") == 3


def test_any_thread_may_call(gpu: CudaGpu) -> None:
    at = gpu.alloc(128)
    gpu.clear(at, 128)
    once = gpu.prepare([Launch(PLUS, (1, 1, 1), (at, 3))] * 2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(once.run).result()
        np.testing.assert_array_equal(pool.submit(numbers, gpu, at).result(), 6)
        pool.submit(once.close).result()


def test_uploads_of_any_size_pass_the_ring(
    gpu: CudaGpu, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BYTES", 1 << 13)
    monkeypatch.setattr(staging, "PART", 3000)
    rng = np.random.default_rng(1)
    sizes = [1, 7, 2999, 3000, 3001, 9000, 20_000, *rng.integers(0, 4000, 100)]
    at = gpu.alloc(sum(sizes))
    expected = rng.integers(0, 256, sum(sizes), np.uint8)
    first = 0
    for size in sizes:
        data = expected[first : first + size].copy()
        gpu.upload(at + first, data)
        data[:] = 0
        first += size
    out = np.empty_like(expected)
    gpu.download(at, out)
    np.testing.assert_array_equal(out, expected)


def test_many_runs_wait_for_the_gpu(gpu: CudaGpu, fake: FakeCuda) -> None:
    at = gpu.alloc(128)
    gpu.clear(at, 128)
    once = gpu.prepare([Launch(PLUS, (1, 1, 1), (at, 1))])
    for _ in range(3 * queue.MARKS):
        once.run()
    assert len(fake.waiting) <= 2 * queue.MARKS + 1
    assert (numbers(gpu, at) == 3 * queue.MARKS).all()


@pytest.mark.parametrize("name", ["cuGraphCreate", "cuGraphAddKernelNode", "cuGraphInstantiate"])
def test_refused_graphs_are_launched_one_by_one(name: str) -> None:
    fake = FakeCuda()
    fake.refused[name] = R.CUDA_ERROR_NOT_SUPPORTED
    gpu = opened(fake)
    use(gpu)
    assert "cuGraphLaunch" not in fake.calls
    gpu.close()
    assert fake.is_empty


def test_limit_bounds_the_memory(fake: FakeCuda) -> None:
    with closing(opened(fake)) as gpu:
        assert gpu.memory() == (24 << 30, 24 << 30)
    gpu = opened(fake, 1000)
    gpu.alloc(600)
    assert gpu.memory()[0] == 400
    with pytest.raises(PlanError, match=r"0\.0 MiB.*\(--vram 0\.0 MiB\).*nvidia-smi"):
        gpu.alloc(401)
    gpu.close()


def test_memory_that_the_driver_refuses_is_a_plan_error(gpu: CudaGpu) -> None:
    with pytest.raises(PlanError, match="2.0 MiB of VRAM are wanted"):
        gpu.alloc(2 << 20)
    gpu.alloc(100)


def test_check_may_end_a_wait(gpu: CudaGpu, fake: FakeCuda) -> None:
    fake.hangs = True

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.wait(stop)
    fake.hangs = False
    gpu.wait()


def test_gpu_that_stands_still_is_lost_and_never_waited_for(fake: FakeCuda) -> None:
    gpu = opened(fake, watchdog_seconds=0.05)
    at = gpu.alloc(128)
    gpu.clear(at, 128)
    fake.hangs = True
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"GPU 0 \(Fake 3090\): no answer for 0 s") as first:
        gpu.wait()
    count = len(fake.calls)
    for call in (gpu.memory, gpu.wait, lambda: gpu.free(at), lambda: gpu.alloc(5)):
        with pytest.raises(DeviceError) as again:
            call()
        assert str(again.value) == str(first.value)
    gpu.close()
    assert len(fake.calls) == count
    assert time.monotonic() - began < 2


def test_lost_gpu_says_the_same_and_can_be_opened_again(fake: FakeCuda) -> None:
    gpu = opened(fake)
    at = gpu.alloc(128)
    gpu.clear(at, 128)
    fake.lost = R.CUDA_ERROR_ILLEGAL_ADDRESS
    line = r"touched memory.*\(CUDA_ERROR_ILLEGAL_ADDRESS, 700, in cu\w+\); .*--device cpu"
    with pytest.raises(DeviceError, match=line) as first:
        gpu.wait()
    with pytest.raises(DeviceError) as again:
        gpu.upload(at, np.zeros(4, np.uint8))
    assert str(again.value) == str(first.value)
    gpu.close()
    assert fake.is_empty
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS|closed"):
        gpu.wait()
    gpu = opened(fake)
    use(gpu)
    gpu.close()
    assert fake.is_empty


@pytest.mark.parametrize(
    ("fake", "index", "line"),
    [
        (FakeCuda(gpus=1), 1, r"GPU 1: there is no such GPU .*doctor"),
        (FakeCuda(capability=(7, 5)), 0, r"compute capability 7\.5, kernels need 8\.0"),
        (FakeCuda(failing={1: R.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH}), 0, "803.*restart the machine"),
    ],
)
def test_gpus_that_cannot_be_used(fake: FakeCuda, index: int, line: str) -> None:
    with pytest.raises(DeviceError, match=line) as error:
        CudaGpu(index, module=fake, cubins=cubins)
    assert "\n" not in str(error.value)
    assert fake.is_empty


def test_wrong_launches_are_refused(gpu: CudaGpu) -> None:
    with pytest.raises(TypeError, match="plus: 1 arguments, it takes 2"):
        gpu.prepare([Launch(PLUS, (1, 1, 1), (5,))])
    with pytest.raises(DeviceError, match="needs 200,000 bytes of shared"):
        gpu.prepare([Launch(PLUS, (1, 1, 1), (5, 5), shared=200_000)])


def test_kernel_that_cannot_be_made_or_loaded_is_one_line(fake: FakeCuda) -> None:
    def fails(kernel: Kernel, architecture: int) -> bytes:
        raise RuntimeError(f"no {kernel.name} for {architecture}\nmore")

    for made, line in ((fails, "plus cannot be made .no plus for 86"), (lambda *_: b"", "damaged")):
        gpu = CudaGpu(module=fake, cubins=made)
        with pytest.raises(DeviceError, match=line) as error:
            gpu.prepare([Launch(PLUS, (1, 1, 1), (5, 5))])
        assert "\n" not in str(error.value)
        gpu.close()
        assert fake.is_empty


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 620), st.sampled_from(ERRORS), st.integers(0, 9))
def test_whatever_call_fails_is_one_line_and_all_is_given_back(
    n: int, error: Any, seed: int
) -> None:
    fake = FakeCuda(failing={n: error}, seed=seed)
    gpu, said = None, ""
    try:
        gpu = opened(fake, watchdog_seconds=5.0)
        use_both_memories(gpu)
        use(gpu)
    except (DeviceError, PlanError) as exc:
        said = str(exc)
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    if gpu is not None:
        with suppress(KeyboardInterrupt):
            gpu.close()
    assert "\n" not in said
    assert not fake.native
    if fake.calls[n - 1 : n] != ["cuDevicePrimaryCtxRelease"]:
        assert fake.is_empty
        fake.failing.clear()
        opened(fake).close()
