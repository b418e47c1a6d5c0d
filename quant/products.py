"""Plain functions on arrays: dequantise, matrix-vector, matrix-matrix of one quantised matrix.

The engine works with job tables directly; these are for everybody else (tests, tools, users).
"""

from __future__ import annotations

import contextlib
from typing import Literal

import numpy as np

from quant.ggml import BLOCK, GGMLType, QuantError, row_bytes
from quant.kernels import Job
from quant.quant_type import Kind, for_records
from quant.registry import quant_type
from quant.run import driver
from quant.run.activations import quantize
from quant.run.pool import Pool
from quant.tile.panels import Panel


def _rows(t: GGMLType, data: np.ndarray, n_cols: int) -> np.ndarray:
    expected = row_bytes(t, n_cols)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != expected:
        raise QuantError(
            f"{t.name}: {n_cols} columns need rows of {expected} bytes (uint8), got "
            f"{data.dtype} {data.shape}"
        )
    return np.ascontiguousarray(data)


def _job(kind: Kind, t: GGMLType, data: np.ndarray, n_cols: int) -> np.ndarray:
    job = driver.job_table(1)
    job[0, Job.KERNEL] = quant_type(t).address(kind)
    job[0, Job.W] = data.ctypes.data
    job[0, Job.ROW_BYTES] = data.shape[1]
    job[0, Job.N_ROWS] = data.shape[0]
    job[0, Job.N_COLS] = n_cols
    return job


def _run(job: np.ndarray, chunk: int, threads: int) -> None:
    with contextlib.closing(Pool(threads)) as pool:
        driver.run_jobs(pool, job, chunk)


def dequantize(t: GGMLType, data: np.ndarray, n_cols: int, *, threads: int = 1) -> np.ndarray:
    """data (rows, row_bytes) uint8 -> (rows, n_cols) float32, bit-equal to libggml's."""
    data = _rows(t, data, n_cols)
    if n_cols % 8 and BLOCK[t].size == 1:  # kernels go by vectors of 8
        return _floats(t, data)
    out = np.empty((len(data), n_cols), np.float32)
    job = _job("dequantize", t, data, n_cols)
    job[0, Job.OUT] = out.ctypes.data
    job[0, Job.OUT_STRIDE] = 4 * n_cols
    _run(job, 16, threads)
    return out


def _floats(t: GGMLType, data: np.ndarray) -> np.ndarray:
    """F32, F16 or BF16 rows -> float32, of any length."""
    if t == GGMLType.F32:
        return data.view(np.float32)
    if t == GGMLType.F16:
        return data.view(np.float16).astype(np.float32)
    return (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def matmul(
    t: GGMLType, data: np.ndarray, x: np.ndarray, *, planes: int = 1, threads: int = 1
) -> np.ndarray:
    """data (rows, row_bytes) uint8, x (tokens, n_cols) float32 -> (tokens, rows) float32.

    x is rounded to Q8 (planes 1) or Q16 (2) first unless the type is a float one. A token's row
    does not depend on the other tokens: it equals `matvec` of it bit for bit.
    """
    data = _rows(t, data, x.shape[1])
    kind: Literal["matvec", "matmul"] = "matvec" if len(x) == 1 else "matmul"
    job = _job(for_records(kind, planes), t, data, x.shape[1])
    quant = quant_type(t)
    if quant.is_float:
        return _product(job, np.ascontiguousarray(x, np.float32), threads)
    records = quantize(x, planes)
    panel = quant.panel(planes) if kind == "matmul" else None
    return _product(job, records, threads, panel)


def matvec(
    t: GGMLType, data: np.ndarray, x: np.ndarray, *, planes: int = 1, threads: int = 1
) -> np.ndarray:
    """data (rows, row_bytes) uint8, x (n_cols,) float32 -> (rows,) float32; see `matmul`."""
    return matmul(t, data, x[None], planes=planes, threads=threads)[0]


def matmul_f32(t: GGMLType, data: np.ndarray, x: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """As `matmul`, with x taken as it is."""
    data = _rows(t, data, x.shape[1])
    job = _job("matvec_f32" if len(x) == 1 else "matmul_f32", t, data, x.shape[1])
    return _product(job, np.ascontiguousarray(x, np.float32), threads)


def _product(
    job: np.ndarray, x: np.ndarray, threads: int, panel: Panel | None = None
) -> np.ndarray:
    out = np.empty((len(x), int(job[0, Job.N_ROWS])), np.float32)
    job[0, Job.X] = x.ctypes.data
    job[0, Job.X_STRIDE] = x.strides[0]
    job[0, Job.N_TOKENS] = len(x)
    job[0, Job.OUT] = out.ctypes.data
    job[0, Job.OUT_STRIDE] = out.strides[0]
    with contextlib.closing(Pool(threads)) as pool:
        if panel is not None:
            n_cols, all_ = int(job[0, Job.N_COLS]), np.array([0, len(x)])
            job[:, Job.PANELS], _room = driver.make_panels(pool, panel, x, n_cols, all_)
        driver.run_jobs(pool, job, 16)
    return out
