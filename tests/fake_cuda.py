"""FakeCuda: cuda.bindings.driver without a GPU; kernels are PTX and run on ptx_machine.py.

Work is done when the program asks how far it is, a step each time, of any stream that has some: by
chance. What a driver would answer with nonsense or a crash is an AssertionError: handles that are
unknown or of the wrong kind, a wrong context, memory that is not there or was freed, host memory
that is not pinned.
"""

# ruff: noqa: N802

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import driver as real
from ptx_machine import Machine, program

from quant.cuda.kept_ptx import kept_ptx

Array = np.ndarray
R = real.CUresult
LOST = {
    R.CUDA_ERROR_ILLEGAL_ADDRESS, R.CUDA_ERROR_LAUNCH_TIMEOUT, R.CUDA_ERROR_LAUNCH_FAILED,
    R.CUDA_ERROR_UNKNOWN,
}  # fmt: skip
OUTSIDE = ("cuInit", "cuDevice", "cuDriver", "cuCtxSetCurrent")  # of a context


@cache
def parameters(name: str) -> int:
    """How many the function has in the real module."""
    signature = getattr(real, name).__doc__.split("\n")[0]
    inside = signature[signature.index("(") + 1 :]
    depth, count = 0, bool(inside.strip(" )"))
    for letter in inside:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        count += letter == "," and depth == 0
    return int(count)


def cubins(kernel: Any, architecture: int) -> bytes:
    """What stands for machine code."""
    return b"PTX" + kept_ptx(kernel).encode()


class Work(NamedTuple):
    """Of a stream, once `gate` is open. host: (start, end) of the host's memory that it uses."""

    do: Callable[[], None]
    gate: list[bool]
    host: tuple[int, int] = (0, 0)


OPEN = [True]
_WORD, _INT = ctypes.c_int64, ctypes.c_uint32
ENTRIES: dict[str, tuple[list[Any], list[Any]]] = {
    "cuGraphLaunch": ([real.CUgraphExec, real.CUstream], [_WORD] * 2),
    "cuLaunchKernel": (
        [real.CUfunction, *[int] * 7, real.CUstream, int, int], [_WORD, *[_INT] * 7, *[_WORD] * 3]
    ),
}  # fmt: skip


