"""Launches on ptx_machine.py that are kept, so that Numba's CUDA simulator can repeat them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from vram import Vram

from quant.cuda.kernels import Kernel

Array = np.ndarray
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sums:
    """Rows of `width` float32 from an address on; the order in which the first `sums` of each were
    summed is not known.
    """

    at: int
    rows: int
    width: int
    sums: int

    def of(self, memory: Array, start: int) -> Array:
        """Them (a view) in memory that begins at address `start`."""
        here = memory[self.at - start :][: 4 * self.rows * self.width]
        return here.view(np.float32).reshape(self.rows, self.width)[:, : self.sums]


@dataclass(frozen=True)
class Case:
    """What some launches used, from byte `start` to `end` of the memory, and sums in it."""

    start: int
    end: int
    sums: Sums | None


class Recorder(Vram):
    """Memory whose inputs and launches are kept.

    places: where kernels stand, as `kernel` in cudasim_child.py wants it.
    """

    def __init__(self, places: dict[Kernel, list[object]]) -> None:
        super().__init__(1 << 22)
        self.inputs = self.slab.copy()
        self.places = places
        self.launches: list[dict[str, object]] = []
        self.launched: set[Kernel] = set()
        self.cases: dict[str, Case] = {}

    def case(self, name: str, launch: Launch) -> None:
        """A test's launches."""
        start = self._used
        sums = launch(self)
        self.cases[name] = Case(start, self._used, sums)

    def put(self, array: Array) -> int:
        """As Vram's; the simulator finds it there, too."""
        at = super().put(array)
        start = at - self.slab.ctypes.data
        self.inputs[start : self._used] = self.slab[start : self._used]
        return at

    def run(self, kernel: Kernel, grid: tuple[int, ...], *arguments: int, shared: int = 0) -> None:
        """As Vram's."""
        super().run(kernel, grid, *arguments, shared=shared)
        self.launched.add(kernel)
        self.launches.append({
            "kernel": self.places[kernel], "grid": [*grid, 1, 1][:3], "shared": shared,
            "arguments": [int(one) for one in arguments],
        })  # fmt: skip

    def repeat(self, directory: Path) -> tuple[Array, list[str]]:
        """(memory as the simulator leaves it, names of the intrinsics that it knows)."""
        np.save(directory / "memory.npy", self.inputs)
        record = {"base": int(self.slab.ctypes.data), "launches": self.launches}
        (directory / "launches.json").write_text(json.dumps(record))
        done = subprocess.run(
            [sys.executable, str(HERE / "cudasim_child.py"), str(directory)],
            capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        names: list[str] = json.loads(done.stdout)
        return np.load(directory / "memory.npy"), names


Launch = Callable[[Recorder], Sums | None]
