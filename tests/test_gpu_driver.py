"""CudaGpu on a driver that is not there: order, lifetimes, errors, what is given back."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from fake_cuda import FakeCuda, R, cubins
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import DeviceError, PlanError
from offload.gpu import queue, sending, staging
from offload.gpu.base import Launch, Prepared
from offload.gpu.driver import CudaGpu
from quant.cuda.intrinsics import load_u32, store_u32, thread, u32
from quant.cuda.kernels import Kernel
from quant.run.fields import write
from quant.run.gpu_tasks import Await, await_task

Array = np.ndarray


def plus(at: int, more: int) -> None:
    """32 uint32 grow."""
    place = at + 4 * thread()
    store_u32(place, load_u32(place) + u32(more))


PAGE = 4096
PLUS = Kernel(name="plus", function=plus, threads=32)
ERRORS = (
    R.CUDA_ERROR_OUT_OF_MEMORY, R.CUDA_ERROR_ILLEGAL_ADDRESS, R.CUDA_ERROR_LAUNCH_TIMEOUT,
    R.CUDA_ERROR_NO_DEVICE, R.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
    R.CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, R.CUDA_ERROR_NOT_SUPPORTED, R.CUDA_ERROR_UNKNOWN,
    KeyboardInterrupt,
)  # fmt: skip


def opened(fake: FakeCuda, limit: int | None = None, **more: Any) -> CudaGpu:
    return CudaGpu(0, limit, module=fake, cubins=cubins, entries=fake.entry, **more)


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    """What is worth registering."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "LEAST", 1 << 12)
        yield


def lasting(n: int) -> Array:
    """Bytes from the start of a page on."""
    room = np.random.default_rng(n).integers(0, 256, n + PAGE, np.uint8)
    data = room[-room.ctypes.data % PAGE :][:n]
    data.flags.writeable = False
    return data


@pytest.fixture
def fake() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def gpu(fake: FakeCuda) -> Iterator[CudaGpu]:
    with_it = opened(fake)
    yield with_it
    with_it.close()
    assert fake.is_empty


def numbers(gpu: CudaGpu, at: int, n: int = 32) -> Array:
    out = np.zeros(n, np.uint32)
    gpu.download(at, out)
    return out


def play(*prepared: Prepared) -> None:
    """As a tape does."""
    for one in prepared:
        task, context = one.start
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(task)(context, 0, 0)


def late(gpu: CudaGpu) -> None:
    """A tape that waits for a flag that nobody sets."""
    number, waited = np.ones(1, np.int64), np.zeros(1, np.int64)
    context = write(
        Await, FLAG=gpu.mapped(8).array.ctypes.data, NUMBER=number.ctypes.data, NAPS=2,
        STATUS=gpu.status_at, WAITED=waited.ctypes.data,
    )  # fmt: skip
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(await_task.address)(context.ctypes.data, 0, 0)
    assert waited[0] > 0


def use_both_memories(gpu: CudaGpu) -> None:
    """Starts from a tape, memory of the host, launches beside the queue."""
    at, flag, kept = gpu.alloc(PAGE), gpu.mapped(128), lasting(3 * PAGE)
    view = flag.array.view(np.uint32)
    assert not view.any()
    once = gpu.prepare([Launch(PLUS, (1, 1, 1), (flag.address, 2))])
    twice = gpu.prepare([Launch(PLUS, (1, 1, 1), (flag.address, 3))] * 2)
    play(once, twice, once)
    gpu.check_started()
    gpu.wait()
    assert (view == 10).all()
    why = gpu.pin(kept)
    assert "\n" not in why
    after = gpu.prepare([Launch(PLUS, (1, 1, 1), (at, 1))] * 2, beside=True)
    gpu.send(at, kept[100:][:PAGE], gpu.mark())
    after.run()
    sent = gpu.sending()
    while not gpu.has_arrived(sent):
        pass
    np.testing.assert_array_equal(numbers(gpu, at), kept[100:228].view(np.uint32) + 2)
    play(after)
    gpu.check_started()
    gpu.wait()
    np.testing.assert_array_equal(numbers(gpu, at), kept[100:228].view(np.uint32) + 4)


def use(gpu: CudaGpu) -> None:
    """A little of everything."""
    at, other = gpu.alloc(128), gpu.alloc(4096)
    data = np.arange(32, dtype=np.uint32)
    gpu.clear(other, 4096)
    gpu.upload(at, data)
    twice = gpu.prepare([Launch(PLUS, (1, 1, 1), (at, 5)), Launch(PLUS, (1, 1, 1), (at, -1))])
    once = gpu.prepare([Launch(PLUS, (1, 1, 1), (at, 1), shared=60_000)])
    data[:] = 0
    twice.run()
    once.run()
    gpu.copy(other, at, 128)
    gpu.wait()
    far = gpu.alloc(1 << 14)
    for k in range(4):
        data = np.full(1 << 12, k, np.uint32)
        data.flags.writeable = False
        gpu.after(gpu.send(far, data, gpu.mark()))
        gpu.copy(other + 128 + 4 * k, far + 512, 4)
    np.testing.assert_array_equal(numbers(gpu, other), np.arange(32) + 5)
    assert gpu.seconds(once, 2) > 0
    np.testing.assert_array_equal(numbers(gpu, at), np.arange(32) + 7)
    np.testing.assert_array_equal(numbers(gpu, other + 128, 4), np.arange(4))
    once.close()
    twice.close()
    gpu.free(at)


