"""Activation buffers of a few rows: what the steps of all tapes of a device share.

A room is the same memory for all layers, and for every number of rows, that ask for as much under
one name. All of it begins as zeros; columns beyond a vector's own stay so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from offload.batch import FEW_ROWS
from offload.weights import Matrix
from quant.run import attention
from quant.run.activations import record_bytes
from quant.run.attention import Attend
from quant.run.fields import write

MAX_ROWS = FEW_ROWS  # of a tape


class Room(NamedTuple):
    """A buffer: address of row 0, bytes from row to row."""

    address: int
    stride: int


@dataclass(frozen=True, slots=True)
class Vector:
    """A row of activations in its forms; records that nothing reads have no address (0)."""

    plain: Room  # float32, zero columns up to n_cols
    q8: Room
    q16: Room
    n_cols: int

    def form(self, matrix: Matrix, planes: int) -> Room:
        """What a matrix reads."""
        if matrix.quant.is_float:
            return self.plain
        return self.q8 if planes == 1 else self.q16


class AttendRows(NamedTuple):
    """Contexts of the attention of each row, one set for all layers."""

    contexts: int  # (MAX_ROWS, Attend) int64
    counts: int  # (MAX_ROWS,) int64
    total: int
    query: Room  # (heads, width) float32
    z: Room  # (heads, latent) float32
    heads: int  # a multiple of attention.HEADS


NOWHERE = Room(0, 0)


Zeros = Callable[[int], np.ndarray]  # so many bytes, (n,) uint8


def zeros(n_bytes: int) -> np.ndarray:
    """Memory as any other."""
    return np.zeros(n_bytes, np.uint8)


class Workspace:
    """Owner of the memory. memory: where it comes from."""

    def __init__(self, threads: int, memory: Zeros = zeros) -> None:
        self.threads = threads
        self._memory = memory
        self._kept: list[np.ndarray] = []
        self._rooms: dict[tuple[str, int], int] = {}
        self._attend: dict[tuple[int, int, int], AttendRows] = {}

    def area(self, name: str, n_bytes: int) -> int:
        """Address of zeroed memory, on a cache line of its own."""
        key = name, n_bytes
        if key not in self._rooms:
            data = self._memory(n_bytes + 64)
            self._kept.append(data)
            self._rooms[key] = int(data.ctypes.data) + -data.ctypes.data % 64
        return self._rooms[key]

    def numbers(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """An area as (rows, n) int64."""
        n_bytes = 8 * shape[0] * shape[1]
        data = (ctypes.c_uint8 * n_bytes).from_address(self.area(name, n_bytes))
        return np.frombuffer(memoryview(data), np.int64).reshape(shape)

    def room(self, name: str, n_bytes: int) -> Room:
        """A buffer of `n_bytes` for each of MAX_ROWS rows."""
        stride = -(-n_bytes // 64) * 64
        return Room(self.area(f"{name}: rows", MAX_ROWS * stride), stride)

    def view(self, room: Room, rows: int, n: int) -> np.ndarray:
        """(rows, n) float32 of a room."""
        data = (ctypes.c_uint8 * (rows * room.stride)).from_address(room.address)
        view: np.ndarray = np.frombuffer(memoryview(data), np.float32)
        return view.reshape(rows, -1)[:, :n]

    def vector(self, name: str, n_cols: int, planes: set[int]) -> Vector:
        """Room for activations of which records of these planes are read."""
        q8, q16 = (
            self.room(f"{name} Q{8 * p}", record_bytes(n_cols, p)) if p in planes else NOWHERE
            for p in (1, 2)
        )
        return Vector(self.room(name, 4 * n_cols), q8, q16, n_cols)

    def attend(self, n_heads: int, latent: int, width: int) -> AttendRows:
        """Contexts for rows of `width` elements, `latent` of them values."""
        key = n_heads, latent, width
        if key not in self._attend:
            self._attend[key] = self._make_attend(*key)
        return self._attend[key]

    def _make_attend(self, n_heads: int, latent: int, width: int) -> AttendRows:
        heads = -(-n_heads // attention.HEADS) * attention.HEADS
        name = f"{heads} heads, {latent} of {width}"
        query = self.room(f"queries: {name}", 4 * heads * width)
        z = self.room(f"z: {name}", 4 * heads * latent)
        partials = self.room(f"partials: {name}", attention.partial_bytes(heads, latent))
        size = attention.scratch_bytes(width)
        scratch = self.area(f"attend: {name}", size * self.threads)
        contexts = np.stack(
            [
                write(
                    Attend, Q=query.address + row * query.stride, Z=z.address + row * z.stride,
                    PARTIALS=partials.address + row * partials.stride, N_HEADS=heads, WIDTH=width,
                    LATENT=latent, N_TOKENS=1, TASK_TOKENS=1, SCRATCH=scratch, SCRATCH_BYTES=size,
                    CACHE=0, ROW_BYTES=0, KIND=0, FIRST=0, TASK_HEADS=0, STRANDS=0,
                )
                for row in range(MAX_ROWS)
            ]
        )  # fmt: skip
        self._kept.append(contexts)
        counts = self.area(f"counts: {name}", 8 * MAX_ROWS)
        total = self.area(f"count: {name}", 8)
        return AttendRows(int(contexts.ctypes.data), counts, total, query, z, heads)
