"""The latent cache in RAM: a slot per sequence, all layers of it.

What a row is: offload/kv_cache.py.
"""

from __future__ import annotations

import numpy as np

from offload.errors import PlanError
from offload.kv_cache import CacheShape

Array = np.ndarray


class CpuKV:
    """Slots of `context` rows each; see KVStore. The system maps a slot's memory as it is written.

    Layer i, row r of a slot lies layer_bytes * i + row_bytes * r behind its address.
    """

    def __init__(self, shape: CacheShape, layers: int, context: int) -> None:
        self.shape = shape
        self.context = context
        self.kind: str = shape.kv_type
        self.row_bytes = shape.row_bytes
        self.layer_bytes = context * shape.row_bytes
        self.token_bytes = layers * shape.row_bytes
        self._layers = layers
        self._slots: dict[int, Array] = {}

    def open(self, slot: int) -> None:
        """A new, empty slot; PlanError if the system refuses."""
        try:
            self._slots[slot] = np.zeros((self._layers, self.context, self.row_bytes), np.uint8)
        except (MemoryError, ValueError) as exc:
            size = self.context * self.token_bytes
            raise PlanError(
                f"a KV cache of {self.context:,} tokens needs {size / 2**30:.1f} GiB, which the "
                "system refuses; ask for a smaller --context"
            ) from exc

    def close(self, slot: int) -> None:
        """Give its memory back."""
        self._slots.pop(slot, None)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        self._slots[target][:, :count] = self._slots[source][:, :count]

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each layer; views."""
        return list(self._slots[slot][:, :count])

    write = read

    def address(self, slot: int) -> int:
        """Of layer 0, position 0 of a slot."""
        return int(self._slots[slot].ctypes.data)

    def rows(self, slot: int, layer: int) -> Array:
        """All rows of a layer, (context, row_bytes) uint8."""
        rows: Array = self._slots[slot][layer]
        return rows
