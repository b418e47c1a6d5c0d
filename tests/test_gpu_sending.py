"""Copies beside launches: whatever the two queues' speeds, each piece is where it is read."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from fake_cuda import FakeCuda, R, cubins
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import DeviceError
from offload.gpu import sending, staging
from offload.gpu.base import Mark
from offload.gpu.driver import CudaGpu
from offload.gpu.pinned import pinnable, refused_map

Array = np.ndarray
PAGE = 4096
STAGE = 4 * PAGE


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Sizes, so that a ring of some pages goes round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "LEAST", PAGE)
        patch.setattr(sending, "BUDGET", STAGE + PAGE)
        patch.setattr(staging, "BYTES", 3 * PAGE)
        patch.setattr(staging, "PART", PAGE)
        yield


def opened(fake: FakeCuda, seconds: float = 20.0) -> CudaGpu:
    return CudaGpu(module=fake, cubins=cubins, watchdog_seconds=seconds)


def clock(register: float, stage: float) -> Callable[[], float]:
    """Seconds as they are asked for: to register, to undo it, to stage."""
    ends = [0.0, register, 0.0, register, 0.0, stage]
    return itertools.chain(ends, itertools.repeat(0.0)).__next__


def lasting(n: int, seed: int = 0) -> Array:
    data = np.random.default_rng(seed).integers(0, 256, n, np.uint8)
    data.flags.writeable = False
    return data


def through_stages(
    fake: FakeCuda, pieces: list[tuple[int, bool]], *, is_ordered: bool = True
) -> bool:
    """Whether all pieces come through two stages whole. pieces: (bytes, whether it lasts)."""
    with closing(opened(fake)) as gpu:
        stages = [(gpu.alloc(STAGE), gpu.mark()) for _ in range(2)]
        to = gpu.alloc(sum(n for n, _ in pieces))
        at, expected = 0, []
        for k, (n, lasts) in enumerate(pieces):
            stage, free = stages.pop(0)
            data = lasting(n, k)
            expected.append(data)
            given_away = data if lasts else data.copy()
            sent = gpu.send(stage, given_away, free if is_ordered else Mark(0))
            if not lasts:
                given_away[:] = 0
            if is_ordered:
                gpu.after(sent)
            gpu.copy(to + at, stage, n)
            stages.append((stage, gpu.mark()))
            at += n
        out = np.empty(at, np.uint8)
        gpu.download(to, out)
    assert fake.is_empty
    assert not fake.early
    return np.array_equal(out, np.concatenate(expected))


PIECES = st.lists(st.tuples(st.integers(1, STAGE), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(PIECES, st.integers(0, 1000), st.sampled_from([(1.0, 9.0), (9.0, 1.0)]))
def test_pieces_pass_two_stages_in_any_order_of_the_queues(
    pieces: list[tuple[int, bool]], seed: int, seconds: tuple[float, float]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "perf_counter", clock(*seconds))
        assert through_stages(FakeCuda(seed=seed), pieces)


def test_without_waiting_pieces_are_mixed_up() -> None:
    pieces = [(STAGE, k % 2 == 0) for k in range(8)]
    found = {through_stages(FakeCuda(seed=k), pieces, is_ordered=False) for k in range(20)}
    assert False in found


def test_copies_go_on_beside_launches() -> None:
    fake = FakeCuda()
    with closing(opened(fake)) as gpu:
        stage, other = gpu.alloc(64), gpu.alloc(64)
        gpu.clear(other, 64)
        sent = gpu.send(stage, np.ones(64, np.uint8), Mark(0))
        launches, copies = fake.streams.values()
        assert len(launches) == 1
        assert len(copies) > 0
        gpu.after(sent)
        assert launches[-1].gate is not launches[0].gate


@pytest.mark.parametrize(("register", "stage"), [(1.0, 9.0), (9.0, 1.0)])
def test_the_quicker_way_is_taken(
    register: float, stage: float, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(sending, "perf_counter", clock(register, stage))
    caplog.set_level(logging.DEBUG)
    fake = FakeCuda()
    with closing(opened(fake)) as gpu:
        at = gpu.alloc(STAGE)
        whole = lasting(9 * STAGE)
        for k in range(8):
            gpu.send(at, whole[k * STAGE + 100 :][:STAGE], gpu.mark())
        assert fake.calls.count("cuMemHostRegister") == (7 if register < stage else 1)
        assert all(fake.read_only)
        assert len(fake.pinned) == (register < stage)
        gpu.wait()
        assert not fake.pinned
        gpu.send(at, np.ones(STAGE, np.uint8), gpu.mark())
        assert not fake.pinned
    assert not fake.early
    assert fake.is_empty
    assert "s a GB to register" in caplog.text


def test_a_driver_that_refuses_mapped_files_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeCuda()
    fake.refused["cuMemHostRegister"] = R.CUDA_ERROR_NOT_SUPPORTED
    assert through_stages(fake, [(STAGE, True)] * 5)
    assert fake.calls.count("cuMemHostRegister") == 1
    assert "mapped files are staged: GPU 0 (Fake 3090): it does not support this" in caplog.text


def test_pages_of_one_file_are_never_registered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "BUDGET", 1 << 30)
    monkeypatch.setattr(sending, "perf_counter", clock(1.0, 9.0))
    fake = FakeCuda()
    with closing(opened(fake)) as gpu:
        at = gpu.alloc(STAGE)
        data = lasting(STAGE)
        for _ in range(6):
            gpu.send(at, data, gpu.mark())
        assert len(fake.pinned) == 1
        gpu.send(at, lasting(STAGE, 5), gpu.mark())
        assert len(fake.pinned) == 2
    assert not fake.early


def test_slow_launches_are_no_reason_to_give_a_copy_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    with closing(opened(fake, 0.2)) as gpu:
        at = gpu.alloc(64)

        def slow() -> None:
            time.sleep(0.05)

        for _ in range(10):
            fake._put(gpu._queue.stream, slow)
            gpu.mark()
        gpu.send(at, np.ones(64, np.uint8), gpu.mark())
        gpu._sender.wait()


def test_copy_that_stands_still_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    gpu = opened(fake, 0.05)
    at = gpu.alloc(STAGE)
    fake.hangs = True

    def send() -> None:
        for k in range(9):
            gpu.after(gpu.send(at, lasting(STAGE, k), gpu.mark()))

    with pytest.raises(DeviceError, match="no answer for 0 s"):
        send()
    gpu.close()


def test_what_can_be_pinned_is_tried_downwards() -> None:
    fake = FakeCuda(pinnable=300 << 20)
    gpu = opened(fake)
    assert pinnable(gpu, 1 << 30) == 256 << 20
    assert fake.host.keys() == {gpu._staging.address}
    fake.pinnable = 1 << 20
    assert pinnable(gpu, 1 << 30) == 0
    assert refused_map(gpu) == ""
    assert not fake.pinned
    fake.refused["cuMemHostRegister"] = R.CUDA_ERROR_NOT_SUPPORTED
    assert "does not support this (CUDA_ERROR_NOT_SUPPORTED" in refused_map(gpu)
    gpu.close()
    assert fake.is_empty
