"""What a pass needs in VRAM beside weights and KV rows: buffers, and its rows' records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offload.batch import Batch
from offload.devices.base import Routing
from offload.devices.cuda_kv import CudaKV
from offload.devices.cuda_rooms import Rooms
from offload.devices.cuda_vram import Space
from offload.gpu.base import Gpu
from offload.rope import Tables
from quant.cuda.attend import strands_of
from quant.cuda.cache_rows import RECORD
from quant.run.cache_rows import RowKind

if TYPE_CHECKING:
    from offload.config import ModelConfig

Array = np.ndarray


class PassMemory:
    """Buffers for at most `most` rows.

    ids (rows,) int64: token numbers; records (rows, 4) int64: see quant/cuda/cache_rows.py; cos,
    sin (rows, rope / 2) float32. choices (layers, rows, K) int64, weights (rows, K) float32: the
    routing; the weights are those of the layer that ran last.
    n_rows, with_ids, kinds, strands, positions: of the batch that runs. forms: its rows in runs of
    one form of attention, (first, rows, is expanded); expanded ones of one sequence.
    """

    def __init__(self, gpu: Gpu, space: Space, config: ModelConfig, most: int) -> None:
        self.most = most
        self.rooms = Rooms(gpu, space, most)
        self._gpu = gpu
        self._config = config
        self.top_k = config.num_experts_per_tok
        pairs = config.rope.dim // 2
        area = self.rooms.area
        self.ids = area("token ids", 8 * most)
        self.records = area("row records", RECORD * most)
        self.cos, self.sin = area("cos", 4 * pairs * most), area("sin", 4 * pairs * most)
        self._choices = area("choices", max(8, config.num_layers * most * self.top_k * 8))
        self.weights = area("choices' weights", max(4, 4 * most * self.top_k))
        self.n_rows = 0
        self.with_ids = True
        self.kinds: frozenset[int] = frozenset()
        self.strands = 1
        self.forms: list[tuple[int, int, bool]] = []
        self.positions: list[int] = []

    def begin(self, batch: Batch, kv: CudaKV, tables: Tables) -> None:
        """Bring the rows' records over."""
        n = batch.n_tokens
        self.n_rows, self.with_ids = n, batch.ids is not None
        records = np.empty((n, 4), np.int64)
        records[:, 0] = -1 if batch.ids is None else batch.ids
        at = 0
        cos, sin = [], []
        for span in batch.spans:
            part = slice(at, at + span.count)
            records[part, 1] = np.arange(span.first, span.end)
            if kv.layers:
                kv.reserve(span.slot, span.end)
                records[part, 2:] = kv.record(span.slot)
            a, b = tables.rows(span.first, span.count)
            cos.append(a)
            sin.append(b)
            at += span.count
        self.kinds = frozenset(records[:, 3].tolist()) if kv.layers else frozenset()
        self.strands = self._strands(max(span.end for span in batch.spans), kv.context)
        self.positions = records[:, 1].tolist()
        self.forms = self._forms(batch)
        upload = self._gpu.upload
        upload(self.records, records)
        if batch.ids is not None:
            upload(self.ids, np.ascontiguousarray(batch.ids, np.int64))
        upload(self.cos, np.concatenate(cos))
        upload(self.sin, np.concatenate(sin))

    @property
    def is_of_halves(self) -> bool:
        """Whether no rows are float32: the expanded form would lose what those hold."""
        return bool(self.kinds) and RowKind.F32 not in self.kinds

    def _forms(self, batch: Batch) -> list[tuple[int, int, bool]]:
        found: list[tuple[int, int, bool]] = []
        at = 0
        for span in batch.spans:
            for a, b, is_expanded in span.forms():
                if is_expanded and self.is_of_halves:
                    found.append((at, b - a, True))
                elif found and not found[-1][2]:
                    found[-1] = found[-1][0], found[-1][1] + b - a, False
                else:
                    found.append((at, b - a, False))
                at += b - a
        return found

    @staticmethod
    def _strands(end: int, context: int) -> int:
        """That positions up to `end` need: a power of 2, so that few graphs serve all contexts."""
        return min(strands_of(context), 1 << (strands_of(end) - 1).bit_length())

    def choices_at(self, layer: int) -> int:
        """Address of a layer's (rows, K) int64."""
        return self._choices + layer * self.most * self.top_k * 8

    def expert_ids(self, layer: int) -> Array:
        """A layer's (rows, K) of the batch, a copy."""
        out = np.empty((self.n_rows, self.top_k), np.int64)
        self._gpu.download(self.choices_at(layer), out)
        return out

    def all_expert_ids(self) -> Array:
        """(layers, rows, K) of the batch, a copy."""
        out = np.empty((self._config.num_layers, self.most, self.top_k), np.int64)
        self._gpu.download(self._choices, out)
        return out[:, : self.n_rows]

    def routing(self, layer: int) -> Routing:
        """A layer's routing, copies."""
        weights = np.empty((self.n_rows, self.top_k), np.float32)
        self._gpu.download(self.weights, weights)
        return Routing(expert_ids=self.expert_ids(layer), weights=weights)

    def set_routing(self, layer: int, routing: Routing) -> None:
        """Take a routing over from another device."""
        self._gpu.upload(self.choices_at(layer), np.ascontiguousarray(routing.expert_ids, np.int64))
        self._gpu.upload(self.weights, np.ascontiguousarray(routing.weights, np.float32))

    def rows_at(self, name: str, width: int) -> Array:
        """(rows, width) float32 of a room, a copy."""
        room = self.rooms.room(name, 4 * width)
        out = np.empty((self.n_rows, room.stride // 4), np.float32)
        self._gpu.download(room.address, out)
        return np.ascontiguousarray(out[:, :width])

    def set_rows(self, name: str, x: Array) -> None:
        """Fill a room with (rows, width) float32."""
        room = self.rooms.room(name, 4 * x.shape[1])
        wide = np.zeros((len(x), room.stride // 4), np.float32)
        wide[:, : x.shape[1]] = x
        self._gpu.upload(room.address, wide)

    def close(self) -> None:
        """Give the memory back."""
        self.rooms.close()
