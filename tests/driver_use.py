"""Work for a CudaGpu whose driver is not there: see fake_cuda.py."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from fake_cuda import FakeCuda, cubins

from offload.gpu.base import Launch, Prepared
from offload.gpu.driver import CudaGpu
from quant.cuda.intrinsics import load_u32, store_u32, thread, u32
from quant.cuda.kernels import Kernel

Array = np.ndarray


def plus(at: int, more: int) -> None:
    """32 uint32 grow."""
    place = at + 4 * thread()
    store_u32(place, load_u32(place) + u32(more))


PAGE = 4096
PLUS = Kernel(name="plus", function=plus, threads=32)


def opened(fake: FakeCuda, limit: int | None = None, **more: Any) -> CudaGpu:
    return CudaGpu(0, limit, module=fake, cubins=cubins, entries=fake.entry, **more)


def lasting(n: int) -> Array:
    """Bytes from the start of a page on."""
    room = np.random.default_rng(n).integers(0, 256, n + PAGE, np.uint8)
    data = room[-room.ctypes.data % PAGE :][:n]
    data.flags.writeable = False
    return data


def numbers(gpu: CudaGpu, at: int, n: int = 32) -> Array:
    out = np.zeros(n, np.uint32)
    gpu.download(at, out)
    return out


def play(*prepared: Prepared) -> None:
    """As a tape does."""
    for one in prepared:
        task, context = one.start
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(task)(context, 0, 0)


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
