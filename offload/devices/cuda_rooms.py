"""Activation buffers in VRAM for a number of rows; all layers share those of one name and size."""

from __future__ import annotations

from typing import NamedTuple

from offload.devices.cuda_vram import Space
from offload.gpu.base import Gpu
from quant.cuda.records import record_bytes


class Room(NamedTuple):
    """A buffer: address of row 0, bytes from row to row."""

    address: int
    stride: int

    def from_row(self, row: int) -> Room:
        """The same, from a row on."""
        return Room(self.address + row * self.stride, self.stride)


class Area(NamedTuple):
    """Memory whatever the number of rows."""

    address: int
    n_bytes: int


NOWHERE = Room(0, 0)


class Vector(NamedTuple):
    """A row of activations in its forms; those that nothing reads have no address (0)."""

    plain: Room  # float32
    q8: Room  # records of one int8 plane
    q16: Room  # of two
    n_cols: int


class Rooms:
    """Owner of buffers for at most `rows` rows."""

    def __init__(self, gpu: Gpu, space: Space, rows: int) -> None:
        self.rows = rows
        self._space = space
        self._gpu = gpu
        self._areas: dict[tuple[str, int], int] = {}

    def area(self, name: str, n_bytes: int) -> int:
        """Address of memory whatever the number of rows; begins as zeros."""
        key = name, n_bytes
        if key not in self._areas:
            self._areas[key] = self._space.alloc(n_bytes)
            self._gpu.clear(self._areas[key], n_bytes)
        return self._areas[key]

    def room(self, name: str, n_bytes: int, per_row: int = 1) -> Room:
        """A buffer of `n_bytes` for each row, or for each of several of a row."""
        stride = -(-n_bytes // 16) * 16
        return Room(self.area(name, self.rows * per_row * stride), stride)

    def vector(self, name: str, n_cols: int, planes: set[int], per_row: int = 1) -> Vector:
        """Room for activations; planes: 0 (float32), 1, 2: the forms that are read."""
        plain = self.room(name, 4 * n_cols, per_row) if 0 in planes else NOWHERE
        q8, q16 = (
            self.room(f"{name} Q{8 * p}", record_bytes(n_cols, p), per_row)
            if p in planes
            else NOWHERE
            for p in (1, 2)
        )
        return Vector(plain, q8, q16, n_cols)

    def close(self) -> None:
        """Give the memory back."""
        for address in self._areas.values():
            self._space.free(address)
        self._areas.clear()
