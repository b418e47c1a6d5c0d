"""CudaGpu and tapes on a driver that is not there: starts by address, memory of the host."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from driver_use import PAGE, PLUS, lasting, numbers, opened, play, use_both_memories
from fake_cuda import FakeCuda, R

from offload.errors import DeviceError, PlanError
from offload.gpu.base import Launch
from offload.gpu.driver import CudaGpu
from quant.run.fields import write
from quant.run.gpu_tasks import Await, await_task


@pytest.fixture
def fake() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def gpu(fake: FakeCuda) -> Iterator[CudaGpu]:
    with_it = opened(fake)
    yield with_it
    with_it.close()
    assert fake.is_empty


def late(gpu: CudaGpu) -> None:
    """A tape that waits for a flag that nobody sets."""
    number, waited = np.ones(1, np.int64), np.zeros(1, np.int64)
    context = write(
        Await, FLAG=gpu.mapped(8).array.ctypes.data, NUMBER=number.ctypes.data, NAPS=2,
        STATUS=gpu.status_at, WAITED=waited.ctypes.data,
    )  # fmt: skip
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(await_task.address)(context.ctypes.data, 0, 0)
    assert waited[0] > 0


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
