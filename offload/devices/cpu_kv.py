"""The latent cache in RAM: a slot per sequence, all layers of it that attend here.

What a row is: offload/kv_cache.py.
"""

from __future__ import annotations

import numpy as np

from offload.errors import PlanError
from offload.kv_cache import CacheShape

Array = np.ndarray


class CpuKV:
    """Slots of `context` rows each; see KVStore. The system maps a slot's memory as it is written.

    Row r of layers[i] lies layer_bytes * i + row_bytes * r behind a slot's address. Layers are
    added before the first slot is opened.
    """

    def __init__(self, shape: CacheShape, context: int) -> None:
        self.shape = shape
        self.context = context
        self.kind: str = shape.kv_type
        self.row_bytes = shape.row_bytes
        self.layer_bytes = context * shape.row_bytes
        self.layers: list[int] = []
        self._slots: dict[int, Array] = {}
        self._addresses: dict[int, int] = {}

    @property
    def token_bytes(self) -> int:
        """Of a position, all layers."""
        return len(self.layers) * self.row_bytes

    def add(self, layer: int) -> int:
        """Keep rows of a layer; its index in `layers`."""
        if layer not in self.layers:
            self.layers.append(layer)
        return self.layers.index(layer)

    def open(self, slot: int) -> None:
        """A new, empty slot; PlanError if the system refuses."""
        shape = len(self.layers), self.context, self.row_bytes
        try:
            rows = self._slots[slot] = np.zeros(shape, np.uint8)
            self._addresses[slot] = int(rows.ctypes.data)
        except (MemoryError, ValueError) as exc:
            size = self.context * self.token_bytes
            raise PlanError(
                f"a KV cache of {self.context:,} tokens needs {size / 2**30:.1f} GiB, which the "
                "system refuses; ask for a smaller --context"
            ) from exc

    def close(self, slot: int) -> None:
        """Give its memory back."""
        self._slots.pop(slot, None)
        self._addresses.pop(slot, None)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        self._slots[target][:, :count] = self._slots[source][:, :count]

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each layer; views."""
        return list(self._slots[slot][:, :count])

    write = read

    def address(self, slot: int) -> int:
        """Of the first layer, position 0 of a slot."""
        return self._addresses[slot]

    def rows(self, slot: int, index: int) -> Array:
        """All rows of layers[index], (context, row_bytes) uint8."""
        rows: Array = self._slots[slot][index]
        return rows
