"""The small operations between matrix products, one row (a token of a pass) at a time.

Each is over the same source as the operation of `layer_ops` that many tokens go through: a tape and
a prompt agree bit for bit. A context's `..._STRIDE` fields are bytes from row to row.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from quant.compiler.jit import inline, task
from quant.kernels import Job
from quant.run import attention, layer_ops
from quant.run.activations import quantize_32
from quant.run.attention import Attend
from quant.run.cache_rows import store_row
from quant.run.fields import F64, I64, Fields, size
from quant.run.tape import Pass, Row
from quant.simd.vectors import (
    as_pointer,
    call_kernel,
    f32,
    f64,
    i64,
    load_f32,
    put_f32,
    put_i64,
    splat_f32,
    store_f32,
)

ROW_BYTES = size(Row)
JOB_BYTES = 8 * len(Job)
_X, _OUT, _ROW0, _N_ROWS, _KERNEL = (
    8 * int(f) for f in (Job.X, Job.OUT, Job.OUT_ROW0, Job.N_ROWS, Job.KERNEL)
)
ATTEND_BYTES = size(Attend)

one_token = inline(attention.task_shape)


@inline
def row_of(state: int, row: int) -> int:
    """Address of a row's record; state: of the pass."""
    return i64(state + Pass.ROWS) + ROW_BYTES * row


class Embed(Fields):
    """Fields of `embed_task`."""

    PASS = I64
    JOB = I64  # a `dequantize` job, changed
    X = I64
    X_STRIDE = I64
    N = I64  # rows


@task
def embed_task(context: int, index: int, thread: int) -> None:
    """The tokens' rows of the embedding. context: `Embed`."""
    job = i64(context + Embed.JOB)
    for row in range(i64(context + Embed.N)):
        token = i64(row_of(i64(context + Embed.PASS), row) + Row.TOKEN)
        if token >= 0:  # else x has been given
            put_i64(job + _ROW0, token)
            put_i64(job + _OUT, i64(context + Embed.X) + i64(context + Embed.X_STRIDE) * row)
            call_kernel(i64(job + _KERNEL), job, token, token + 1)


class Records(Fields):
    """Fields of `records_task`, and of `norm_task`'s output."""

    X = I64  # (COLUMNS,) float32
    X_STRIDE = I64
    COLUMNS = I64
    Q8 = I64  # 0, or where the record goes
    Q8_STRIDE = I64
    Q16 = I64
    Q16_STRIDE = I64


@inline
def make_records(context: int, row: int) -> None:
    """The records of one row; none where the address is 0."""
    x = i64(context + Records.X) + i64(context + Records.X_STRIDE) * row
    n = i64(context + Records.COLUMNS)
    for planes in range(1, 3):
        at = context + (Records.Q8 if planes == 1 else Records.Q16)
        if i64(at):
            record = i64(at) + i64(at + 8) * row
            for c in range(0, n, 32):
                quantize_32(x + 4 * c, n, record, c, planes)


@task
def records_task(context: int, row: int, thread: int) -> None:
    """context: `Records`."""
    make_records(context, row)


class Norm(Fields):
    """Fields of `norm_task`."""

    X = I64  # (N,) float32
    X_STRIDE = I64
    N = I64
    WEIGHT = I64
    EPS = F64
    ADD = I64  # 0, or (N,) float32 that x grows by first
    ADD_STRIDE = I64
    OUT = I64  # `Records`: x normalised; columns beyond N stay as they are (zero)


@task
def norm_task(context: int, row: int, thread: int) -> None:
    """X += add; out = rms_norm(x); records of out. context: `Norm`."""
    x = i64(context + Norm.X) + i64(context + Norm.X_STRIDE) * row
    n, add, out = i64(context + Norm.N), i64(context + Norm.ADD), i64(context + Norm.OUT)
    if add:
        a = carray(as_pointer(x), (n,), np.float32)
        b = carray(as_pointer(add + i64(context + Norm.ADD_STRIDE) * row), (n,), np.float32)
        for i in range(n):
            a[i] += b[i]
    into = i64(out + Records.X) + i64(out + Records.X_STRIDE) * row
    layer_ops.norm_row(x, i64(context + Norm.WEIGHT), n, f64(context + Norm.EPS), into)
    make_records(out, row)


class Add(Fields):
    """Fields of `add_task`."""

    X = I64  # (N,) float32
    X_STRIDE = I64
    N = I64
    ADD = I64
    ADD_STRIDE = I64


