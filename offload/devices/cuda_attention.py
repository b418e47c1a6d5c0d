"""MLA attention on a GPU.

Absorbed: queries are taken into latent space, heads share its rows. Expanded, long prompts': see
cuda_expanded.py. Which form a position takes is a matter of its sequence alone (batch.Span).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.batch import EXACT_CONTEXT
from offload.devices.base import Kind, LatentAttention
from offload.devices.cuda_expanded import Expanded, attention_scratch
from offload.devices.cuda_writer import float_bits
from quant.cuda import attend, attend_expanded
from quant.cuda.cache_rows import RECORD
from quant.run.cache_rows import RowKind

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_rooms import Room
    from offload.devices.cuda_writer import Writer


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
        fits = attend_expanded.fits(w.nope, w.v_b.n_rows, w.rope)
        self._expanded = (
            Expanded(w, self._k_b, self._v_b, shape)
            if fits and device.kv.context > EXACT_CONTEXT
            else None
        )

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        shape, rooms, device = self._shape, w.rooms, self.device
        hidden = device.config.hidden_size
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
        self._attend(w, q, 4 * (shape.nope + shape.rope))

    def _attend(self, w: Writer, q: Room, q_head: int) -> None:
        """Scores and values, in the form of each row's position; the output projection."""
        heads, v = self._shape.k_b.count, self._v_b.n_rows
        readers = {0} | w.forms((2, self._output))
        o = w.rooms.vector("heads", self._output.n_cols, readers)
        for first, rows, is_expanded in w.memory.forms:
            of_rows, to = q.from_row(first), o.plain.from_row(first)
            if is_expanded and self._expanded is not None:
                self._expanded.write(w, self._rows_of, first, rows, of_rows, q_head, to)
            else:
                self._absorbed(w, first, rows, of_rows, q_head, to)
        w.round(o.plain, heads * v, o)
        w.dense(self._output, o, w.x, add=True)

    def _wide(self, w: Writer, start: int, count: int, q: Room, q_head: int) -> Room:
        """The rows' queries in latent space; of all rows of the batch."""
        shape, heads, width = self._shape, self._shape.k_b.count, self.device.kv.shape.width
        wide, angles = w.rooms.room("wide query", 4 * heads * width), 2 * shape.rope * start
        of_rows = wide.from_row(start)
        w.heads(self._k_b, q, q_head, of_rows, 4 * width, rows=count)
        w.launch(
            self._kernels["query"], (heads, count, 1), *of_rows, *q, q_head, shape.nope,
            w.memory.cos + angles, w.memory.sin + angles, float_bits(shape.scale),
        )  # fmt: skip
        return wide

    def _absorbed(self, w: Writer, start: int, count: int, q: Room, q_head: int, to: Room) -> None:
        """Rows start .. start + count - 1; as many at a time as partial results have room for."""
        rooms, heads, latent = w.rooms, self._shape.k_b.count, self.device.kv.shape.latent
        wide = self._wide(w, start, count, q, q_head)
        z = rooms.room("z", 4 * heads * latent)
        strands, records = w.memory.strands, w.memory.records
        area = attention_scratch(w, heads, latent)
        step = area.n_bytes // attend.partial_bytes(heads, latent, strands)
        for first in range(start, start + count, step):
            rows, at = min(step, start + count - first), records + RECORD * first
            for kind in sorted(w.memory.kinds):
                grid = strands, attend.head_groups(RowKind(kind), heads), rows
                w.launch(
                    self._kernels[f"attend_{RowKind(kind).name.lower()}"], grid, at, self._rows_of,
                    *wide.from_row(first), strands, area.address,
                )  # fmt: skip
            w.launch(
                self._kernels["merge"], (heads, rows, 1), at, area.address, strands,
                *z.from_row(first),
            )  # fmt: skip
        v_head = 4 * self._v_b.n_rows
        w.heads(self._v_b, z.from_row(start), 4 * latent, to, v_head, rows=count)
