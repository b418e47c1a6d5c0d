"""Setup: which GPU, and how much of everything; Bench: an open one with room, launches, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offload.gpu.base import Gpu, Launch
from offload.loading import execute
from quant.cuda.kernels import FLOATS, TYPES
from quant.ggml import GGMLType

Array = np.ndarray
HEADS, RANK, ROPE = 64, 512, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The defaults are what a real GPU gets: shapes of Kimi K2.5.

    execute: as loading.py has it. stack: a file instead of two layers of K2.5 in random weights;
    tokens before the decoded ones, that are decoded, of a prompt.
    types: None for all. launch_bytes: of weights that one launch goes through; slab_bytes: of all
    weights in turn, more than any cache holds. seconds: for one measurement.
    """

    open: Callable[[], Gpu]
    execute: Callable[..., Any] = execute
    stack: Path | None = None
    stack_depth: int = 512
    stack_steps: int = 48
    stack_prompt: int = 4096
    types: tuple[GGMLType, ...] | None = None
    launch_bytes: int = 64 << 20
    slab_bytes: int = 512 << 20
    hidden: int = 7168
    width: int = 2048
    heads: int = HEADS
    rank: int = RANK
    rope: int = ROPE
    contexts: tuple[int, ...] = (1 << 10, 1 << 15, 1 << 17)
    prompts: tuple[int, ...] = (512, 2048)
    check_rows: int = 256
    check_columns: int = 2304
    check_tokens: int = 70
    at_once: tuple[int, ...] = (1, 8)  # tokens: which kernels are run
    model: Path | None = None  # None: the embedded one
    text_tokens: int = 48
    transfer_bytes: int = 256 << 20
    layers: int = 61
    seconds: float = 0.02
    repeats: int = 3

    @property
    def attention(self) -> tuple[int, int, int, int, int]:
        """Heads, rank, rope, and columns of a cache row: of its latent part, and all."""
        latent = -(-self.rank // 16) * 16
        return self.heads, self.rank, self.rope, latent, latent + -(-self.rope // 16) * 16


def every_type(setup: Setup) -> Sequence[GGMLType]:
    """Those that have planes and are wanted."""
    return (*TYPES, *FLOATS) if setup.types is None else setup.types


class Bench:
    """One GPU. What is put into its memory is freed where a `scope` ends."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.gpu = setup.open()
        self._parts: list[int] = []

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Everything that is allocated inside is freed at its end."""
        before = len(self._parts)
        try:
            yield
        finally:
            while len(self._parts) > before:
                self.gpu.free(self._parts.pop())

    def room(self, n_bytes: int) -> int:
        """Address of memory that holds anything."""
        self._parts.append(self.gpu.alloc(n_bytes))
        return self._parts[-1]

    def put(self, array: Array) -> int:
        """Address of a copy."""
        at = self.room(max(array.nbytes, 1))
        self.gpu.upload(at, np.ascontiguousarray(array))
        return at

    def get(self, at: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """A copy of an array."""
        found: Array = np.empty(shape, dtype)
        self.gpu.download(at, found)
        return found

    def run(self, *launches: Launch) -> None:
        """Once, and wait."""
        prepared = self.gpu.prepare(launches)
        try:
            prepared.run()
            self.gpu.wait()
        finally:
            prepared.close()

    def time(self, launches: Sequence[Launch]) -> float:
        """Seconds of all of them, the best of some tries, each long enough to be measured."""
        prepared = self.gpu.prepare(launches)
        try:
            first = self.gpu.seconds(prepared, 1)
            first = min(first, self.gpu.seconds(prepared, 1))
            times = max(1, min(1000, int(self.setup.seconds / max(first, 1e-7))))
            tries = range(self.setup.repeats)
            return min(self.gpu.seconds(prepared, times) / times for _ in tries)
        finally:
            prepared.close()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: int) -> Launch:
    """A kernel of quant/cuda with its shared memory."""
    x, y, z = (*grid, 1, 1)[:3]
    return Launch(kernel, (x, y, z), arguments, kernel.shared)
