"""Parallel drivers: one region runs any mix of types, through job records.

A region takes a table of jobs (`kernels.Job`) and cuts their rows into chunks, the pool's tasks.
Python is not entered in between, and results do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from quant.compiler.jit import inline, kernel, task
from quant.kernels import JOB_FIELDS, Job
from quant.run.activations import quantize_32
from quant.run.fields import I64, Fields, write
from quant.run.layer_ops import combine_row
from quant.run.pool import Pool
from quant.simd.floats import V_BYTES, load_v, silu_v, store_v
from quant.simd.vectors import call_kernel, f32, i64, put_f32, put_i64
from quant.tile.panels import Panel

(
    _FN, _W, _ROW_BYTES, _N_ROWS, _N_COLS, _X, _X_STRIDE, _N_TOKENS, _OUT, _OUT_STRIDE,
    _FN2, _W2, _ROW_BYTES2, _X2, _X_STRIDE2, _OUT_KIND, _ROW0, _INDEX, _INDEX2,
    _PANELS, _PANELS2,
) = (8 * int(f) for f in Job)  # fmt: skip
W, W2, X, OUT, N_TOKENS, INDEX, INDEX2 = (
    int(f) for f in (Job.W, Job.W2, Job.X, Job.OUT, Job.N_TOKENS, Job.INDEX, Job.INDEX2)
)
JOB_BYTES = 8 * JOB_FIELDS
JOB_ROOM = 192  # in a thread's scratch: whole cache lines


class Rows(Fields):
    """Fields of `rows_task`; other contexts of regions over jobs begin like it."""

    JOBS = I64
    CHUNK = I64  # rows of a task


class GateUp(Fields):
    """Fields of `gate_up_task`."""

    JOBS = I64
    CHUNK = I64
    SCRATCH = I64
    SCRATCH_BYTES = I64  # of a thread: `gate_up_scratch`


@inline
def find_chunk(context: int, index: int) -> tuple[int, int]:
    """(address of the job, first row) of a region's task; context: `Rows` or one like it."""
    job = i64(context + Rows.JOBS)
    chunk = i64(context + Rows.CHUNK)
    chunks = (i64(job + _N_ROWS) + chunk - 1) // chunk
    while index >= chunks:
        index -= chunks
        job += JOB_BYTES
        chunks = (i64(job + _N_ROWS) + chunk - 1) // chunk
    return job, index * chunk


@task
def rows_task(context: int, index: int, thread: int) -> None:
    """One chunk of rows of one job's kernel."""
    job, r0 = find_chunk(context, index)
    r1 = min(r0 + i64(context + Rows.CHUNK), i64(job + _N_ROWS))
    call_kernel(i64(job + _FN), job, r0, r1)


def run_jobs(pool: Pool, jobs: np.ndarray, chunk: int) -> None:
    """Every job's kernel over all its rows, `chunk` rows at a time."""
    context = write(Rows, JOBS=jobs.ctypes.data, CHUNK=chunk)
    pool.run(rows_task.address, context.ctypes.data, count_tasks(jobs, chunk))


