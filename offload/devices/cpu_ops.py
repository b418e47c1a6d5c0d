"""Ops on the CPU: job tables for the Numba kernels of quant/.

One token goes through `matvec`, several through `matmul`; the two agree bit for bit, so prefill and
decoding do, whatever the batch. (Anything less would not stay small: a difference of 1e-7 flips the
int8 rounding of an activation here and there, which a few layers on is as large as the rounding.)

Routed experts take Q8 activations, all else Q16: see quant/run/activations.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from offload.devices.base import (
    FeedForward,
    GatedMLP,
    Linear,
    PerHead,
    Routing,
    Stack,
)
from offload.devices.cpu_attention import EXACT_CONTEXT, attend
from offload.devices.cpu_jobs import Panels, chunk_rows, fill_job, padded, records, tile_rows
from offload.devices.cpu_mlp import CpuFeedForward
from offload.devices.cpu_tape import CpuDecoder
from offload.kv_cache import KVCache
from offload.weights import Matrix
from quant.ggml import GGMLType
from quant.kernels import Job
from quant.packed.registry import PackedType
from quant.quant_type import Kind, QuantType, for_records
from quant.run import attention_expanded, driver, layer_ops
from quant.run.pool import Pool
from quant.tile.panels import Panel

Array = np.ndarray
RECORDS_OF_MANY: dict[Kind, int] = {"matmul": 1, "matmul_q16": 2}  # planes


class CpuOps:
    """Operations on the CPU with a fixed number of threads; one caller at a time."""

    def __init__(self, threads: int, cpus: Sequence[frozenset[int]] | None = None) -> None:
        self.pool = Pool(threads, cpus)
        self.bytes_read = 0
        self.kernels: dict[tuple[GGMLType, int, Kind], QuantType | PackedType] = {}
        self._panels: set[Panel] = set()

    def need(self, kind: Kind, *matrices: Matrix) -> None:
        """Note a kernel that these matrices will run."""
        for m in matrices:
            self.kernels[m.quant.ggml_type, m.group_rows, m.quant.kernel_kind(kind)] = m.quant
            if kind in RECORDS_OF_MANY and not m.quant.is_float:
                planes = RECORDS_OF_MANY[kind]
                self._panels.add(m.quant.panel(planes))
                few = m.quant.kernel_for(for_records("matvec", planes), m.quant.few)
                self.kernels[m.quant.ggml_type, m.group_rows, few] = m.quant

    def compile_steps(self, context: int) -> list[Callable[[], object]]:
        """What compiles the kernels noted so far, one call each; and long prompts' attention."""
        steps: list[Callable[[], object]] = [
            partial(quant.address, kind) for (*_, kind), quant in self.kernels.items()
        ]
        steps += [panel.address for panel in self._panels]
        if context > EXACT_CONTEXT:
            steps.append(lambda: attention_expanded.expanded_task.address)
        return steps

    def run(self, jobs: Array, chunk: int) -> None:
        """All jobs' kernels over all their rows."""
        driver.run_jobs(self.pool, jobs, chunk)

    def close(self) -> None:
        """End the threads."""
        self.pool.close()

    def linear(self, *matrices: Matrix) -> Linear:
        """Prepare matrices that share their input."""
        return CpuLinear(self, matrices)

    def per_head(self, matrix: Matrix) -> PerHead:
        """Prepare one matrix per head."""
        return CpuPerHead(self, matrix)

    def feed_forward(self, routed: GatedMLP | None, shared: GatedMLP | None) -> FeedForward:
        """Prepare a dense MLP or routed experts."""
        return CpuFeedForward(self, routed, shared)

    def decoder(self, stack: Stack) -> CpuDecoder:
        """The layers as a tape."""
        self.need("dequantize", stack.embedding)
        return CpuDecoder(self, stack)

    def embed(self, table: Matrix, ids: Array) -> Array:
        """Rows of the table."""
        self.pool.settle()
        out = np.empty((len(ids), table.n_cols), np.float32)
        job = driver.job_table(1)[0]
        fill_job(job, table, "dequantize")
        driver.gather_rows(job.ctypes.data, ids, out.ctypes.data, out.strides[0])
        self.need("dequantize", table)
        self.bytes_read += len(ids) * table.row_bytes
        return np.ascontiguousarray(out[:, : table.used_cols])

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Root-mean-square norm."""
        out = np.empty(x.shape, np.float32)
        fields = x.ctypes.data, x.strides[0], weight.ctypes.data, weight.size
        context = np.array((*fields, 0, out.ctypes.data, out.strides[0]), np.int64)
        context[4:5].view(np.float64)[0] = eps
        self.pool.run(layer_ops.rms_norm_task.address, context.ctypes.data, len(x))
        return out

    def rope(self, x: Array, cos: Array, sin: Array) -> None:
        """Rotate adjacent pairs in place."""
        cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
        fields = x.ctypes.data, x.strides[0], x.strides[1], x.shape[1]
        context = np.array((*fields, cos.ctypes.data, sin.ctypes.data, cos.shape[1]), np.int64)
        self.pool.run(layer_ops.rope_task.address, context.ctypes.data, len(x))

    def attend(
        self,
        q: Array,
        k_b: PerHead,
        v_b: PerHead,
        kv: KVCache,
        layer: int,
        first: int,
        scale: float,
    ) -> Array:
        """Absorbed or expanded, whichever needs less arithmetic."""
        return attend(self.pool, q, k_b, v_b, kv, layer, first, scale)

    def route(
        self,
        logits: Array,
        bias: Array,
        top_k: int,
        *,
        sigmoid: bool,
        groups: tuple[int, int],
        normalise: bool,
        scale: float,
    ) -> Routing:
        """Choose experts."""
        ids = np.empty((len(logits), top_k), np.int64)
        weights = np.empty((len(logits), top_k), np.float32)
        layer_ops.route(logits, bias, sigmoid, *groups, normalise, scale, ids, weights)
        return Routing(expert_ids=ids, weights=weights)


class CpuLinear:
    """Matrices that share their input; the job tables are written once."""

    def __init__(self, ops: CpuOps, matrices: tuple[Matrix, ...]) -> None:
        self._ops = ops
        self.matrices = matrices
        self._n_cols = max(m.n_cols for m in matrices)
        self._chunk = max(chunk_rows(m.row_bytes) for m in matrices)
        self._chunk_of_many = tile_rows(sum(m.n_rows for m in matrices), ops.pool.threads)
        self._rounds = any(not m.quant.is_float for m in matrices)
        self._floats = any(m.quant.is_float for m in matrices)
        ops.need("matvec_q16", *matrices)
        ops.need("matmul_q16", *matrices)
        self._one: Array | None = None
        self._many: Array | None = None

    def jobs(self, kind: Kind) -> Array:
        """New jobs, one per matrix, without inputs and outputs."""
        jobs = driver.job_table(len(self.matrices))
        for job, matrix in zip(jobs, self.matrices, strict=True):
            fill_job(job, matrix, kind)
        return jobs

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """X (T, n) -> one (T, rows) per matrix."""
        n_tokens = len(x)
        x = padded(x, self._n_cols)
        if n_tokens == 1:
            jobs = self._one = self.jobs("matvec_q16") if self._one is None else self._one
        else:
            jobs = self._many = self.jobs("matmul_q16") if self._many is None else self._many
        pool = self._ops.pool
        rounded = records(pool, x, 2) if self._rounds else x
        outs = []
        panels = None if n_tokens == 1 else Panels(pool, rounded, np.array([0, n_tokens]))
        for i, (job, matrix) in enumerate(zip(jobs, self.matrices, strict=True)):
            source = x if matrix.quant.is_float else rounded
            out = np.empty((n_tokens, matrix.n_rows), np.float32)
            outs.append(out)
            job[Job.X] = source.ctypes.data
            job[Job.X_STRIDE] = source.strides[0]
            job[Job.N_TOKENS] = n_tokens
            job[Job.OUT] = out.ctypes.data
            job[Job.OUT_STRIDE] = out.strides[0]
            if panels is not None:
                panels.fill(jobs[i : i + 1], matrix, 2)
            self._ops.bytes_read += matrix.n_bytes
        self._ops.run(jobs, self._chunk if n_tokens == 1 else self._chunk_of_many)
        return tuple(outs)


class CpuPerHead:
    """One matrix per head, float32 activations."""

    def __init__(self, ops: CpuOps, matrix: Matrix) -> None:
        self._ops = ops
        self.matrix = matrix
        ops.need("matvec_f32", matrix)
        ops.need("matmul_f32", matrix)
        self._heads: Array = np.arange(matrix.count, dtype=np.int64)
        self._one: Array | None = None
        self._many: Array | None = None

    def jobs(self, kind: Kind = "matvec_f32") -> Array:
        """New jobs, one per head, without inputs and outputs."""
        jobs = driver.job_table(self.matrix.count)
        for job in jobs:
            fill_job(job, self.matrix, kind)
        jobs[:, Job.W] += self._heads * self.matrix.stride
        return jobs

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """X (T, A, n), may be strided -> out (T, A, at least rows), may be strided."""
        m = self.matrix
        if len(x) == 1:
            jobs = self._one = self.jobs("matvec_f32") if self._one is None else self._one
        else:
            jobs = self._many = self.jobs("matmul_f32") if self._many is None else self._many
        if x.shape[2] != m.n_cols or x.strides[2] != 4:
            wide = np.zeros((*x.shape[:2], m.n_cols), np.float32)
            wide[:, :, : x.shape[2]] = x
            x = wide
        if out is None:
            out = np.empty((len(x), m.count, m.n_rows), np.float32)
        jobs[:, Job.X] = x.ctypes.data + self._heads * x.strides[1]
        jobs[:, Job.X_STRIDE] = x.strides[0]
        jobs[:, Job.N_TOKENS] = len(x)
        jobs[:, Job.OUT] = out.ctypes.data + self._heads * out.strides[1]
        jobs[:, Job.OUT_STRIDE] = out.strides[0]
        self._ops.bytes_read += m.count * m.n_bytes
        self._ops.run(jobs, m.n_rows)
        return out

    def dense(self, head: int) -> Array:
        """The matrix of one head, dequantised: (rows, n_cols) float32."""
        m = self.matrix
        out = np.empty((m.n_rows, m.n_cols), np.float32)
        job = driver.job_table(1)
        fill_job(job[0], m, "dequantize")
        job[0, Job.W] += head * m.stride
        job[0, Job.OUT] = out.ctypes.data
        job[0, Job.OUT_STRIDE] = out.strides[0]
        self._ops.run(job, m.n_rows)
        return out
