"""One pass on the CPU: what a batch's rows are to the kernels, few or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from offload.batch import Batch, Span
from offload.devices.base import Check, Routing
from offload.devices.cpu_kv import CpuKV
from offload.devices.cpu_workspace import MAX_ROWS, Room, Workspace
from offload.rope import Tables
from quant.run.tape import Pass, Row

Array = np.ndarray
NOTHING = np.zeros((0, 0), np.float32)


@dataclass(slots=True)
class ManyRows:
    """Activations of more rows than a tape takes; blocks replace or change them.

    cos, sin (T, rope / 2); spans: each with its rows. routings: expert_ids (T, K) by layer.
    check: to be called while something is waited for.
    """

    batch: Batch
    spans: Sequence[tuple[Span, slice]]
    cos: Array
    sin: Array
    x: Array = field(default_factory=lambda: NOTHING)
    h: Array = field(default_factory=lambda: NOTHING)
    logits: Array = field(default_factory=lambda: NOTHING)
    routing: Routing | None = None
    routings: dict[int, Array] = field(default_factory=dict)
    check: Check = lambda: None

    @contextmanager
    def checked(self, check: Check) -> Iterator[None]:
        """Call this `check` inside; it is not kept, for it holds the engine."""
        before, self.check = self.check, check
        try:
            yield
        finally:
            self.check = before


def many_rows(batch: Batch, rope: Tables) -> ManyRows:
    """The beginning of a pass of many rows."""
    spans = []
    at = 0
    for span in batch.spans:
        spans.append((span, slice(at, at + span.count)))
        at += span.count
    tables = [rope.rows(span.first, span.count) for span in batch.spans]
    cos, sin = (np.concatenate([t[i] for t in tables]) for i in range(2))
    many = ManyRows(batch, spans, cos, sin)
    if batch.rows is not None:
        many.x = np.array(batch.rows, np.float32)
    return many


class PassState:
    """The `Pass` and `Row` records that the contexts of all tapes point to."""

    def __init__(self, kv: CpuKV, rope: Tables) -> None:
        self._kv = kv
        self._rope = rope
        self._rows = np.zeros((MAX_ROWS, len(Row)), np.int64)
        self._pass = np.zeros(len(Pass), np.int64)
        self._pass[Pass.ROWS // 8] = self._rows.ctypes.data
        self.address = int(self._pass.ctypes.data)
        self._forced: Array | None = None

    def begin(self, batch: Batch) -> None:
        """Write the rows' records."""
        at = 0
        for span in batch.spans:
            cache = self._kv.record(span.slot)
            for position in range(span.first, span.end):
                token = -1 if batch.ids is None else batch.ids[at]
                self._rows[at] = (token, position, *cache, *self._rope.addresses(position))
                at += 1

    def force(self, ids: Array | None) -> None:
        """Run these experts (layers, rows, K) int64 instead of the router's choice."""
        if ids is not self._forced:
            self._forced = ids
            self._pass[Pass.FORCED // 8] = 0 if ids is None else ids.ctypes.data


class Choices:
    """Routing of a few rows: ids (layers, MAX_ROWS, K) int64, weights: the K of a row and a 1."""

    def __init__(self, workspace: Workspace, layers: int, top_k: int) -> None:
        self.top_k = top_k
        self._ids = workspace.numbers("choices", (layers, MAX_ROWS * top_k))
        size = -(-4 * (top_k + 1) // 8)
        self._weights = workspace.numbers("weights of choices", (MAX_ROWS, size)).view(np.float32)
        self._weights[:] = 1
        self.weights = Room(int(self._weights.ctypes.data), self._weights.strides[0])

    def ids_at(self, layer: int) -> int:
        """Address of a layer's (rows, K) ids."""
        return int(self._ids.ctypes.data) + layer * self._ids.strides[0]

    def ids(self, rows: int) -> Array:
        """Of all layers, (layers, rows, K) int64, a copy."""
        ids = self._ids[:, : rows * self.top_k].copy()
        return ids.reshape(len(ids), rows, self.top_k)

    def routing(self, layer: int, rows: int) -> Routing:
        """A layer's routing; the weights are those of the layer that ran last."""
        ids = self._ids[layer, : rows * self.top_k].reshape(rows, self.top_k)
        return Routing(expert_ids=ids.copy(), weights=self._weights[:rows, : self.top_k].copy())

    def set(self, layer: int, routing: Routing) -> None:
        """Take a routing over from another device."""
        self._ids[layer, : routing.expert_ids.size] = routing.expert_ids.ravel()
        self._weights[: len(routing.weights), : self.top_k] = routing.weights