def count_tasks(jobs: np.ndarray, chunk: int) -> int:
    """Tasks of a region over these jobs, `chunk` rows at a time."""
    return int(((jobs[:, Job.N_ROWS] + (chunk - 1)) // chunk).sum())


def make_panels(
    pool: Pool,
    panel: Panel,
    records: np.ndarray,
    n_cols: int,
    starts: np.ndarray,
    *,
    index: np.ndarray | None = None,
    few: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Panels for several matrices -> (their addresses (n,) int64, the memory they lie in).

    Matrix i has the tokens starts[i] .. starts[i + 1] - 1 of records (T, record_bytes), or those
    that lie index (int64) bytes from its beginning. A matrix with at most `few` tokens gets none.
    """
    n_tokens = np.diff(starts)
    n_tokens[n_tokens <= few] = 0
    sizes = panel.n_bytes(n_tokens, n_cols)
    room = np.empty(int(sizes.sum()) + 63, np.uint8)
    jobs = job_table(len(sizes))
    jobs[:, Job.OUT] = room.ctypes.data + -room.ctypes.data % 64 + np.cumsum(sizes) - sizes
    jobs[:, Job.KERNEL] = panel.address()
    jobs[:, Job.N_ROWS] = panel.n_blocks(n_tokens, n_cols)
    jobs[:, Job.N_COLS] = n_cols
    jobs[:, Job.N_TOKENS] = n_tokens
    jobs[:, Job.X] = records.ctypes.data
    jobs[:, Job.X_STRIDE] = records.strides[0]
    if index is None:
        jobs[:, Job.X] += starts[:-1] * records.strides[0]
    else:
        jobs[:, Job.INDEX] = index.ctypes.data + 8 * starts[:-1]
    run_jobs(pool, jobs, 1)
    return jobs[:, Job.OUT], room


@inline
def part_job(job: int, local: int, up: bool, out: int, width: int, r0: int) -> int:
    """Copy a job to `local` with its output in a (n_tokens, width) scratch; returns its kernel."""
    for f in range(JOB_FIELDS):
        put_i64(local + 8 * f, i64(job + 8 * f))
    put_i64(local + _OUT, out)
    put_i64(local + _OUT_STRIDE, 4 * width)
    put_i64(local + _ROW0, r0)
    if up:
        put_i64(local + _W, i64(job + _W2))
        put_i64(local + _ROW_BYTES, i64(job + _ROW_BYTES2))
        put_i64(local + _X, i64(job + _X2))
        put_i64(local + _X_STRIDE, i64(job + _X_STRIDE2))
        put_i64(local + _INDEX, i64(job + _INDEX2))
        put_i64(local + _PANELS, i64(job + _PANELS2))
    return i64(job + _FN2) if up else i64(job + _FN)


@task
def gate_up_task(context: int, index: int, thread: int) -> None:
    """H = silu(gate . x) * (up . x) for one chunk of one job, stored as its OUT_KIND says.

    context: `GateUp`. h of token t goes to OUT + t * OUT_STRIDE: a record, or float32 (kind 0).
    """
    chunk = i64(context + GateUp.CHUNK)
    local = i64(context + GateUp.SCRATCH) + thread * i64(context + GateUp.SCRATCH_BYTES)
    gate = local + JOB_ROOM
    job, r0 = find_chunk(context, index)
    n_rows = i64(job + _N_ROWS)
    kind = i64(job + _OUT_KIND)
    r1 = min(r0 + chunk, n_rows)
    n_tokens = i64(job + _N_TOKENS)
    up = gate + 4 * chunk * n_tokens
    fn = part_job(job, local, False, gate, chunk, r0)
    call_kernel(fn, local, r0, r1)
    fn = part_job(job, local, True, up, chunk, r0)
    call_kernel(fn, local, r0, r1)
    for t in range(n_tokens):
        g = gate + 4 * chunk * t
        u = up + 4 * chunk * t
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE)
        for r in range(0, 4 * (r1 - r0), V_BYTES):  # chunks are whole vectors
            store_v(g + r, silu_v(load_v(g + r)) * load_v(u + r))
        if kind:
            for r in range(0, r1 - r0, 32):
                quantize_32(g + 4 * r, n_rows, out, r0 + r, kind)
        else:
            for r in range(r1 - r0):
                put_f32(out + 4 * (r0 + r), f32(g + 4 * r))


def gate_up_scratch(chunk: int, n_tokens: int) -> int:
    """Bytes of scratch that a thread needs in `gate_up_task`."""
    return JOB_ROOM + -(-8 * n_tokens * chunk // 64) * 64


def run_gate_up(pool: Pool, jobs: np.ndarray, chunk: int) -> None:
    """The fused first half of gated MLPs; chunk: a multiple of 32 rows."""
    longest = int(jobs[:, Job.N_TOKENS].max())
    size = gate_up_scratch(chunk, longest)
    scratch = np.empty((pool.threads, size), np.uint8)
    context = write(
        GateUp, JOBS=jobs.ctypes.data, CHUNK=chunk, SCRATCH=scratch.ctypes.data, SCRATCH_BYTES=size
    )
    pool.run(gate_up_task.address, context.ctypes.data, count_tasks(jobs, chunk))


class Down(Fields):
    """Fields of `down_task`. A job's OUT counts from the thread's scratch."""

    JOBS = I64
    N_JOBS = I64
    CHUNK = I64  # rows of a task: columns of a slot in the scratch
    SCRATCH = I64
    SCRATCH_BYTES = I64  # of a thread
    SLOTS = I64  # (TOKENS, TOP_K) int64
    WEIGHTS = I64  # (TOKENS, TOP_K) float32
    TOP_K = I64
    TOKENS = I64
    OUT = I64
    OUT_STRIDE = I64


@task
def down_task(context: int, index: int, thread: int) -> None:
    """One chunk of rows of all jobs, and then these columns of all tokens' output.

    context: `Down`; see `combine_row`.
    """
    first, chunk = i64(context + Down.JOBS), i64(context + Down.CHUNK)
    r0 = index * chunk
    r1 = min(r0 + chunk, i64(first + _N_ROWS))
    local = i64(context + Down.SCRATCH) + thread * i64(context + Down.SCRATCH_BYTES)
    parts = local + JOB_ROOM
    for job in range(first, first + i64(context + Down.N_JOBS) * JOB_BYTES, JOB_BYTES):
        fn = part_job(job, local, False, parts + i64(job + _OUT), chunk, r0)
        call_kernel(fn, local, r0, r1)
    slots, weights = i64(context + Down.SLOTS), i64(context + Down.WEIGHTS)
    top_k = i64(context + Down.TOP_K)
    row = i64(context + Down.OUT) + 4 * r0
    for _ in range(i64(context + Down.TOKENS)):
        combine_row(parts, 4 * chunk, slots, weights, top_k, r1 - r0, row)
        slots += 8 * top_k
        weights += 4 * top_k
        row += i64(context + Down.OUT_STRIDE)


def run_down(
    pool: Pool,
    jobs: np.ndarray,
    chunk: int,
    slots: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """The second half of gated MLPs: out[t] += sum over k of weights[t, k] * slot slots[t, k].

    jobs: one per expert, with as many rows as `out` has columns; their OUT: 4 * chunk * the first
    slot. chunk: a multiple of 16. slots (T, K) int64; weights (T, K), out (T, rows) float32.
    """
    size = JOB_ROOM + -(-4 * chunk * slots.size // 64) * 64
    scratch = np.empty((pool.threads, size), np.uint8)
    context = write(
        Down, JOBS=jobs.ctypes.data, N_JOBS=len(jobs), CHUNK=chunk, SCRATCH=scratch.ctypes.data,
        SCRATCH_BYTES=size, SLOTS=slots.ctypes.data, WEIGHTS=weights.ctypes.data,
        TOP_K=slots.shape[1], TOKENS=len(out), OUT=out.ctypes.data, OUT_STRIDE=out.strides[0],
    )  # fmt: skip
    pool.run(down_task.address, context.ctypes.data, -(-out.shape[1] // chunk))


@kernel()
def gather_rows(job: int, ids: np.ndarray, out: int, out_stride: int) -> None:
    """Dequantise rows ids[i] to out + i * out_stride; job: a `dequantize` job, changed."""
    put_i64(job + _OUT_STRIDE, out_stride)
    for i in range(ids.size):
        put_i64(job + _OUT, out + i * out_stride)
        put_i64(job + _ROW0, ids[i])
        call_kernel(i64(job + _FN), job, ids[i], ids[i] + 1)


@kernel()
def expert_jobs(
    jobs: np.ndarray,
    template: np.ndarray,
    grow: np.ndarray,
    where: np.ndarray,
    starts: np.ndarray,
    used: int,
    index: int,
    index2: int,
) -> None:
    """Write one job per expert in use into jobs[:used].

    template: a job of slot 0. grow: what X and OUT grow by per slot. where (used, 1 or 2): address
    of each expert's W, or W and W2. index, index2: addresses of the slots' byte offsets into X and
    X2, or 0.
    """
    for i in range(used):
        jobs[i] = template
        slot = starts[i]
        jobs[i, W] = where[i, 0]
        if where.shape[1] > 1:
            jobs[i, W2] = where[i, 1]
        jobs[i, X] += slot * grow[0]
        jobs[i, N_TOKENS] = starts[i + 1] - slot
        jobs[i, OUT] += slot * grow[1]
        if index:
            jobs[i, INDEX] = index + 8 * slot
            jobs[i, INDEX2] = index2 + 8 * slot


def job_table(n_jobs: int) -> np.ndarray:
    """A zeroed (n_jobs, JOB_FIELDS) int64 table."""
    return np.zeros((n_jobs, JOB_FIELDS), np.int64)
