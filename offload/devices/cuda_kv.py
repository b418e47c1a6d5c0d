"""KV rows in VRAM: pages of 256 positions of all layers, taken as rows are written.

    page    layer 0: 256 rows | layer 1: 256 rows | ..
    rows    f32, f16: one after the other; q8_0: 256 x width int8, then 256 x the halves (`d`)
    table   of a slot: int64 address of each of its pages, in VRAM

Rows that are read and written from outside have the CPU's form (kv_cache.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from offload.devices.cuda_vram import Space
from offload.gpu.base import Gpu
from offload.kv_cache import CacheShape
from offload.plan import KVType
from quant.cuda.cache_rows import PAGE, from_layer, to_layer

Array = np.ndarray


@dataclass(slots=True)
class Slot:
    """One slot: its rows' shape, its table and the pages in it."""

    shape: CacheShape
    table: int
    pages: list[int] = field(default_factory=list)
    written: list[Array] | None = None  # rows from outside that are not there yet


class CudaKV:
    """See KVStore."""

    def __init__(
        self, gpu: Gpu, pages: Space, tables: Space, shape: CacheShape, context: int
    ) -> None:
        self._pages, self._tables = pages, tables
        self.shape = shape
        self.context = context
        self.kind: str = shape.kv_type
        self.layers: list[int] = []
        self._gpu = gpu
        self._slots: dict[int, Slot] = {}

    @property
    def token_bytes(self) -> int:
        """Of a position, all layers."""
        return len(self.layers) * self.shape.row_bytes

    @property
    def ram_bytes(self) -> int:
        """The same, of layers whose rows lie in RAM."""
        return 0

    def add(self, layer: int) -> int:
        """Keep rows of a layer; its index in `layers`."""
        if layer not in self.layers:
            self.layers.append(layer)
        return self.layers.index(layer)

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot; PlanError if there is no room."""
        self.close(slot)
        table = self._tables.alloc(8 * -(-self.context // PAGE))
        self._slots[slot] = Slot(
            replace(self.shape, kv_type=cast("KVType", kind or self.kind)), table
        )

    def close(self, slot: int) -> None:
        """Give its memory back."""
        found = self._slots.pop(slot, None)
        if found is not None:
            for page in found.pages:
                self._pages.free(page)
            self._tables.free(found.table)

    def reserve(self, slot: int, rows: int) -> None:
        """Pages for so many rows; PlanError if there is no room."""
        one = self._slots[slot]
        self._settle(one)
        self._grow(one, rows)

    def record(self, slot: int) -> tuple[int, int]:
        """(address of the table, kind of rows)."""
        one = self._slots[slot]
        return one.table, int(one.shape.kind)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""
        a, b = self._slots[source], self._slots[target]
        self._settle(a)
        self._settle(b)
        if a.shape == b.shape and self.layers:
            self._grow(b, count)
            for i in range(count // PAGE):
                self._gpu.copy(b.pages[i], a.pages[i], self._page_bytes(a))
        rest = count // PAGE * PAGE
        if rest < count:
            rows = self._read(a, rest, count)
            self._write(b, rest, rows)

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each layer, copies."""
        one = self._slots[slot]
        self._settle(one)
        return self._read(one, 0, count)

    def write(self, slot: int, count: int) -> list[Array]:
        """The same, to be written; they are brought over when the slot is used next."""
        rows = self.read(slot, count)
        self._slots[slot].written = rows
        return rows

    # --- pages --------------------------------------------------------------------------------

    def _page_bytes(self, slot: Slot) -> int:
        return len(self.layers) * PAGE * slot.shape.row_bytes

    def _grow(self, slot: Slot, rows: int) -> None:
        wanted = -(-rows // PAGE) if self.layers else 0
        if wanted <= len(slot.pages):
            return
        for _ in range(wanted - len(slot.pages)):
            page = self._pages.alloc(self._page_bytes(slot))
            self._gpu.clear(page, self._page_bytes(slot))
            slot.pages.append(page)
        self._gpu.upload(slot.table, np.array(slot.pages, np.int64))

    def _settle(self, slot: Slot) -> None:
        """Bring over what was written from outside."""
        if slot.written is not None:
            rows, slot.written = slot.written, None
            self._write(slot, 0, rows)

    def _read(self, slot: Slot, first: int, end: int) -> list[Array]:
        """Rows first .. end - 1 of each layer; first: a page's."""
        n_bytes = slot.shape.row_bytes
        rows = [np.zeros((end - first, n_bytes), np.uint8) for _ in self.layers]
        for i in range(first // PAGE, min(-(-end // PAGE), len(slot.pages))):
            at, count = PAGE * i - first, min(PAGE, end - PAGE * i)
            page = np.empty((len(self.layers), PAGE * n_bytes), np.uint8)
            self._gpu.download(slot.pages[i], page)
            for layer, to in zip(page, rows, strict=True):
                to[at : at + count] = from_layer(slot.shape.kind, layer, slot.shape.width)[:count]
        return rows

    def _write(self, slot: Slot, first: int, rows: list[Array]) -> None:
        """Rows of each layer from position `first` on, a page's first."""
        end = first + len(rows[0]) if rows else first
        self._grow(slot, end)
        for i in range(first // PAGE, -(-end // PAGE)):
            at, count = PAGE * i - first, min(PAGE, end - PAGE * i)
            page = np.empty((len(self.layers), PAGE * slot.shape.row_bytes), np.uint8)
            if count < PAGE:
                self._gpu.download(slot.pages[i], page)
            for layer, source in zip(page, rows, strict=True):
                whole = from_layer(slot.shape.kind, layer, slot.shape.width)
                whole[:count] = source[at : at + count]
                layer[:] = to_layer(slot.shape.kind, whole, slot.shape.width)
            self._gpu.upload(slot.pages[i], page)
