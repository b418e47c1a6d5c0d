"""MLA attention on a GPU, absorbed: queries are taken into latent space, heads share its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.devices.base import Kind, LatentAttention
from offload.devices.cuda_writer import float_bits
from quant.cuda import attend
from quant.run.cache_rows import RowKind

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_rooms import Room
    from offload.devices.cuda_writer import Writer

PARTIAL_BYTES = 64 << 20  # of partial results at a time


class Attention:
    """X += attention(norm(x)); its layer's rows are in the device's KV store."""

    kind: Kind = "attention"
    row_bytes = 0

    def __init__(self, device: CudaDevice, layer: int, weights: LatentAttention) -> None:
        self.device = device
        self.layer = layer
        self._rows_of = device.kv.add(layer)
        load, w = device.loader.matrix, weights
        self._shape = w
        self._query, self._latent = load(w.query), load(w.latent)
        self._q_b = None if w.q_b is None else load(w.q_b)
        self._k_b, self._v_b, self._output = load(w.k_b), load(w.v_b), load(w.output)
        vector = device.loader.vector
        self._norm, self._latent_norm = vector(w.norm), vector(w.latent_norm)
        self._q_norm = 0 if w.q_norm is None else vector(w.q_norm)
        found = (w.query, w.latent, w.q_b, w.k_b, w.v_b, w.output)
        self.n_bytes = sum(m.count * m.n_bytes for m in found if m is not None)
        shape = device.kv.shape
        self._kernels = attend.of_shape(w.k_b.count, w.rank, w.rope, shape.latent, shape.width)

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        shape, rooms, device = self._shape, w.rooms, self.device
        hidden, heads, width = device.config.hidden_size, shape.k_b.count, device.kv.shape.width
        readers = (2, self._query), (2, self._latent)
        h = rooms.vector("attention h", self._query.n_cols, w.forms(*readers))
        w.norm(w.x, self._norm, hidden, h)
        q = rooms.room("query", 4 * self._query.n_rows)
        c = rooms.room("latent", 4 * self._latent.n_rows)
        w.dense(self._query, h, q)
        w.dense(self._latent, h, c)
        w.launch(
            self._kernels["append"], (w.rows, 1, 1), w.memory.records, self._rows_of, *c,
            self._latent_norm, float_bits(device.eps), w.memory.cos, w.memory.sin,
        )  # fmt: skip
        if self._q_b is not None:
            low = rooms.vector("low-rank query", self._q_b.n_cols, w.forms((2, self._q_b)))
            w.norm(q, self._q_norm, self._query.n_rows, low)
            q = rooms.room("query of all heads", 4 * self._q_b.n_rows)
            w.dense(self._q_b, low, q)
        wide = rooms.room("wide query", 4 * heads * width)
        q_head = 4 * (shape.nope + shape.rope)
        w.heads(self._k_b, q, q_head, wide, 4 * width)
        w.launch(
            self._kernels["query"], (heads, w.rows, 1), *wide, *q, q_head, shape.nope,
            w.memory.cos, w.memory.sin, float_bits(shape.scale),
        )  # fmt: skip
        self._attend(w, wide)

    def _attend(self, w: Writer, wide: Room) -> None:
        """Scores, values, the output projection."""
        rooms, heads, latent = w.rooms, self._shape.k_b.count, self.device.kv.shape.latent
        z = rooms.room("z", 4 * heads * latent)
        strands, records = w.memory.strands, w.memory.records
        most = attend.partial_bytes(heads, latent, attend.strands_of(self.device.kv.context))
        room = max(most, min(rooms.rows * most, PARTIAL_BYTES))
        partials = rooms.area("partials", room)
        step = room // attend.partial_bytes(heads, latent, strands)
        for first in range(0, w.rows, step):
            rows, at = min(step, w.rows - first), records + 32 * first
            for kind in sorted(w.memory.kinds):
                name = f"attend_{RowKind(kind).name.lower()}"
                grid = strands, attend.head_groups(RowKind(kind), heads), rows
                w.launch(
                    self._kernels[name], grid, at, self._rows_of,
                    wide.address + first * wide.stride, wide.stride, strands, partials,
                )  # fmt: skip
            w.launch(
                self._kernels["merge"], (heads, rows, 1), at, partials, strands,
                z.address + first * z.stride, z.stride,
            )  # fmt: skip
        v = self._v_b.n_rows
        o = rooms.vector("heads", self._output.n_cols, {0} | w.forms((2, self._output)))
        w.heads(self._v_b, z, 4 * latent, o.plain, 4 * v)
        w.round(o.plain, heads * v, o)
        w.dense(self._output, o, w.x, add=True)
