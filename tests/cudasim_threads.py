"""Blocks and warps for Numba's CUDA simulator: its own poll their threads, and know no warps.

A thread runs until it waits (the child sets no switch interval that would end its turn before), so
what leaves out a barrier reads what is not there yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.simulator import kernel as simulator

PATIENCE = 60  # seconds
here: Callable[[], Any] = threading.current_thread


class Meeting:
    """n threads that wait for each other; the last to come calls `then` before they go on."""

    def __init__(self, n: int, then: Callable[[], None]) -> None:
        self.n, self.then = n, then
        self.gates: list[threading.Lock] = []
        self.is_broken = False

    def wait(self) -> None:
        """For all others."""
        if len(self.gates) == self.n - 1:
            self.then()
            gates, self.gates = self.gates, []
            for gate in gates:
                gate.release()
            return
        gate = here().gate
        self.gates.append(gate)
        if self.is_broken or not gate.acquire(timeout=PATIENCE) or self.is_broken:
            raise threading.BrokenBarrierError

    def abort(self) -> None:
        """Nobody waits here any more."""
        self.is_broken = True
        for gate in self.gates:
            gate.release()


class Warp(Meeting):
    """32 threads that exchange values."""

    def __init__(self) -> None:
        super().__init__(32, self._work)
        self.slots: list[Any] = [None] * 32
        self.results: list[Any] = []

    def _work(self) -> None:
        names, values, works = zip(*self.slots, strict=True)
        assert len(set(names)) == 1, f"lanes of a warp do not agree: {sorted(set(names))}"
        self.results = works[0](list(values))


def exchange(name: str, value: Any, work: Callable[[list[Any]], list[Any]]) -> Any:
    """work: values of the 32 lanes -> results of the 32 lanes, computed once."""
    me = here()
    lane = me.thread_id % 32
    warp = me._manager.warps[me.thread_id // 32]
    warp.slots[lane] = name, value, work
    warp.wait()
    return warp.results[lane]  # replaced when all lanes, this one too, have come again


class Manager(simulator.BlockManager):  # type: ignore[misc]
    """A block whose threads wait for events."""

    shared_bytes = 0

    def run(self, grid_point: Any, *arguments: Any) -> None:
        """All threads, to the end."""
        n = self._block_dim[0]
        self.shared = memoryview(bytearray(b"\xcd" * self.shared_bytes))
        self.warps = [Warp() for _ in range(n // 32)]
        self.barrier = Meeting(n, lambda: None)
        threads = [
            simulator.BlockThread(lambda: self._f(*arguments), self, grid_point, point, self._debug)
            for point in np.ndindex(*self._block_dim)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        failed = [one.exception for one in threads if one.exception is not None]
        failed.sort(key=lambda found: isinstance(found[0], threading.BrokenBarrierError))
        if failed:
            raise failed[0][0].with_traceback(failed[0][1])


class Thread(simulator.BlockThread):  # type: ignore[misc]
    """A thread that nobody waits for once it has failed. copies: under way, not yet in a group."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.copies: list[Any] = []
        self.groups: list[list[Any]] = []
        self.gate = threading.Lock()
        self.gate.acquire()

    def run(self) -> None:
        """The kernel's function."""
        super().run()
        if self.exception:
            self._manager.barrier.abort()
            for warp in self._manager.warps:
                warp.abort()


simulator.BlockManager, simulator.BlockThread = Manager, Thread
LOCAL = SimpleNamespace(local=SimpleNamespace(array=lambda n, kind: [None] * n))


def device(function: Callable[..., Any]) -> Any:
    """What kernels call: as Numba's, but for its search of all global names at every call."""
    if "cuda" in function.__globals__:
        function.__globals__["cuda"] = LOCAL
    return partial(function)


def launch(function: Any, grid: Any, threads: int, shared: int, arguments: list[int]) -> None:
    """A kernel in Numba's simulator."""
    Manager.shared_bytes = shared
    cuda.jit(function)[tuple(grid), threads, 0, shared](*arguments)
