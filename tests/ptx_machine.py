"""A machine that runs PTX on NumPy: what the compiler made of a kernel, all its threads at once.

    machine = Machine(memory)                       # memory: uint8, what global addresses point to
    machine.beside.append(other)                    # so do others; what is there is no copy
    machine.launch(ptx, grid=(4, 1, 1), threads=256, shared=1024, arguments=[...])

All threads of a grid go in step; where they part, those that are behind go first, so that they meet
again. An access outside `memory` or not at a multiple of its size, threads of a block that wait at
different barriers, and a shuffle that lanes miss are errors; so is reading or overwriting shared
memory that another warp has touched since the last barrier (a race). A barrier does not wait for
threads that have ended. Copies to shared memory are there at once. Sums of tensor cores are float32
in an order of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import ptx_ops
from ptx_text import Instruction, Program, parse

Array = np.ndarray
END = 1 << 40  # the place of threads that have ended
BLOCKS = 1 << 15  # threads at a time, about


class PtxError(Exception):
    """What a GPU would have answered with an error, or with nonsense."""


@lru_cache(maxsize=4096)
def program(text: str) -> tuple[Program, list[Callable[[State], None]]]:
    """A kernel and its steps."""
    parsed = parse(text)
    return parsed, [ptx_ops.step(parsed, one) for one in parsed.code]


class Machine:
    """Global memory, and kernels that run on it. racy: races are not looked for."""

    def __init__(self, memory: Array, *, look_for_races: bool = True) -> None:
        self.memory = memory
        self.base = memory.ctypes.data
        self.beside: list[Array] = []
        self.look_for_races = look_for_races
        self.steps = 0

    def launch(
        self, text: str, grid: Sequence[int], threads: int, shared: int, arguments: Sequence[int]
    ) -> None:
        """Run a kernel to its end."""
        parsed, steps = program(text)
        x, y, z = grid
        if len(arguments) != len(parsed.params) or threads > parsed.threads or threads % 32:
            raise PtxError(f"{parsed.name}: {len(arguments)} arguments, {threads} threads")
        if min(x, y, z) < 1 or y > 65535 or z > 65535:
            raise PtxError(f"{parsed.name}: grid {grid}")
        at_once = max(1, BLOCKS // threads)
        for first in range(0, x * y * z, at_once):
            blocks = np.arange(first, min(first + at_once, x * y * z))
            state = State(self, parsed, blocks, (x, y, z), threads, shared, arguments)
            with np.errstate(all="ignore"):
                state.run(steps)
            self.steps += state.steps


class State:
    """Threads of some blocks of a grid, and where they are."""

    def __init__(
        self, machine: Machine, parsed: Program, blocks: Array, grid: tuple[int, int, int],
        threads: int, shared: int, arguments: Sequence[int],
    ) -> None:  # fmt: skip
        self.machine, self.program = machine, parsed
        self.n = len(blocks) * threads
        self.warps = self.n // 32
        self.threads = threads
        of_block = np.repeat(blocks, threads)
        self.block = np.repeat(np.arange(len(blocks)), threads)
        self.registers: dict[str, Any] = {
            "%tid.x": np.tile(np.arange(threads, dtype=np.uint32), len(blocks)),
            "%tid.y": np.uint32(0),
            "%tid.z": np.uint32(0),
            "%ntid.x": np.uint32(threads),
            "%laneid": np.tile(np.arange(32, dtype=np.uint32), self.warps),
            "%ctaid.x": _same(of_block % grid[0]),
            "%ctaid.y": _same(of_block // grid[0] % grid[1]),
            "%ctaid.z": _same(of_block // (grid[0] * grid[1])),
            "%nctaid.x": np.uint32(grid[0]),
            "%nctaid.z": np.uint32(grid[2]),
        }
        self.arguments = {
            name: np.uint64(value & (1 << 64) - 1)
            for name, value in zip(parsed.params, arguments, strict=True)
        }
        self.shared_bytes = -(-shared // 16) * 16
        self.shared = np.full(len(blocks) * self.shared_bytes, 0xCD, np.uint8)
        self.beside = [ptx_ops.Part.of(one) for one in machine.beside]
        self.tables = [ptx_ops.Part.of(one) for one in parsed.tables.values()]
        self.races = ptx_ops.Races(self) if machine.look_for_races and threads > 32 else None
        self.copies = ptx_ops.Copies(self)
        self.mask: Array | None = None  # of threads that take the step; None: all
        self.place = 0  # of all, while `places` is None
        self.places: Array | None = None
        self.waiting = np.zeros(self.n, bool)
        self.steps = 0

    def run(self, steps: Sequence[Callable[[State], None]]) -> None:
        """Until all threads have ended."""
        labels = set(self.program.labels.values())
        while True:
            if self.places is None:
                if self.place >= len(steps):
                    return
                at = self.place
                self.place = at + 1
                self._do(steps, at)
                continue
            if not self._choose():
                return
            at = self.place
            while True:  # up to where threads may meet or part
                self.place = at + 1
                self._do(steps, at)
                if self.places is None or self.place != at + 1 or at + 1 in labels:
                    break
                at += 1
                if at >= len(steps):
                    break
            if self.places is not None and self.place == at + 1:
                self.places[self.mask] = self.place

    def _do(self, steps: Sequence[Callable[[State], None]], at: int) -> None:
        self.steps += 1
        try:
            steps[at](self)
        except PtxError as fault:
            text = self.program.code[at].text
            raise PtxError(f"{self.program.name}: {fault}: {text}") from None

    def _choose(self) -> bool:
        """The threads that are behind take the next steps; False: all have ended."""
        places = self.places
        assert places is not None
        where = np.where(self.waiting, END, places)
        at = int(where.min())
        if at == END:
            if not self.waiting.any():
                return False
            self.release()
            return True if self.places is None else self._choose()
        if at >= len(self.program.code):
            self.places = np.where(places == at, END, places)
            return self._choose()
        self.mask = places == at
        self.mask &= ~self.waiting
        self.place = at
        if self.mask.all():
            self.places = self.mask = None
        return True

    def branch(self, taken: Any, target: int) -> None:
        """Threads of `taken` (of those that take the step) go on at `target`."""
        if self.mask is None and np.ndim(taken) == 0:
            if taken:
                self.place = target
            return
        taken = np.broadcast_to(taken, self.n)
        if self.mask is None:
            if taken.all():
                self.place = target
                return
            if not taken.any():
                return
            self.places = np.where(taken, target, self.place)
        else:
            assert self.places is not None
            self.places[self.mask] = np.where(taken[self.mask], target, self.place)
        self.place = -1

    def end(self) -> None:
        """The threads that take the step end."""
        if self.mask is None:
            self.place = END
            return
        assert self.places is not None
        self.places[self.mask] = END
        self.place = -1

    def barrier(self) -> None:
        """Wait for the block's other threads."""
        if self.mask is None:
            self.new_epoch(None)
            return
        assert self.places is not None
        self.waiting |= self.mask
        self.places[self.mask] = self.place
        self.place = -1
        self.release()

    def release(self) -> None:
        """Blocks of which all threads wait (those that ended count) go on."""
        assert self.places is not None
        here = (self.waiting | (self.places == END)).reshape(-1, self.threads).all(axis=1)
        free = np.repeat(here, self.threads) & self.waiting
        if free.any():
            first, last = (
                how(np.where(free, self.places, other).reshape(-1, self.threads), axis=1)
                for how, other in ((np.min, END), (np.max, -1))
            )
            if (first < last).any():
                raise PtxError("threads of a block wait at different barriers")
            self.waiting &= ~free
            self.new_epoch(here)

    def new_epoch(self, blocks: Array | None) -> None:
        """A barrier has been passed by these blocks."""
        if self.races is not None:
            self.races.pass_barrier(blocks)


def _same(x: Array) -> Any:
    """One number if all are the same."""
    x = x.astype(np.uint32)
    return x[0] if (x == x[0]).all() else x


def instruction_count(text: str) -> dict[str, int]:
    """How often each operation stands in a kernel; for reading along."""
    found: dict[str, int] = {}
    one: Instruction
    for one in parse(text).code:
        name = ".".join([one.op, *one.parts])
        found[name] = found.get(name, 0) + 1
    return found
