"""The latent cache in RAM: a slot per sequence, all layers of it that attend here.

What a row is: offload/kv_cache.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from offload.errors import PlanError
from offload.kv_cache import CacheShape
from offload.memory import wants_huge_pages
from offload.plan import KVType

Array = np.ndarray


class LayerRows(NamedTuple):
    """A layer's rows in a slot: (context, row_bytes) uint8, and what they are."""

    data: Array
    shape: CacheShape


class CpuKV:
    """Slots of `context` rows each; see KVStore. The system maps a slot's memory as it is written.

    shape: of rows, unless a slot is opened with another kind. Layers are added before the first
    slot is opened.
    """

    def __init__(self, shape: CacheShape, context: int) -> None:
        self.shape = shape
        self.context = context
        self.kind: str = shape.kv_type
        self.layers: list[int] = []
        self._slots: dict[int, Array] = {}
        self._shapes: dict[int, CacheShape] = {}
        self._records: dict[int, tuple[int, int, int, int]] = {}

    @property
    def token_bytes(self) -> int:
        """Of a position, all layers."""
        return len(self.layers) * self.shape.row_bytes

    @property
    def ram_bytes(self) -> int:
        """The same, of layers whose rows lie in RAM."""
        return self.token_bytes

    def add(self, layer: int) -> int:
        """Keep rows of a layer; its index in `layers`."""
        if layer not in self.layers:
            self.layers.append(layer)
        return self.layers.index(layer)

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot; PlanError if the system refuses."""
        shape = replace(self.shape, kv_type=cast("KVType", kind or self.kind))
        try:
            rows = np.zeros((len(self.layers), self.context, shape.row_bytes), np.uint8)
        except (MemoryError, ValueError) as exc:
            size = self.context * len(self.layers) * shape.row_bytes
            raise PlanError(
                f"a KV cache of {self.context:,} tokens needs {size / 2**30:.1f} GiB, which the "
                "system refuses; ask for a smaller --context"
            ) from exc
        self._slots[slot], self._shapes[slot] = rows, shape
        layer_bytes = self.context * shape.row_bytes
        self._records[slot] = int(rows.ctypes.data), layer_bytes, shape.row_bytes, shape.kind

    def close(self, slot: int) -> None:
        """Give its memory back."""
        for by_slot in (self._slots, self._shapes, self._records):
            by_slot.pop(slot, None)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        self.write(target, count)
        self._slots[target][:, :count] = self._slots[source][:, :count]

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each layer; views."""
        return list(self._slots[slot][:, :count])

    def write(self, slot: int, count: int) -> list[Array]:
        """The same, to be written."""
        layers = self.read(slot, count)
        for rows in layers:
            wants_huge_pages(rows)
        return layers

    def record(self, slot: int) -> tuple[int, int, int, int]:
        """What `tape.Row` says of a slot: address, bytes of a layer and of a row, kind of rows."""
        return self._records[slot]

    def rows(self, slot: int, index: int) -> LayerRows:
        """All rows of layers[index]."""
        return LayerRows(self._slots[slot][index], self._shapes[slot])
