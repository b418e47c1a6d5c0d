"""The KV rows of both sides of a hybrid as one store: layers that attend on the GPU, and others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offload.devices.base import KVStore

Array = np.ndarray


class JoinedKV:
    """See KVStore. A slot has the same number in all of them."""

    def __init__(self, *stores: KVStore) -> None:
        self._stores = stores
        self.context = min(store.context for store in stores)
        self.kind = stores[0].kind

    @property
    def layers(self) -> Sequence[int]:
        """Of the first store, then of the next."""
        return [layer for store in self._stores for layer in store.layers]

    @property
    def token_bytes(self) -> int:
        """Of a position, all layers."""
        return sum(store.token_bytes for store in self._stores)

    @property
    def ram_bytes(self) -> int:
        """The same, of layers whose rows lie in RAM."""
        return sum(store.ram_bytes for store in self._stores)

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot."""
        for store in self._stores:
            store.open(slot, kind)

    def close(self, slot: int) -> None:
        """Give its memory back."""
        for store in self._stores:
            store.close(slot)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        for store in self._stores:
            store.copy(source, target, count)

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each of `layers`."""
        return [rows for store in self._stores for rows in store.read(slot, count)]

    def write(self, slot: int, count: int) -> list[Array]:
        """The same, to be written."""
        return [rows for store in self._stores for rows in store.write(slot, count)]
