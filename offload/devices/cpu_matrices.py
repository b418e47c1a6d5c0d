"""Matrices on the CPU: job tables for the kernels of quant/, for a few rows and for many.

One row goes through `matvec`, a few through kernels that decode weights once for all of them, many
through `matmul`; all agree bit for bit, so prefill and decoding do, whatever the batch. (Anything
less would not stay small: a difference of 1e-7 flips the int8 rounding of an activation here and
there, which a few layers on is as large as the rounding.)

Routed experts take Q8 activations, all else Q16: see quant/run/activations.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offload.devices.cpu_jobs import Panels, chunk_rows, fill_job, padded, records, tile_rows
from offload.weights import Matrix
from quant.kernels import Job
from quant.quant_type import Kind
from quant.run import driver

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice

Array = np.ndarray


class Linear:
    """Matrices that share their input."""

    def __init__(self, device: CpuDevice, *matrices: Matrix) -> None:
        self._device = device
        self.matrices = matrices
        self._n_cols = max(m.n_cols for m in matrices)
        self._chunk = max(chunk_rows(m.row_bytes) for m in matrices)
        self._chunk_of_many = tile_rows(sum(m.n_rows for m in matrices), device.pool.threads)
        self._rounds = any(not m.quant.is_float for m in matrices)
        self.n_bytes = sum(m.n_bytes for m in matrices)
        device.need_few("matvec_q16", *matrices)
        device.need("matmul_q16", *matrices)
        self._tables: dict[Kind, Array] = {}

    def jobs(self, rows: int) -> Array:
        """New jobs for a few rows, one per matrix, without inputs and outputs."""
        jobs = driver.job_table(len(self.matrices))
        for job, matrix in zip(jobs, self.matrices, strict=True):
            fill_job(job, matrix, matrix.quant.kernel_for("matvec_q16", rows))
        return jobs

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """X (T, n) -> one (T, rows) per matrix; T of any size."""
        n_tokens = len(x)
        x = padded(x, self._n_cols)
        kind: Kind = "matvec_q16" if n_tokens == 1 else "matmul_q16"
        if kind not in self._tables:
            self._tables[kind] = driver.job_table(len(self.matrices))
            for job, matrix in zip(self._tables[kind], self.matrices, strict=True):
                fill_job(job, matrix, kind)
        jobs = self._tables[kind]
        pool = self._device.pool
        rounded = records(pool, x, 2) if self._rounds else x
        outs = []
        panels = None if n_tokens == 1 else Panels(pool, rounded, np.array([0, n_tokens]))
        for i, (job, matrix) in enumerate(zip(jobs, self.matrices, strict=True)):
            source = x if matrix.quant.is_float else rounded
            out = np.empty((n_tokens, matrix.n_rows), np.float32)
            outs.append(out)
            job[Job.KERNEL] = matrix.quant.address(kind)
            job[Job.X] = source.ctypes.data
            job[Job.X_STRIDE] = source.strides[0]
            job[Job.N_TOKENS] = n_tokens
            job[Job.OUT] = out.ctypes.data
            job[Job.OUT_STRIDE] = out.strides[0]
            if panels is not None:
                panels.fill(jobs[i : i + 1], matrix, 2)
        self._device.traffic.read += self.n_bytes
        self._device.run(jobs, self._chunk if n_tokens == 1 else self._chunk_of_many)
        return tuple(outs)


class PerHead:
    """One matrix per head; activations are float32, not rounded."""

    def __init__(self, device: CpuDevice, matrix: Matrix) -> None:
        self._device = device
        self.matrix = matrix
        self.n_bytes = matrix.count * matrix.n_bytes
        device.need_few("matvec_f32", matrix)
        device.need("matmul_f32", matrix)
        self._heads: Array = np.arange(matrix.count, dtype=np.int64)
        self._tables: dict[Kind, Array] = {}

    def jobs(self, rows: int) -> Array:
        """New jobs for a few rows, one per head, without inputs and outputs."""
        return self._jobs(self.matrix.quant.kernel_for("matvec_f32", rows))

    def _jobs(self, kind: Kind) -> Array:
        jobs = driver.job_table(self.matrix.count)
        for job in jobs:
            fill_job(job, self.matrix, kind)
        jobs[:, Job.W] += self._heads * self.matrix.stride
        return jobs

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """X (T, A, n), may be strided -> out (T, A, at least rows), may be strided."""
        m = self.matrix
        kind: Kind = "matvec_f32" if len(x) == 1 else "matmul_f32"
        if kind not in self._tables:
            self._tables[kind] = self._jobs(kind)
        jobs = self._tables[kind]
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
        self._device.traffic.read += self.n_bytes
        self._device.run(jobs, m.n_rows)
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
        self._device.run(job, m.n_rows)
        return out
