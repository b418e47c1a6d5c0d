"""KV: the slots of a model, wherever its layers' rows lie."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from offload.devices.base import KVStore


class KV:
    """The KV stores of all devices as one. A slot has the same number on each."""

    def __init__(self, stores: Sequence[KVStore]) -> None:
        self._stores = stores
        self.context = min(store.context for store in stores)
        self.token_bytes = sum(store.token_bytes for store in stores)
        self._ram_bytes = sum(store.ram_bytes for store in stores)
        self.kind = stores[0].kind
        self._ends: dict[int, int] = {}  # of open slots: rows written so far

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot of `context` rows; PlanError if a system refuses the memory.

        kind: of its rows, None: `kind`.
        """
        try:
            for store in self._stores:
                store.open(slot, kind)
            self._ends[slot] = 0
        except BaseException:
            self.close(slot)
            raise

    def close(self, slot: int) -> None:
        """Give its memory back."""
        self._ends.pop(slot, None)
        for store in self._stores:
            store.close(slot)

    def grow(self, slot: int, end: int) -> None:
        """Rows up to `end` are written."""
        self._ends[slot] = max(end, self._ends.get(slot, 0))

    @property
    def ram_used(self) -> int:
        """Bytes of RAM of the rows that were written in open slots."""
        return sum(self._ends.values()) * self._ram_bytes

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        self.grow(target, count)
        for store in self._stores:
            store.copy(source, target, count)

    def read(self, slot: int, count: int) -> list[np.ndarray]:
        """The first `count` rows of each layer in order, (count, row_bytes) uint8; views."""
        return self._in_order([store.read(slot, count) for store in self._stores])

    def write(self, slot: int, count: int) -> list[np.ndarray]:
        """The same, to be written."""
        self.grow(slot, count)
        return self._in_order([store.write(slot, count) for store in self._stores])

    def _in_order(self, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Of all stores -> by layer, whichever device it is on."""
        layers = [layer for store in self._stores for layer in store.layers]
        arrays = [array for of_store in rows for array in of_store]
        return [array for _, array in sorted(zip(layers, arrays, strict=True), key=itemgetter(0))]