def test_copies_and_launches_go_in_order(gpu: CudaGpu, fake: FakeCuda) -> None:
    assert (gpu.name, gpu.architecture) == ("Fake 3090", 86)
    use(gpu)
    assert fake.calls.count("cuGraphLaunch") == 1
    assert fake.calls.count("cuLaunchKernel") == 3


def test_tapes_start_launches_and_the_host_sees_what_they_write(
    gpu: CudaGpu, fake: FakeCuda
) -> None:
    use_both_memories(gpu)
    assert fake.calls.count("cuGraphLaunch") == 3
    assert fake.calls.count("cuLaunchKernel") == 2
    assert fake.read_only == [True]
    assert not fake.native


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [(R.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, False), (R.CUDA_ERROR_LAUNCH_FAILED, True)],
)
def test_a_start_that_fails_is_told_once(
    gpu: CudaGpu, fake: FakeCuda, error: R, is_lost: bool
) -> None:
    flag = gpu.mapped(128)
    once, other = (gpu.prepare([Launch(PLUS, (1, 1, 1), (flag.address, 1))] * n) for n in (2, 1))
    fake.refused["cuGraphLaunch"] = error
    play(once, other)
    assert "cuLaunchKernel" not in fake.calls
    with pytest.raises(DeviceError, match=rf"{error.name}, {int(error)}") as told:
        gpu.check_started()
    assert "\n" not in str(told.value)
    fake.refused.clear()
    if is_lost:
        with pytest.raises(DeviceError, match=error.name):
            gpu.wait()
        return
    gpu.check_started()
    play(once, other)
    gpu.check_started()
    gpu.wait()
    assert (flag.array.view(np.uint32) == 3).all()


def test_a_flag_that_does_not_come_loses_the_gpu(fake: FakeCuda) -> None:
    gpu = opened(fake, watchdog_seconds=3.0)
    late(gpu)
    count = len(fake.calls)
    with pytest.raises(
        DeviceError, match=r"GPU 0 \(Fake 3090\): no answer for 3 s; .*--device cpu"
    ):
        gpu.check_started()
    assert "cuEventQuery" in fake.calls[count:]
    with pytest.raises(DeviceError, match="no answer for 3 s"):
        gpu.wait()
    gpu.close()
    fake = FakeCuda()
    opened(fake).close()


def test_a_flag_does_not_come_because_a_kernel_failed(gpu: CudaGpu, fake: FakeCuda) -> None:
    gpu.wait()
    late(gpu)
    fake.lost = R.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match="touched memory"):
        gpu.check_started()


def test_memory_that_cannot_be_pinned_is_staged(fake: FakeCuda) -> None:
    """The second array is refused: the system has no more; the third is for reading."""
    gpu = opened(fake)
    fake.pinnable = 3 * PAGE
    first, second = lasting(3 * PAGE), lasting(2 * PAGE)
    first.flags.writeable = second.flags.writeable = True
    assert gpu.pin(first) == ""
    assert gpu.pin(second).startswith(
        "GPU 0 (Fake 3090): memory is short (CUDA_ERROR_OUT_OF_MEMORY"
    )
    fake.reads_only = False
    assert gpu.pin(lasting(PAGE)) == "this GPU cannot pin memory that is for reading"
    assert gpu.pin(np.zeros(100, np.uint8)) == ""
    assert fake.read_only == [False]
    at = gpu.alloc(2 * PAGE)
    for data in (first, second):
        given = data[:PAGE]
        gpu.send(at, given, gpu.mark())
        expected = given.copy()
        is_read = len([work for work in fake.waiting if work.host[0] == given.ctypes.data])
        assert is_read == (data is first)
        gpu.wait()
        np.testing.assert_array_equal(numbers(gpu, at, PAGE // 4).view(np.uint8), expected)
    assert fake.pinned == {first.ctypes.data: 3 * PAGE}
    gpu.close()
    assert fake.is_empty


def test_what_the_host_shares_may_be_refused(gpu: CudaGpu, fake: FakeCuda) -> None:
    fake.pinnable = 1 << 20
    with pytest.raises(PlanError, match="2.0 MiB of the host's memory .* refused; end programs"):
        gpu.mapped(2 << 20)


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
