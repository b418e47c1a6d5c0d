"""MLA attention on the CPU, both ways.

Absorbed: queries are taken into the latent space (k_b), every head reads the cached latents, the
result leaves through v_b. 2 (latent + rope) + 2 latent operations per head and position.
Expanded: keys and values of a head are made from the latents first, then ordinary attention;
cheaper once many tokens share the expansion.

The two differ in float32 summation order, and a difference of 1e-7 grows to the size of the int8
rounding within a few quantised layers. So what form a position takes is a matter of its sequence
alone (batch.expanded_runs): prompts up to EXACT_CONTEXT tokens are absorbed, like decoding, and
come out bit for bit as token by token; beyond it, where absorbed attention would cost more than the
rest of a layer, whole pieces of a prompt are expanded. Within a form no sum depends on which other
tokens are computed. Neither keeps an array of scores, and long prompts go through in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offload.batch import Span
from offload.devices import cpu_rows
from offload.devices.base import Kind, LatentAttention
from offload.devices.cpu_kv import LayerRows
from offload.devices.cpu_matrices import Linear, PerHead
from offload.devices.cpu_workspace import Room
from quant.run import attention, attention_expanded, row_tasks
from quant.run.row_tasks import Begin, Latent, Query, Value

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice
    from offload.devices.cpu_pass import ManyRows
    from offload.devices.cpu_writer import Writer

Array = np.ndarray
# at a time, so that what lies in latent space stays in caches; half of them see up to as many
# positions for nothing
ABSORBED_TOKENS = 64
EXPANDED_TOKENS = 2048


class Attention:
    """X += attention(norm(x)); its layer's rows are in the device's KV store."""

    kind: Kind = "attention"

    def __init__(self, device: CpuDevice, layer: int, weights: LatentAttention) -> None:
        self.device = device
        self.layer = layer
        self._weights = weights
        self._layer_rows = device.kv.add(layer)
        self._first = Linear(device, weights.query, weights.latent)
        self._q_b = None if weights.q_b is None else Linear(device, weights.q_b)
        self._keys = PerHead(device, weights.k_b)
        self._values = PerHead(device, weights.v_b)
        self._output = Linear(device, weights.output)

    # --- a few rows ---------------------------------------------------------------------------

    def steps(self, w: Writer) -> None:
        """See CpuBlock."""
        weights, shape = self._weights, self.device.kv.shape
        rows = w.device.workspace.attend(weights.k_b.count, shape.latent, shape.width)
        if not w.has_begun:
            context = w.tape.context(
                Begin, PASS=self.device.state.address, ATTEND=rows.contexts, ROWS=w.rows,
                THREADS=self.device.pool.threads, COUNTS=rows.counts, TOTAL=rows.total,
            )  # fmt: skip
            w.tape.add(row_tasks.begin_task.address, context)
            w.has_begun = True
        h = w.vector("attention h", *((2, m) for m in self._first.matrices))
        w.norm(w.x, weights.norm, h)
        query, latent = self._first.matrices
        q = w.room("query", 4 * query.n_rows)
        c = w.room("latent", 4 * latent.n_rows)
        w.linear(self._first, h, q, c)
        if self._q_b is not None and weights.q_norm is not None:
            (q_b,) = self._q_b.matrices
            low = w.vector("low-rank query", (2, q_b))
            w.norm(q, weights.q_norm, low)
            q = w.room("query of all heads", 4 * q_b.n_rows)
            w.linear(self._q_b, low, q)
        row = w.room("cache row", 4 * shape.width)
        context = w.tape.context(
            Latent, PASS=self.device.state.address, LAYER=self._layer_rows, X=c.address,
            X_STRIDE=c.stride, RANK=weights.rank, ROPE=weights.rope,
            WEIGHT=w.tape.keep(np.ascontiguousarray(weights.latent_norm)), EPS=self.device.eps,
            ROW=row.address, ROW_STRIDE=row.stride, ROPE_AT=shape.latent, WIDTH=shape.width,
            ATTEND=rows.contexts,
        )  # fmt: skip
        w.tape.add(row_tasks.latent_task.address, context, w.rows)
        self._write_queries(w, q, rows.query)
        context = w.tape.context(
            row_tasks.AttendRows, TASK=attention.attend_task.address, ATTEND=rows.contexts,
            COUNTS=rows.counts,
        )  # fmt: skip
        w.tape.add(row_tasks.attend_rows_task.address, context, count_at=rows.total)
        self._write_output(w, rows.z, rows.contexts)

    def _write_queries(self, w: Writer, q: Room, wide: Room) -> None:
        """Every head's queries in latent space."""
        weights, shape = self._weights, self.device.kv.shape
        size = 4 * weights.k_b.n_cols
        nope = w.room("nope", weights.k_b.count * size)
        jobs = w.per_head(self._keys, nope, size, wide, 4 * shape.width)
        context = w.tape.context(
            Query, PASS=self.device.state.address, N=w.rows, Q=q.address, Q_STRIDE=q.stride,
            NOPE=weights.nope, ROPE=weights.rope, JOBS=jobs, X_STRIDE=nope.stride,
            WIDE=wide.address, WIDE_STRIDE=wide.stride, WIDTH=shape.width, ROPE_AT=shape.latent,
            SCALE=float(weights.scale),
        )  # fmt: skip
        w.tape.add(row_tasks.query_task.address, context, weights.k_b.count)

    def _write_output(self, w: Writer, z: Room, contexts: int) -> None:
        """The heads' values, and the output projection; x grows by it later."""
        weights, shape = self._weights, self.device.kv.shape
        n_heads, v = weights.v_b.count, weights.v_b.n_rows
        o = w.vector("heads", (2, weights.output))
        size, z_bytes = 4 * weights.v_b.n_cols, 4 * shape.latent
        copies = size != z_bytes
        x = w.room("values", n_heads * size) if copies else z
        jobs = w.per_head(self._values, x, size, o.plain, 4 * v)
        fused = o.q16 if v % 32 == 0 else Room(0, 0)
        context = w.tape.context(
            Value, N=w.rows, MERGE=attention.merge_task.address, ATTEND=contexts, Z=z.address,
            Z_STRIDE=z.stride, Z_BYTES=z_bytes, LATENT=weights.rank, JOBS=jobs, X_STRIDE=x.stride,
            COPY=int(copies), OUT_STRIDE=o.plain.stride, Q16=fused.address,
            Q16_STRIDE=fused.stride, COLUMNS=o.n_cols,
        )  # fmt: skip
        w.tape.add(row_tasks.value_task.address, context, n_heads)
        if o.q16.address and not fused.address:
            w.make_records(o)
        out = w.room("attended", 4 * weights.output.n_rows)
        w.linear(self._output, o, out)
        w.pending = out

    # --- many rows ----------------------------------------------------------------------------

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        pool, weights, eps = self.device.pool, self._weights, self.device.eps
        q, latent = self._first(cpu_rows.rms_norm(pool, m.x, weights.norm, eps))
        if self._q_b is not None and weights.q_norm is not None:
            (q,) = self._q_b(cpu_rows.rms_norm(pool, q, weights.q_norm, eps))
        q = q.reshape(len(m.x), weights.k_b.count, weights.nope + weights.rope)
        c = np.ascontiguousarray(latent[:, : weights.rank])
        c = cpu_rows.rms_norm(pool, c, weights.latent_norm, eps)
        k_rope = np.ascontiguousarray(latent[:, None, weights.rank :])
        cpu_rows.rope(pool, q[:, :, weights.nope :], m.cos, m.sin)
        cpu_rows.rope(pool, k_rope, m.cos, m.sin)
        heads = []
        for span, part in m.spans:
            rows = self.device.kv.rows(span.slot, self._layer_rows)
            rows.shape.store(rows.data[span.first : span.end], c[part], k_rope[part, 0])
            heads += [
                self._attend(q[part][a - span.first : b - span.first], rows, a, expanded)
                for a, b, expanded in pieces(span)
            ]
        (out,) = self._output(np.concatenate(heads))
        m.x += out

    def _attend(self, q: Array, rows: LayerRows, first: int, expanded: bool) -> Array:
        """Q (T, A, nope + rope) at positions first .. over cache rows -> (T, A * v)."""
        if expanded:
            return self._attend_expanded(q, rows, first)
        return self._attend_absorbed(q, rows, first)

    def _attend_absorbed(self, q: Array, rows: LayerRows, first: int) -> Array:
        weights, shape = self._weights, rows.shape
        n_tokens, n_heads = q.shape[:2]
        nope, rope = weights.nope, weights.rope
        heads = -(-n_heads // attention.HEADS) * attention.HEADS
        if (heads, shape.latent, shape.width) == (n_heads, weights.rank, weights.rank + rope):
            wide = np.empty((n_tokens, heads, shape.width), np.float32)
        else:
            wide = np.zeros((n_tokens, heads, shape.width), np.float32)
        self._keys(q[:, :, :nope], wide[:, :n_heads])
        wide[:, :n_heads, shape.latent : shape.latent + rope] = q[:, :, nope:]
        wide *= np.float32(weights.scale)
        z = np.empty((n_tokens, heads, shape.latent), np.float32)
        attention.attend(
            self.device.pool, wide, rows.data.ctypes.data, shape.row_bytes, shape.kind, first, z,
        )  # fmt: skip
        return self._values(z[:, :n_heads, : weights.rank]).reshape(n_tokens, -1)

    def _attend_expanded(self, q: Array, rows: LayerRows, first: int) -> Array:
        weights, shape = self._weights, rows.shape
        n_tokens, n_heads = q.shape[:2]
        nope, rope, v = weights.nope, weights.rope, weights.v_b.n_rows
        k_b = np.stack([self._keys.dense(h) for h in range(n_heads)])
        v_b = np.zeros((n_heads, -(-v // 16) * 16, weights.v_b.n_cols), np.float32)
        for h in range(n_heads):
            v_b[h, :v] = self._values.dense(h)
        padded_rows = -(-n_tokens // 4) * 4
        padded_nope = k_b.shape[2]
        wide = np.zeros((padded_rows, n_heads, padded_nope + shape.rope), np.float32)
        scale = np.float32(weights.scale)
        np.multiply(q[:, :, :nope], scale, out=wide[:n_tokens, :, :nope])
        k_rope = wide[:n_tokens, :, padded_nope : padded_nope + rope]
        np.multiply(q[:, :, nope:], scale, out=k_rope)
        z = np.empty((padded_rows, n_heads, v_b.shape[1]), np.float32)
        cache = rows.data.ctypes.data, shape.row_bytes, shape.kind, first + n_tokens
        attention_expanded.attend_expanded(
            self.device.pool, wide, k_b, v_b, *cache, shape.latent, first, z
        )
        return np.ascontiguousarray(z[:n_tokens, :, :v]).reshape(n_tokens, -1)


def pieces(span: Span) -> list[tuple[int, int, bool]]:
    """`Span.forms`, in pieces."""
    return [
        (at, min(at + step, b), expanded)
        for a, b, expanded in span.forms()
        for step in (EXPANDED_TOKENS if expanded else ABSORBED_TOKENS,)
        for at in range(a, b, step)
    ]