class FakeCuda:
    """The module. failing: number of a call -> its error, or KeyboardInterrupt; hangs: nothing is
    ever done.

    seed: of the order in which streams go on. early: addresses that were unregistered in use.
    native: what went wrong in calls by address, of which nobody hears; eager: what such a call puts
    in is done at once, for tapes ask nothing.
    """

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUfunction_attribute = real.CUfunction_attribute
    CUDA_KERNEL_NODE_PARAMS = real.CUDA_KERNEL_NODE_PARAMS

    def __init__(
        self, *, failing: dict[int, Any] | None = None, n_bytes: int = 1 << 20,
        total: int = 24 << 30, gpus: int = 1, capability: tuple[int, int] = (8, 6),
        version: int = 12040, pinnable: int = 1 << 40, seed: int = 0,
    ) -> None:  # fmt: skip
        self.failing = failing or {}
        self.refused: dict[str, Any] = {}  # function -> its error, always
        self.calls: list[str] = []
        self.hangs = False
        self.total, self.gpus, self.capability, self.version = total, gpus, capability, version
        self.pinnable = pinnable
        self.memory = np.full(n_bytes, 0xA5, np.uint8)
        self.base = int(self.memory.ctypes.data)
        self.machine = Machine(self.memory)
        self.context = 0
        self.currents: dict[int, int] = {}  # by thread
        self.lost: Any = None
        self.read_only: list[bool] = []
        self.early: list[int] = []
        self.native: list[BaseException] = []
        self.reads_only = True
        self.eager = False
        self.random = random.Random(seed)
        self.shared: dict[int, int] = {}
        self.entries: dict[str, Any] = {}
        self._empty()

    def _empty(self) -> None:
        self.allocated: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.host: dict[int, Array] = {}
        self.machine.beside.clear()
        self.handles: dict[tuple[type, int], Any] = {}
        self.streams: dict[int, deque[Work]] = {}

    @property
    def waiting(self) -> list[Work]:
        """What is not done."""
        return [work for stream in self.streams.values() for work in stream]

    @property
    def current(self) -> int:
        """The context of the calling thread."""
        return self.currents.get(threading.get_ident(), 0)

    @property
    def is_empty(self) -> bool:
        """Whether all was given back."""
        return not (
            self.context
            or self.allocated
            or self.pinned
            or self.host
            or self.handles
            or self.streams
        )

    def entry(self, name: str) -> int:
        """Address of a function."""
        if name not in self.entries:
            self.entries[name] = self._native_function(name)
        return ctypes.cast(self.entries[name], ctypes.c_void_p).value or 0

    def _native_function(self, name: str) -> Any:
        kinds, types = ENTRIES[name]

        def called(*values: int) -> int:
            made = [kind(value) for kind, value in zip(kinds, values, strict=True)]
            try:
                code = int(getattr(self, name)(*made)[0])
                if self.eager:
                    self._drain()
                return code
            except KeyboardInterrupt:  # does not come here
                return called(*values)
            except BaseException as exc:
                self.native.append(exc)
                return int(R.CUDA_ERROR_UNKNOWN)

        return ctypes.CFUNCTYPE(ctypes.c_int32, *types)(called)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(type(self), f"_{name}")

        def called(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == parameters(name), name
            self.calls.append(name)
            error = self.failing.get(len(self.calls), self.refused.get(name))
            if not name.startswith(OUTSIDE):
                assert self.current == self.context > 0, f"{name}: no context"
                error = error or self.lost
            if error is KeyboardInterrupt:
                raise KeyboardInterrupt
            if error is not None:
                if error in LOST and self.context:
                    self.lost = error
                return error, *[None] * 2
            found = function(self, *arguments)
            if isinstance(found, R):
                return (found,)
            return (R.CUDA_SUCCESS, *(found if isinstance(found, tuple) else (found,)))

        return called

    # handles and memory

    def _new(self, kind: type, value: Any) -> Any:
        handle = kind(0x1000 + 16 * len(self.calls))
        self.handles[kind, int(handle)] = value
        return handle

    def _get(self, kind: type, handle: Any) -> Any:
        assert isinstance(handle, kind), handle
        assert (kind, int(handle)) in self.handles, f"unknown {handle}"
        return self.handles[kind, int(handle)]

    def _delete(self, kind: type, handle: Any) -> tuple[()]:
        self._get(kind, handle)
        del self.handles[kind, int(handle)]
        return ()

    def _view(self, at: Any, n_bytes: int) -> Array:
        at = int(at)
        assert any(a <= at <= at + n_bytes <= a + n for a, n in self.allocated.items()), "range"
        return self.memory[at - self.base : at - self.base + n_bytes]

    def _host(self, at: int, n_bytes: int) -> Array:
        ranges = self.pinned | {a: x.size for a, x in self.host.items()}
        assert any(a <= at <= at + n_bytes <= a + n for a, n in ranges.items()), "not pinned"
        return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(at))

    def _put(
        self, stream: Any, do: Callable[[], None], gate: list[bool] = OPEN,
        host: tuple[int, int] = (0, 0),
    ) -> tuple[()]:  # fmt: skip
        self._get(real.CUstream, stream)
        self.streams[int(stream)].append(Work(do, gate, host))
        return ()

    def _step(self) -> bool:
        ready = [stream for stream in self.streams.values() if stream and stream[0].gate[0]]
        if not ready:
            assert not self.waiting, "streams that wait for each other"
            return False
        self.random.choice(ready).popleft().do()
        return True

    def _drain(self) -> None:
        assert not self.hangs, "this call waits for ever"
        while self._step():
            pass

    # the GPU

    def _cuInit(self, flags: int) -> tuple[()]:
        return ()

    def _cuDriverGetVersion(self) -> int:
        return self.version

    def _cuDeviceGetCount(self) -> int:
        return self.gpus

    def _cuDeviceGet(self, index: int) -> Any:
        return real.CUdevice(index) if index < self.gpus else R.CUDA_ERROR_INVALID_DEVICE

    def _cuDeviceGetName(self, length: int, device: Any) -> bytes:
        return b"Fake 3090".ljust(length, b"\0")

    def _cuDeviceGetPCIBusId(self, length: int, device: Any) -> bytes:
        return b"0000:01:00.0".ljust(length, b"\0")

    def _cuDeviceTotalMem(self, device: Any) -> int:
        return self.total

    def _cuDeviceGetAttribute(self, attribute: Any, device: Any) -> int:
        a = real.CUdevice_attribute
        return {
            a.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: self.capability[0],
            a.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: self.capability[1],
            a.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: 101_376,
            a.CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED: self.reads_only,
        }[attribute]

    def _cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        self.context += 1
        return real.CUcontext(self.context)

    def _cuCtxSetCurrent(self, context: Any) -> tuple[()]:
        self.currents[threading.get_ident()] = 0 if context is None else int(context)
        assert self.current in (0, self.context)
        return ()

    def _cuDevicePrimaryCtxReset(self, device: Any) -> tuple[()]:
        self.lost = None
        self._empty()
        return ()

    def _cuDevicePrimaryCtxRelease(self, device: Any) -> tuple[()]:
        assert self.context > 0
        assert not self.hangs, "this call waits for ever"
        self.context -= 1
        self.lost = None
        self._empty()
        return ()

    def _cuMemGetInfo(self) -> tuple[int, int]:
        return self.total - sum(self.allocated.values()), self.total

    def _cuMemAlloc(self, n_bytes: int) -> Any:
        at = 0
        for start, length in sorted(self.allocated.items()):
            if start - self.base - at >= n_bytes:
                break
            at = -(-(start - self.base + length) // 256) * 256
        if at + n_bytes > len(self.memory):
            return R.CUDA_ERROR_OUT_OF_MEMORY
        self.allocated[self.base + at] = n_bytes
        return real.CUdeviceptr(self.base + at)

    def _cuMemFree(self, at: Any) -> tuple[()]:
        self._drain()
        self._view(at, n := self.allocated[int(at)])[:] = 0xA5
        assert n
        del self.allocated[int(at)]
        return ()

    def _cuMemHostAlloc(self, n_bytes: int, flags: int) -> Any:
        if n_bytes + sum(x.size for x in self.host.values()) > self.pinnable:
            return R.CUDA_ERROR_OUT_OF_MEMORY
        room = np.empty(n_bytes + 64, np.uint8)
        room = room[-room.ctypes.data % 64 :][:n_bytes]
        self.host[int(room.ctypes.data)] = room
        if flags & 2:
            self.machine.beside.append(room)
        return int(room.ctypes.data)

    def _cuMemHostGetDevicePointer(self, at: int, flags: int) -> Any:
        assert any(at == room.ctypes.data for room in self.machine.beside)
        return real.CUdeviceptr(at)

    def _cuMemFreeHost(self, at: int) -> tuple[()]:
        self._drain()
        room = self.host.pop(at)
        beside = self.machine.beside
        self.machine.beside = [one for one in beside if one is not room]
        return ()

    def _cuMemHostRegister(self, at: int, n_bytes: int, flags: int) -> Any:
        assert at % 4096 == 0
        assert n_bytes % 4096 == 0
        if any(a < at + n_bytes and at < a + n for a, n in self.pinned.items()):
            return R.CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
        if sum(self.pinned.values()) + n_bytes > self.pinnable:
            return R.CUDA_ERROR_OUT_OF_MEMORY
        self.pinned[at] = n_bytes
        self.read_only.append(flags == 8)
        return ()

    def _cuMemHostUnregister(self, at: int) -> tuple[()]:
        end = at + self.pinned[at]
        self.early += [at for work in self.waiting if work.host[0] < end and at < work.host[1]]
        self._drain()
        del self.pinned[at]
        return ()

    # the queue

    def _cuStreamCreate(self, flags: int) -> Any:
        stream = self._new(real.CUstream, None)
        self.streams[int(stream)] = deque()
        return stream

    def _cuStreamDestroy(self, stream: Any) -> tuple[()]:
        self._drain()
        del self.streams[int(stream)]
        return self._delete(real.CUstream, stream)

    def _cuEventCreate(self, flags: int) -> Any:
        return self._new(real.CUevent, [True])

    def _cuEventDestroy(self, event: Any) -> tuple[()]:
        return self._delete(real.CUevent, event)

    def _cuEventRecord(self, event: Any, stream: Any) -> tuple[()]:
        state = [False]
        self._get(real.CUevent, event)
        self.handles[real.CUevent, int(event)] = state

        def reached() -> None:
            state[0] = True

        return self._put(stream, reached)

    def _cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[()]:
        return self._put(stream, lambda: None, self._get(real.CUevent, event))

    def _cuEventQuery(self, event: Any) -> Any:
        if not self._get(real.CUevent, event)[0] and not self.hangs:
            self._step()
        return () if self._get(real.CUevent, event)[0] else R.CUDA_ERROR_NOT_READY

    def _cuEventElapsedTime(self, began: Any, ended: Any) -> float:
        assert self._get(real.CUevent, began)[0]
        assert self._get(real.CUevent, ended)[0]
        return 1.5

    def _cuMemcpyHtoDAsync(self, to: Any, at: int, n_bytes: int, stream: Any) -> tuple[()]:
        target, source = self._view(to, n_bytes), self._host(at, n_bytes)
        return self._put(stream, lambda: np.copyto(target, source), host=(at, at + n_bytes))

    def _cuMemcpyDtoHAsync(self, to: int, at: Any, n_bytes: int, stream: Any) -> tuple[()]:
        target, source = self._host(to, n_bytes), self._view(at, n_bytes)
        return self._put(stream, lambda: np.copyto(target, source))

    def _cuMemcpyDtoDAsync(self, to: Any, at: Any, n_bytes: int, stream: Any) -> tuple[()]:
        target, source = self._view(to, n_bytes), self._view(at, n_bytes)
        return self._put(stream, lambda: np.copyto(target, source.copy()))

    def _cuMemsetD8Async(self, at: Any, value: int, n_bytes: int, stream: Any) -> tuple[()]:
        target = self._view(at, n_bytes)
        return self._put(stream, lambda: target.fill(value))

    # kernels

    def _cuModuleLoadData(self, image: bytes) -> Any:
        if not image.startswith(b"PTX"):
            return R.CUDA_ERROR_INVALID_IMAGE
        return self._new(real.CUmodule, image[3:].decode())

    def _cuModuleUnload(self, module: Any) -> tuple[()]:
        return self._delete(real.CUmodule, module)

    def _cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        source = self._get(real.CUmodule, module)
        assert program(source)[0].name == name.decode()
        function = self._new(real.CUfunction, source)
        del self.handles[real.CUfunction, int(function)]  # it goes with its module
        self.sources = {**getattr(self, "sources", {}), int(function): source}
        return function

    def _cuFuncSetAttribute(self, function: Any, attribute: Any, value: int) -> tuple[()]:
        self.shared[int(function)] = value
        return ()

    def _launch(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int, at: int
    ) -> Callable[[], None]:
        source = self.sources[int(function)]
        assert block[1:] == (1, 1)
        assert shared <= self.shared.get(int(function), 48 << 10)
        count = len(program(source)[0].params)
        places = (ctypes.c_uint64 * count).from_address(at)
        values = [ctypes.c_int64.from_address(place).value for place in places]
        return lambda: self.machine.launch(source, grid, block[0], shared, values)

    def _cuLaunchKernel(self, function: Any, *rest: Any) -> tuple[()]:
        *sizes, shared, stream, at, extra = rest
        assert extra == 0
        work = self._launch(function, tuple(sizes[:3]), tuple(sizes[3:]), shared, at)
        return self._put(stream, work)

    def _cuGraphCreate(self, flags: int) -> Any:
        return self._new(real.CUgraph, [])

    def _cuGraphDestroy(self, graph: Any) -> tuple[()]:
        return self._delete(real.CUgraph, graph)

    def _cuGraphAddKernelNode(self, graph: Any, before: list[Any], count: int, node: Any) -> Any:
        nodes = self._get(real.CUgraph, graph)
        assert [int(one) for one in before] == [len(nodes)] * (len(nodes) > 0), "a chain"
        assert count == len(before)
        grid = node.gridDimX, node.gridDimY, node.gridDimZ
        block = node.blockDimX, node.blockDimY, node.blockDimZ
        nodes.append(
            self._launch(node.func, grid, block, node.sharedMemBytes, int(node.kernelParams))
        )
        return real.CUgraphNode(len(nodes))

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._new(real.CUgraphExec, list(self._get(real.CUgraph, graph)))

    def _cuGraphExecDestroy(self, ready: Any) -> tuple[()]:
        return self._delete(real.CUgraphExec, ready)

    def _cuGraphLaunch(self, ready: Any, stream: Any) -> tuple[()]:
        for work in self._get(real.CUgraphExec, ready):
            self._put(stream, work)
        return ()
