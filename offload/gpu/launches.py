"""Prepared launches of a CUDA GPU: one graph, or calls one after the other.

A tape starts them without Python, by the address of the driver's own function, and leaves no mark
in the queue: whoever waits makes one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from offload.errors import DeviceError
from offload.gpu.base import Launch
from offload.gpu.cuda_calls import CudaCalls, CudaError
from offload.gpu.queue import Queue
from quant.run.fields import write

Array = np.ndarray
log = logging.getLogger(__name__)

PLAIN_SHARED: Final = 48 << 10  # bytes of a block that need no asking


class Arguments:
    """Of a launch, as the driver reads them; they live as long as this does."""

    def __init__(self, values: Sequence[int]) -> None:
        self._values = np.array(values, np.int64)
        self._places = self._values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        self.address = int(self._places.ctypes.data)


@dataclass(frozen=True, slots=True)
class Native:
    """For tapes. entry: the address of a function of the driver; status_at: see Gpu."""

    entry: Callable[[str], int]
    status_at: int


class Calls:
    """A launch a call. functions: the driver's, one for each launch."""

    def __init__(
        self, calls: CudaCalls, queue: Queue, launches: Sequence[Launch], functions: Sequence[Any],
        native: Native,
    ) -> None:  # fmt: skip
        self._calls, self._queue, self._native = calls, queue, native
        self._kept: tuple[Array, Array] | None = None
        self._arguments = [Arguments(one.arguments) for one in launches]
        self._ready = [
            (
                function, *one.grid, one.kernel.threads, 1, 1, one.shared, queue.stream,
                kept.address, 0,
            )
            for one, function, kept in zip(launches, functions, self._arguments, strict=True)
        ]  # fmt: skip

    def run(self) -> None:
        """Into the queue."""
        self._calls.enter()
        for one in self._ready:
            self._calls.call("cuLaunchKernel", *one)
        self._queue.mark()

    @property
    def start(self) -> tuple[int, int]:
        """See Prepared."""
        from quant.run.gpu_tasks import Starts, starts_task

        if self._kept is None:
            table = np.array([[int(value) for value in one] for one in self._ready], np.int64)
            context = write(
                Starts, FN=self._native.entry("cuLaunchKernel"), TABLE=table.ctypes.data,
                COUNT=len(table), STATUS=self._native.status_at,
            )  # fmt: skip
            self._kept = table, context
        return starts_task.address, int(self._kept[1].ctypes.data)

    def close(self) -> None:
        """Nothing is held."""


class Graph:
    """All launches in one call."""

    def __init__(self, calls: CudaCalls, queue: Queue, ready: Any, native: Native) -> None:
        self._calls, self._queue, self._ready, self._native = calls, queue, ready, native
        self._context: Array | None = None

    def run(self) -> None:
        """Into the queue."""
        self._calls.enter()
        self._calls.call("cuGraphLaunch", self._ready, self._queue.stream)
        self._queue.mark()

    @property
    def start(self) -> tuple[int, int]:
        """See Prepared."""
        from quant.run.gpu_tasks import Start, start_task

        if self._context is None:
            self._context = write(
                Start, FN=self._native.entry("cuGraphLaunch"), A=int(self._ready),
                B=int(self._queue.stream), STATUS=self._native.status_at,
            )  # fmt: skip
        return start_task.address, int(self._context.ctypes.data)

    def close(self) -> None:
        """Give the graph back."""
        if self._calls.lost is None and not self._calls.closed:
            self._calls.enter()
            self._calls.drop("cuGraphExecDestroy", self._ready)


def graph(
    calls: CudaCalls, queue: Queue, launches: Sequence[Launch], functions: Sequence[Any],
    native: Native,
) -> Graph | None:  # fmt: skip
    """A chain of launches; None: this driver does not want it."""
    try:
        whole = calls.make("cuGraphDestroy", "cuGraphCreate", 0)
    except CudaError as exc:
        _refused(calls, exc)
        return None
    try:
        before: list[Any] = []
        for one, function in zip(launches, functions, strict=True):
            kept = Arguments(one.arguments)  # copied as the node is made
            parameters = _parameters(calls.module, one, function, kept.address)
            node = calls.call("cuGraphAddKernelNode", whole, before, len(before), parameters)
            before = [node]
        ready = calls.make("cuGraphExecDestroy", "cuGraphInstantiate", whole, 0)
    except CudaError as exc:
        _refused(calls, exc)
        return None
    finally:
        if calls.lost is None:
            calls.drop("cuGraphDestroy", whole)
    return Graph(calls, queue, ready, native)


def _refused(calls: CudaCalls, exc: CudaError) -> None:
    if calls.lost is not None:
        raise exc
    log.info("launches one by one: %s", exc)


def _parameters(module: Any, launch: Launch, function: Any, address: int) -> Any:
    found = module.CUDA_KERNEL_NODE_PARAMS()
    found.func = function
    found.gridDimX, found.gridDimY, found.gridDimZ = launch.grid
    found.blockDimX, found.blockDimY, found.blockDimZ = launch.kernel.threads, 1, 1
    found.sharedMemBytes = launch.shared
    found.kernelParams = address
    return found


class Functions:
    """Kernels that are loaded. cubin: a kernel's machine code."""

    def __init__(self, calls: CudaCalls, cubin: Callable[[Any], bytes], most_shared: int) -> None:
        self._calls, self._cubin, self._most_shared = calls, cubin, most_shared
        self._found: dict[Any, Any] = {}
        self._shared: dict[Any, int] = {}

    def of(self, launch: Launch) -> Any:
        """The driver's handle, fit for this launch."""
        kernel = launch.kernel
        count = kernel.function.__code__.co_argcount
        if count != len(launch.arguments):
            raise TypeError(f"{kernel.name}: {len(launch.arguments)} arguments, it takes {count}")
        if launch.shared > self._most_shared:
            raise DeviceError(
                f"{self._calls.name}: kernel {kernel.name} needs {launch.shared:,} bytes of shared"
                f" memory in a block, this GPU has {self._most_shared:,}; --device cpu does without"
            )
        if kernel not in self._found:
            image = self._cubin(kernel)
            module = self._calls.make("cuModuleUnload", "cuModuleLoadData", image)
            name = kernel.function.__name__.encode()
            self._found[kernel] = self._calls.call("cuModuleGetFunction", module, name)
        function = self._found[kernel]
        if launch.shared > self._shared.get(kernel, PLAIN_SHARED):
            attribute = self._calls.module.CUfunction_attribute
            most = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._calls.call("cuFuncSetAttribute", function, most, launch.shared)
            self._shared[kernel] = launch.shared
        return function
