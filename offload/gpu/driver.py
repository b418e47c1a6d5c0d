"""CudaGpu: a GPU through the NVIDIA driver (cuda.bindings.driver). See Gpu in base.py.

One queue takes copies and launches in order; what is sent beside them has another one (sending.py).
Copies pass through pinned memory (staging.py), but from host memory that is registered
(host_memory.py), which the GPU reads by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from offload.amounts import binary_amount
from offload.errors import DeviceError, PlanError, reason
from offload.gpu.base import Check, Launch, Mapped, Mark, Prepared, Progress, Sent
from offload.gpu.cuda_calls import NO_MEMORY, CudaCalls, CudaError
from offload.gpu.host_memory import HostMemory
from offload.gpu.launches import Calls, Functions, Native, graph
from offload.gpu.probe import architecture, bindings, entry, obstacle, text_of
from offload.gpu.queue import Queue
from offload.gpu.sending import Sender
from offload.gpu.staging import Staging

if TYPE_CHECKING:
    from quant.cuda.kernels import Kernel

log = logging.getLogger(__name__)

Array = np.ndarray
Cubins = Callable[["Kernel", int], bytes]

WATCHDOG_SECONDS: Final = 20.0
WITHOUT: Final = "--device cpu does without"


class CudaGpu:
    """See Gpu. limit: bytes of VRAM to take at most.

    module: cuda.bindings.driver; cubins: machine code of a kernel for an architecture; entries:
    address of a function of the driver. watchdog_seconds: how long the GPU may stand still.
    host: memory of the host that it reaches.
    """

    def __init__(
        self, index: int = 0, limit: int | None = None, *, module: Any = None,
        cubins: Cubins | None = None, entries: Callable[[str], int] = entry,
        watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> None:  # fmt: skip
        self.index, self._limit, self._cubins = index, limit, cubins
        self._sizes: dict[int, int] = {}
        self._status = np.zeros(1, np.int64)
        self._native = Native(entries, self.status_at)
        self._watchdog_seconds = watchdog_seconds
        self._calls = calls = CudaCalls(bindings() if module is None else module, f"GPU {index}")
        calls.call("cuInit", 0)
        self._device = calls.call("cuDeviceGet", index)
        self.name = text_of(calls.call("cuDeviceGetName", 128, self._device))
        calls.name = f"GPU {index} ({self.name})"
        self.architecture = architecture(calls, self._device)
        if why := obstacle(self.architecture, calls.call("cuDriverGetVersion")):
            raise DeviceError(f"{calls.name}: {why}; --device cpu does without")
        names = calls.module.CUdevice_attribute
        most = names.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        shared = int(calls.call("cuDeviceGetAttribute", most, self._device))
        self._functions = Functions(calls, self._machine_code(cubins or _kept_cubin), shared)
        self.host = HostMemory(calls, self._device)
        try:
            calls.context = calls.call("cuDevicePrimaryCtxRetain", self._device)
            calls.enter()
            self._queue, self._sent = (Queue(calls, watchdog_seconds) for _ in range(2))
            self._staging = Staging(calls)
            self._sender = Sender(calls, self._sent, self._staging, self.host)
        except BaseException:
            self._give_back()
            raise

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total). Free: within the limit."""
        self._calls.enter()
        free, total = self._calls.call("cuMemGetInfo")
        if self._limit is not None:
            free = min(free, self._limit - sum(self._sizes.values()))
        return max(0, free), total

    def alloc(self, n_bytes: int) -> int:
        """See Gpu."""
        free, total = self.memory()
        refused: CudaError | None = None
        if n_bytes <= free:
            try:
                address = int(self._calls.make("cuMemFree", "cuMemAlloc", max(1, n_bytes)))
                self._sizes[address] = n_bytes
                return address
            except CudaError as exc:
                if exc.code != NO_MEMORY:
                    raise
                refused = exc
        limit = "" if self._limit is None else f" (--vram {binary_amount(self._limit)})"
        raise PlanError(
            f"{self._calls.name}: {binary_amount(n_bytes)} of VRAM are wanted,"
            f" {binary_amount(free)} of {binary_amount(total)} can be had{limit}; end programs that"
            " hold VRAM (`nvidia-smi` lists them), or take a smaller --context"
        ) from refused

    def free(self, address: int) -> None:
        """See Gpu; waits for what is under way."""
        self.wait()
        del self._sizes[address]
        self._calls.drop("cuMemFree", address)

    def must_live(self) -> None:
        """DeviceError if the GPU is lost."""
        self._calls.must_live()

    def upload(self, to: int, data: Array) -> None:
        """See Gpu."""
        self._calls.enter()
        source = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if source.size and self.host.part(source) == (0, source.size):
            stream = self._queue.stream
            self._calls.call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.size, stream)
            self._queue.wait(self._queue.mark())
        else:
            self._staging.upload(self._queue, to, source)

    def mark(self) -> Mark:
        """See Gpu."""
        self._calls.enter()
        return Mark(self._queue.mark())

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """See Gpu."""
        self._calls.enter()
        self._sent.follow(self._queue, behind)
        source = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return Sent(self._sender.send(to, source))

    def after(self, sent: Sent) -> None:
        """See Gpu."""
        self._calls.enter()
        self._queue.follow(self._sent, sent)

    def sending(self) -> Sent:
        """See Gpu."""
        self._calls.enter()
        return Sent(self._sent.mark())

    def has_arrived(self, sent: Sent) -> bool:
        """See Gpu."""
        self._calls.enter()
        return self._sent.has_passed(sent)

    def mapped(self, n_bytes: int) -> Mapped:
        """See Gpu."""
        return self.host.mapped(n_bytes)

    def pin(self, data: Array) -> str:
        """See Gpu; waits for what is being sent."""
        self._calls.enter()
        self._sender.wait()  # the driver takes no page twice
        return self.host.pin(data)

    def download(self, at: int, out: Array) -> None:
        """See Gpu."""
        self._calls.enter()
        if not out.flags.c_contiguous:
            raise ValueError("an array in C order is needed")
        self._staging.download(self._queue, at, out.reshape(-1).view(np.uint8))

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """See Gpu."""
        self._calls.enter()
        if n_bytes:
            self._calls.call("cuMemcpyDtoDAsync", to, at, n_bytes, self._queue.stream)

    def clear(self, at: int, n_bytes: int) -> None:
        """See Gpu."""
        self._calls.enter()
        if n_bytes:
            self._calls.call("cuMemsetD8Async", at, 0, n_bytes, self._queue.stream)

    def compile(self, kernels: Sequence[Kernel], progress: Progress) -> None:
        """See Gpu; by as many processes as there are cores."""
        if self._cubins is None:
            from quant.cuda.cubin_cache import cubins

            try:
                cubins(kernels, self.architecture, progress)
            except (RuntimeError, OSError) as exc:
                raise DeviceError(f"{self._calls.name}: {reason(exc)}; {WITHOUT}") from exc

    def prepare(self, launches: Sequence[Launch], *, beside: bool = False) -> Prepared:
        """See Gpu; a graph, where the driver makes one."""
        self._calls.enter()
        functions = [self._functions.of(one) for one in launches]
        queue = self._sent if beside else self._queue
        more = self._calls, queue, launches, functions, self._native
        return (graph(*more) if len(launches) > 1 else None) or Calls(*more)

    @property
    def status_at(self) -> int:
        """See Gpu."""
        return int(self._status.ctypes.data)

    def check_started(self) -> None:
        """See Gpu."""
        from quant.run.gpu_tasks import LATE

        self._calls.enter()
        if not (status := int(self._status[0])):
            return
        for queue in (self._queue, self._sent):  # what failed there is why nothing came
            queue.must_live()
        if status == LATE:
            raise self._calls.lose(f"no answer for {self._watchdog_seconds:.0f} s")
        failure = self._calls.failure("a tape", status)
        self._calls.must_live()
        self._status[0] = 0
        raise failure

    def seconds(self, prepared: Prepared, times: int = 1) -> float:
        """What so many runs take, by the GPU's clock; waits."""
        self._calls.enter()
        calls, stream = self._calls, self._queue.stream
        began, ended = (calls.make("cuEventDestroy", "cuEventCreate", 0) for _ in range(2))
        calls.call("cuEventRecord", began, stream)
        for _ in range(times):
            prepared.run()
        calls.call("cuEventRecord", ended, stream)
        self.wait()
        found = float(calls.call("cuEventElapsedTime", began, ended)) / 1e3
        calls.drop("cuEventDestroy", began)
        calls.drop("cuEventDestroy", ended)
        return found

    def rest(self, check: Check | None = None) -> None:
        """See Gpu."""
        self._calls.enter()
        self._queue.wait(self._queue.mark(), check)

    def wait(self, check: Check | None = None) -> None:
        """See Gpu."""
        self._calls.enter()
        self._queue.wait(self._queue.mark(), check)
        self._sender.wait(check)

    def close(self) -> None:
        """Give everything back; never raises, never waits for a GPU that does not answer."""
        if self._calls.closed:
            return
        try:
            self.wait()
        except DeviceError as exc:
            log.debug("%s", exc)
        finally:
            self._give_back()

    def _give_back(self) -> None:
        calls = self._calls
        calls.closed = True
        if calls.hangs:  # whatever is asked of it now would wait for it
            log.warning("%s: its memory is free when this program ends", calls.name)
            return
        if calls.context is None:
            return
        try:
            if calls.lost is None:
                calls.drop_all()
            if calls.lost is not None:
                calls.attempt("cuDevicePrimaryCtxReset", self._device)
            calls.attempt("cuCtxSetCurrent", None)
        finally:  # with the context all that is left goes
            calls.attempt("cuDevicePrimaryCtxRelease", self._device)
            self.host.close()

    def _machine_code(self, cubins: Cubins) -> Callable[[Kernel], bytes]:
        def found(kernel: Kernel) -> bytes:
            try:
                return cubins(kernel, self.architecture)
            except (RuntimeError, OSError) as exc:
                raise DeviceError(
                    f"{self._calls.name}: kernel {kernel.name} cannot be made ({reason(exc)});"
                    f" {WITHOUT}"
                ) from exc

        return found


def _kept_cubin(kernel: Kernel, architecture: int) -> bytes:
    from quant.cuda.cubin_cache import cubin

    return cubin(kernel, architecture)
