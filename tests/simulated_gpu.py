"""SimulatedGpu: see offload/gpu/base.py; kernels are compiled, and run by ptx_machine.py.

Two threads do what is asked, one what is in the queue and one what goes beside it, while the
caller goes on; `delays` makes both slow at random, so that a wait that is missing shows. What fails
there is raised by every later call.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from ptx_machine import Machine

from offload.errors import DeviceError, PlanError
from offload.gpu.base import Launch, Mapped, Mark, Sent
from quant.cuda.kept_ptx import kept_ptx
from quant.cuda.kernels import Kernel
from quant.run.fields import write
from quant.run.gpu_tasks import LATE, Start, start_task

Array = np.ndarray
Work = Callable[[], None]
GAP = 256  # bytes between two parts, never to be touched
LONGEST = 2e-3  # seconds of a delay
FAILED = 719  # the driver's number for it
STARTER = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)


class Queue:
    """What is put in goes in order, in a thread that ends when there is nothing left."""

    def __init__(self, gpu: SimulatedGpu, delays: random.Random | None) -> None:
        self._gpu, self._delays = gpu, delays
        self._waiting: deque[Work] = deque()
        self.made = self.passed = 0

    def put(self, work: Work) -> int:
        """Its mark."""
        with self._gpu.changed:
            self._waiting.append(work)
            self.made += 1
            if self.made - self.passed == 1:
                threading.Thread(target=self._run, daemon=True).start()
            return self.made

    def wait(self, mark: int) -> None:
        """Until it has passed a mark."""
        with self._gpu.changed:
            self._gpu.changed.wait_for(lambda: self.passed >= mark)

    def _run(self) -> None:
        while True:
            if self._delays is not None:
                time.sleep(LONGEST * self._delays.random())
            try:
                if self._gpu.fault is None:
                    self._waiting[0]()
            except BaseException as exc:
                self._gpu.fault = exc
            with self._gpu.changed:
                self._waiting.popleft()
                self.passed += 1
                self._gpu.changed.notify_all()
                if not self._waiting:
                    return


class Recorded:
    """See Prepared."""

    def __init__(self, gpu: SimulatedGpu, launches: Sequence[Launch], queue: Queue) -> None:
        self._gpu, self._queue = gpu, queue
        self.launches = [(kept_ptx(one.kernel), one) for one in launches]
        self._function = STARTER(self._called)
        self._context = write(
            Start, FN=ctypes.cast(self._function, ctypes.c_void_p).value or 0, A=0, B=0,
            STATUS=gpu.status_at,
        )  # fmt: skip

    def run(self) -> None:
        """Put them into the queue."""
        self._gpu.must_live()
        self._put()

    @property
    def start(self) -> tuple[int, int]:
        """(task, context)."""
        return start_task.address, int(self._context.ctypes.data)

    def _called(self, a: int, b: int) -> int:
        if self._gpu.fault is not None:
            return FAILED
        self._put()
        return 0

    def _put(self) -> None:
        self._gpu.launched += len(self.launches)
        self._queue.put(self._launch)

    def _launch(self) -> None:
        for text, one in self.launches:
            self._gpu.machine.launch(text, one.grid, one.kernel.threads, one.shared, one.arguments)

    def close(self) -> None:
        """Nothing."""


class SimulatedGpu:
    """See Gpu. n_bytes: of its memory; delays: a seed."""

    name = "simulated GPU"
    architecture = 80
    patience = 120.0  # seconds without progress

    def __init__(self, n_bytes: int = 1 << 26, delays: int | None = None) -> None:
        room = np.empty(n_bytes + 256, np.uint8)  # the system gives memory as it is written
        start = -room.ctypes.data % 256
        self.slab = room[start : start + n_bytes]
        self.base = int(self.slab.ctypes.data)
        self.machine = Machine(self.slab)
        self.launched = 0
        self.closed = False
        self.fault: BaseException | None = None
        self.changed = threading.Condition()
        self.status = np.zeros(1, np.int64)
        self._queue, self._beside = (
            Queue(self, None if delays is None else random.Random(2 * delays + i)) for i in range(2)
        )
        self._parts: dict[int, int] = {}
        self._readable: list[Array] = []

    def must_live(self) -> None:
        """Raise what has failed."""
        if self.fault is not None:
            raise self.fault

    def memory(self) -> tuple[int, int]:
        """(free, total)."""
        return len(self.slab) - sum(self._parts.values()), len(self.slab)

    def alloc(self, n_bytes: int) -> int:
        """The first gap that is large enough."""
        size = -(-n_bytes // 256) * 256 + GAP
        at = 0
        for start, length in sorted(self._parts.items()):
            if start - self.base - at >= size:
                break
            at = start - self.base + length
        if at + size > len(self.slab):
            raise PlanError(f"{n_bytes} bytes of VRAM are not free")
        self._parts[self.base + at] = size
        self.slab[at : at + size] = 0xA5
        return self.base + at

    def free(self, address: int) -> None:
        """Give memory back."""
        self.wait()
        del self._parts[address]

    def view(self, at: int, n_bytes: int) -> Array:
        """Bytes, as they are just now."""
        start = at - self.base
        assert 0 <= start <= start + n_bytes <= len(self.slab)
        return self.slab[start : start + n_bytes]

    def upload(self, to: int, data: Array) -> None:
        """Copy."""
        self.must_live()
        kept = _bytes(data).copy()
        self._queue.put(lambda: self._fill(to, kept))

    def _fill(self, to: int, data: Array) -> None:
        self.view(to, data.size)[:] = data

    def mark(self) -> Mark:
        """The last that was put in."""
        return Mark(self._queue.made)

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """Read late what may not change."""
        self.must_live()
        data = _bytes(data)
        stays = not data.flags.writeable or any(
            np.may_share_memory(data, one) for one in self._readable
        )
        kept = data if stays else data.copy()

        def work() -> None:
            self._queue.wait(behind)
            self._fill(to, kept)

        return Sent(self._beside.put(work))

    def after(self, sent: Sent) -> None:
        """Wait in the queue."""
        self.must_live()
        self._queue.put(lambda: self._beside.wait(sent))

    def sending(self) -> Sent:
        """The last that was put in beside."""
        return Sent(self._beside.made)

    def has_arrived(self, sent: Sent) -> bool:
        """Whether it was passed."""
        self.must_live()
        return self._beside.passed >= sent

    def mapped(self, n_bytes: int) -> Mapped:
        """Memory of the host: the kernels' addresses are the host's."""
        room = np.zeros(n_bytes + 256, np.uint8)
        start = -room.ctypes.data % 256
        self.machine.beside.append(room[start : start + n_bytes])
        return Mapped(self.machine.beside[-1], int(self.machine.beside[-1].ctypes.data))

    def pin(self, data: Array) -> str:
        """Everything may be."""
        self._readable.append(data)
        return ""

    def download(self, at: int, out: Array) -> None:
        """Copy."""
        self.must_live()
        assert out.flags.c_contiguous
        target = out.reshape(-1).view(np.uint8)
        self._queue.wait(self._queue.put(lambda: self._read(at, target)))
        self.must_live()

    def _read(self, at: int, out: Array) -> None:
        out[:] = self.view(at, out.size)

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """Copy."""
        self.must_live()
        self._queue.put(lambda: self._fill(to, self.view(at, n_bytes).copy()))

    def clear(self, at: int, n_bytes: int) -> None:
        """Zeros."""
        self.must_live()
        self._queue.put(lambda: self._zero(at, n_bytes))

    def _zero(self, at: int, n_bytes: int) -> None:
        self.view(at, n_bytes)[:] = 0

    def compile(self, kernels: Sequence[Kernel], progress: Callable[[int, int], None]) -> None:
        """They are compiled as they are prepared."""
        self.compiled = list(kernels)

    def prepare(self, launches: Sequence[Launch], *, beside: bool = False) -> Recorded:
        """Compile them."""
        return Recorded(self, launches, self._beside if beside else self._queue)

    @property
    def status_at(self) -> int:
        """See Gpu."""
        return int(self.status.ctypes.data)

    def check_started(self) -> None:
        """Raise what has failed; what came late is lost."""
        self.must_live()
        if status := int(self.status[0]):
            what = "no answer" if status == LATE else f"error {status}"
            self.fault = DeviceError(f"{self.name}: {what}; --device cpu does without")
            raise self.fault

    def seconds(self, prepared: Recorded, times: int) -> float:
        """By the wall clock."""
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            prepared.run()
        self.wait()
        return time.perf_counter() - began

    def rest(self, check: Callable[[], None] | None = None) -> None:
        """Until the queue has passed all."""
        self._until(self._queue, check=check)

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """Until both have passed all."""
        self._until(self._queue, self._beside, check=check)

    def _until(self, *queues: Queue, check: Callable[[], None] | None) -> None:
        marks = [one.made for one in queues]
        moved, before = time.monotonic(), -1
        with self.changed:
            while any(one.passed < mark for one, mark in zip(queues, marks, strict=True)):
                self.changed.wait(1e-3)
                if check is not None:
                    check()
                passed = self._queue.passed + self._beside.passed
                if passed != before:
                    moved, before = time.monotonic(), passed
                elif time.monotonic() - moved > self.patience:
                    self.fault = DeviceError(f"{self.name}: no answer; --device cpu does without")
                    break
        if check is not None:
            check()
        self.must_live()

    def close(self) -> None:
        """Nothing is left: not even memory that a device in a circle of references would keep."""
        if self.closed:
            return
        self.closed = True
        self.fault = self.fault or DeviceError(f"{self.name} is closed")
        for one in (self._queue, self._beside):  # the rest is dropped
            one.wait(one.made)
        self.slab = self.machine.memory = self.slab[:0].copy()
        self.machine.beside.clear()
        self._readable.clear()


def _bytes(data: Array) -> Array:
    """In C order."""
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