@task
def add_task(context: int, row: int, thread: int) -> None:
    """X += add. context: `Add`."""
    n = i64(context + Add.N)
    x = i64(context + Add.X) + i64(context + Add.X_STRIDE) * row
    add = i64(context + Add.ADD) + i64(context + Add.ADD_STRIDE) * row
    a = carray(as_pointer(x), (n,), np.float32)
    b = carray(as_pointer(add), (n,), np.float32)
    for i in range(n):
        a[i] += b[i]


class Begin(Fields):
    """Fields of `begin_task`."""

    PASS = I64
    ATTEND = I64  # `attention.Attend` of each row: what depends on the position is set
    ROWS = I64
    THREADS = I64
    COUNTS = I64  # (ROWS,) int64: tasks of each row's attention, written
    TOTAL = I64  # their sum, written


@task
def begin_task(context: int, index: int, thread: int) -> None:
    """What all layers' attention shares. context: `Begin`."""
    state = i64(context + Begin.PASS)
    total = 0
    for row in range(i64(context + Begin.ROWS)):
        attend = i64(context + Begin.ATTEND) + ATTEND_BYTES * row
        record = row_of(state, row)
        position = i64(record + Row.POSITION)
        put_i64(attend + Attend.ROW_BYTES, i64(record + Row.ROW_BYTES))
        put_i64(attend + Attend.KIND, i64(record + Row.KIND))
        put_i64(attend + Attend.FIRST, position)
        n_heads = i64(attend + Attend.N_HEADS)
        strands = min(attention.STRANDS, position // attention.SPLIT + 1)
        heads, _ = one_token(1, n_heads, strands, i64(context + Begin.THREADS))
        put_i64(attend + Attend.TASK_HEADS, heads)
        put_i64(attend + Attend.STRANDS, strands)
        count = (n_heads + heads - 1) // heads * strands
        put_i64(i64(context + Begin.COUNTS) + 8 * row, count)
        total += count
    put_i64(i64(context + Begin.TOTAL), total)


class Latent(Fields):
    """Fields of `latent_task`."""

    PASS = I64
    LAYER = I64
    X = I64  # [c: RANK | k_rope: ROPE] float32
    X_STRIDE = I64
    RANK = I64
    ROPE = I64
    WEIGHT = I64
    EPS = F64
    ROW = I64  # scratch (WIDTH,) float32, zero where c and k_rope do not reach
    ROW_STRIDE = I64
    ROPE_AT = I64  # element of the row where k_rope begins
    WIDTH = I64  # elements of a cache row, a multiple of 16 like ROPE_AT
    ATTEND = I64  # `attention.Attend` of each row: CACHE is set


@task
def latent_task(context: int, index: int, thread: int) -> None:
    """Normalise c, rotate k_rope, append both to the row's cache. context: `Latent`."""
    state, rank, rope = (
        i64(context + Latent.PASS),
        i64(context + Latent.RANK),
        i64(context + Latent.ROPE),
    )
    record = row_of(state, index)
    x = i64(context + Latent.X) + i64(context + Latent.X_STRIDE) * index
    row = i64(context + Latent.ROW) + i64(context + Latent.ROW_STRIDE) * index
    layer_ops.norm_row(x, i64(context + Latent.WEIGHT), rank, f64(context + Latent.EPS), row)
    k_rope = row + 4 * i64(context + Latent.ROPE_AT)
    for i in range(rope):
        put_f32(k_rope + 4 * i, f32(x + 4 * (rank + i)))
    _rotate(k_rope, rope, record)
    cache = i64(record + Row.CACHE) + i64(context + Latent.LAYER) * i64(record + Row.LAYER_BYTES)
    at = cache + i64(record + Row.POSITION) * i64(record + Row.ROW_BYTES)
    rope_at = i64(context + Latent.ROPE_AT)
    store_row(i64(record + Row.KIND), row, rope_at, i64(context + Latent.WIDTH) - rope_at, at)
    put_i64(i64(context + Latent.ATTEND) + ATTEND_BYTES * index + Attend.CACHE, cache)


@inline
def _rotate(x: int, n: int, record: int) -> None:
    """Rotary embedding of n float32 at x, in place; record: the token's `Row`."""
    layer_ops.rotate_heads(x, 0, 1, i64(record + Row.COS), i64(record + Row.SIN), n // 2)


class Query(Fields):
    """Fields of `query_task`."""

    PASS = I64
    N = I64  # rows
    Q = I64  # (heads, NOPE + ROPE) float32
    Q_STRIDE = I64
    NOPE = I64
    ROPE = I64
    JOBS = I64  # k_b of each head; X: (N, columns) float32, zero beyond NOPE; OUT: WIDE
    X_STRIDE = I64
    WIDE = I64  # (heads, WIDTH) float32, zero where neither part reaches
    WIDE_STRIDE = I64
    WIDTH = I64
    ROPE_AT = I64
    SCALE = F64


@task
def query_task(context: int, h: int, thread: int) -> None:
    """One head's queries for the latent cache: k_b . nope part, rotated rope part, both scaled."""
    nope, rope = i64(context + Query.NOPE), i64(context + Query.ROPE)
    job = i64(context + Query.JOBS) + JOB_BYTES * h
    width = i64(context + Query.WIDTH)
    rows = i64(context + Query.N)
    q = i64(context + Query.Q) + 4 * h * (nope + rope)
    for row in range(rows):
        x = i64(job + _X) + i64(context + Query.X_STRIDE) * row
        at = q + i64(context + Query.Q_STRIDE) * row
        for i in range(nope):
            put_f32(x + 4 * i, f32(at + 4 * i))
    call_kernel(i64(job + _KERNEL), job, 0, i64(job + _N_ROWS))
    scale = splat_f32(np.float32(f64(context + Query.SCALE)))
    for row in range(rows):
        at = q + i64(context + Query.Q_STRIDE) * row + 4 * nope
        wide = i64(context + Query.WIDE) + i64(context + Query.WIDE_STRIDE) * row + 4 * width * h
        out = wide + 4 * i64(context + Query.ROPE_AT)
        for i in range(rope):
            put_f32(out + 4 * i, f32(at + 4 * i))
        _rotate(out, rope, row_of(i64(context + Query.PASS), row))
        for i in range(0, 4 * width, 32):
            store_f32(wide + i, load_f32(wide + i) * scale)


class AttendRows(Fields):
    """Fields of `attend_rows_task`."""

    TASK = I64  # address of `attention.attend_task`
    ATTEND = I64  # `attention.Attend` of each row
    COUNTS = I64  # (rows,) int64: tasks of each


@task
def attend_rows_task(context: int, index: int, thread: int) -> None:
    """One task of one row's attention. context: `AttendRows`."""
    attend, counts = i64(context + AttendRows.ATTEND), i64(context + AttendRows.COUNTS)
    while index >= i64(counts):
        index -= i64(counts)
        counts += 8
        attend += ATTEND_BYTES
    call_kernel(i64(context + AttendRows.TASK), attend, index, thread)


class Value(Fields):
    """Fields of `value_task`."""

    N = I64  # rows
    MERGE = I64  # address of `attention.merge_task`
    ATTEND = I64  # `attention.Attend` of each row
    Z = I64  # (heads, Z_BYTES) float32, what attention leaves
    Z_STRIDE = I64
    Z_BYTES = I64
    LATENT = I64
    JOBS = I64  # v_b of each head; X: (N, columns) float32, zero beyond LATENT
    X_STRIDE = I64
    COPY = I64  # whether z has to be copied to X, for rows differ in length
    OUT_STRIDE = I64
    Q16 = I64  # 0, or the records of all heads' outputs, if a head's are whole groups of 32
    Q16_STRIDE = I64
    COLUMNS = I64  # of a record


@task
def value_task(context: int, h: int, thread: int) -> None:
    """One head's outputs: v_b . z, and its part of the records. context: `Value`."""
    rows = i64(context + Value.N)
    job = i64(context + Value.JOBS) + JOB_BYTES * h
    for row in range(rows):
        attend = i64(context + Value.ATTEND) + ATTEND_BYTES * row
        call_kernel(i64(context + Value.MERGE), attend, h, thread)
        if i64(context + Value.COPY):
            z = i64(context + Value.Z) + i64(context + Value.Z_STRIDE) * row
            z += i64(context + Value.Z_BYTES) * h
            x = i64(job + _X) + i64(context + Value.X_STRIDE) * row
            for i in range(i64(context + Value.LATENT)):
                put_f32(x + 4 * i, f32(z + 4 * i))
    n = i64(job + _N_ROWS)
    call_kernel(i64(job + _KERNEL), job, 0, n)
    if i64(context + Value.Q16):
        columns = i64(context + Value.COLUMNS)
        for row in range(rows):
            out = i64(job + _OUT) + i64(context + Value.OUT_STRIDE) * row
            record = i64(context + Value.Q16) + i64(context + Value.Q16_STRIDE) * row
            for i in range(0, n, 32):
                quantize_32(out + 4 * i, columns, record, h * n + i, 2)
