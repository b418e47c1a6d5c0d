"""A tape: a table of steps that one native call plays, so that a token is decoded without Python.

    steps (n, 4) int64:  | FN: task(context, i, thread) | CONTEXT | COUNT: of tasks | COUNT_AT |

COUNT_AT is 0, or the address of a count that an earlier step sets. A step with one task runs on the
caller's thread; others are a parallel region of the pool. The tasks below are the small operations
between matrix products, each over the same source as the operation of `layer_ops` that it stands
for: a tape and single operations agree bit for bit. What differs from token to token is in one
`State` record that all contexts point to.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from quant.compiler.jit import inline, kernel, task
from quant.kernels import Job
from quant.run import attention, layer_ops
from quant.run.activations import quantize_32
from quant.run.attention import Attend
from quant.run.cache_rows import store_row
from quant.run.pool import run_region
from quant.simd.vectors import (
    I8,
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

STEP_FIELDS = 4


class State(IntEnum):
    """What changes from token to token (int64 each)."""

    TOKEN = 0
    POSITION = 1
    CACHE = 2  # address of layer 0, position 0 of the latent cache
    LAYER_BYTES = 3  # from layer to layer of the cache
    ROW_BYTES = 4  # from position to position
    KIND = 5  # of rows, a RowKind
    COS = 6  # address of the position's rope.dim / 2 float32
    SIN = 7
    FORCED = 8  # 0, or address of (layers, K) int64: experts to run instead of the router's choice


(_TOKEN, _POSITION, _CACHE, _LAYER_BYTES, _ROW_BYTES, _KIND, _COS, _SIN, _FORCED) = (
    8 * int(f) for f in State
)
_X, _OUT, _W, _ROW0, _W2, _N_ROWS = (
    8 * int(f) for f in (Job.X, Job.OUT, Job.W, Job.OUT_ROW0, Job.W2, Job.N_ROWS)
)
_KERNEL = 8 * int(Job.KERNEL)
(
    _ATTEND_CACHE, _ATTEND_ROW_BYTES, _ATTEND_KIND, _ATTEND_FIRST, _ATTEND_HEADS,
    _ATTEND_TASK_HEADS, _ATTEND_STRANDS,
) = (
    8 * int(f)
    for f in (
        Attend.CACHE, Attend.ROW_BYTES, Attend.KIND, Attend.FIRST, Attend.N_HEADS,
        Attend.TASK_HEADS, Attend.STRANDS,
    )
)  # fmt: skip


def _as_pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I8.as_pointer())

    return types.voidptr(types.int64), codegen


as_pointer: Any = intrinsic(_as_pointer)
one_token = inline(attention.task_shape)
route_rows = inline(layer_ops.route.py_func)


@inline
def floats(address: int, rows: int, n: int) -> Any:
    """The (rows, n) float32 at an address, as an array."""
    return carray(as_pointer(address), (rows, n), np.float32)


@inline
def vector(address: int, n: int) -> Any:
    """The (n,) float32 at an address, as an array."""
    return carray(as_pointer(address), (n,), np.float32)


@kernel()
def run_tape(control: int, steps: int, n: int) -> None:
    """Play n steps from the address `steps`; control: of the pool."""
    for i in range(n):
        step = steps + 8 * STEP_FIELDS * i
        count_at = i64(step + 24)
        count = i64(count_at) if count_at else i64(step + 16)
        if count == 1:
            call_kernel(i64(step), i64(step + 8), 0, 0)
        else:
            run_region(control, i64(step), i64(step + 8), count)


@task
def embed_task(context: int, index: int, thread: int) -> None:
    """The token's row of the embedding. context: state, job (`dequantize`)."""
    job = i64(context + 8)
    token = i64(i64(context) + _TOKEN)
    put_i64(job + _ROW0, token)
    call_kernel(i64(job + _KERNEL), job, token, token + 1)


class Norm(IntEnum):
    """Fields of `norm_task`."""

    X = 0  # (N,) float32
    N = 1
    WEIGHT = 2
    EPS = 3  # a float64
    OUT = 4  # (COLUMNS,) float32; columns beyond N stay as they are (zero)
    ADD = 5  # 0, or (N,) float32 that x grows by first
    COLUMNS = 6  # of the records
    Q8 = 7  # 0, or where the record of OUT goes
    Q16 = 8


@task
def norm_task(context: int, index: int, thread: int) -> None:
    """X += add; out = rms_norm(x); records of out. context: `Norm`."""
    x, n, add, out = i64(context), i64(context + 8), i64(context + 40), i64(context + 32)
    if add:
        a = vector(x, n)
        b = vector(add, n)
        for i in range(n):
            a[i] += b[i]
    layer_ops.norm_row(x, i64(context + 16), n, f64(context + 24), out)
    _records(out, i64(context + 48), i64(context + 56), i64(context + 64))


@inline
def _records(x: int, n: int, q8: int, q16: int) -> None:
    """The records of n float32 at x; none where the address is 0."""
    for planes in range(1, 3):
        record = q8 if planes == 1 else q16
        if record:
            for c in range(0, n, 32):
                quantize_32(x + 4 * c, n, record, c, planes)


@task
def records_task(context: int, index: int, thread: int) -> None:
    """context: x, n, Q8 record or 0, Q16 record or 0."""
    _records(i64(context), i64(context + 8), i64(context + 16), i64(context + 24))


class Latent(IntEnum):
    """Fields of `latent_task`."""

    STATE = 0
    X = 1  # [c: RANK | k_rope: ROPE] float32, changed
    RANK = 2
    ROPE = 3
    WEIGHT = 4
    EPS = 5  # a float64
    ROW = 6  # scratch (WIDTH,) float32, zero where c and k_rope do not reach
    ROPE_AT = 7  # element of the row where k_rope begins
    WIDTH = 8  # elements of a cache row; ROPE_AT and it are multiples of 16
    LAYER = 9
    ATTEND = 10  # `attention.Attend`: what depends on cache and position is set
    THREADS = 11
    COUNT = 12  # where the number of attention's tasks goes


@task
def latent_task(context: int, index: int, thread: int) -> None:
    """Normalise c, rotate k_rope, append both to the cache. context: `Latent`."""
    state, x, rank, rope = i64(context), i64(context + 8), i64(context + 16), i64(context + 24)
    row, rope_at, width = i64(context + 48), i64(context + 56), i64(context + 64)
    layer_ops.norm_row(x, i64(context + 32), rank, f64(context + 40), row)
    k_rope = row + 4 * rope_at
    for i in range(rope):
        put_f32(k_rope + 4 * i, f32(x + 4 * (rank + i)))
    _rotate(k_rope, rope, state)
    cache = i64(state + _CACHE) + i64(context + 72) * i64(state + _LAYER_BYTES)
    position, row_bytes = i64(state + _POSITION), i64(state + _ROW_BYTES)
    kind = i64(state + _KIND)
    store_row(kind, row, rope_at, width - rope_at, cache + position * row_bytes)
    attend = i64(context + 80)
    put_i64(attend + _ATTEND_CACHE, cache)
    put_i64(attend + _ATTEND_ROW_BYTES, row_bytes)
    put_i64(attend + _ATTEND_KIND, kind)
    put_i64(attend + _ATTEND_FIRST, position)
    n_heads = i64(attend + _ATTEND_HEADS)
    strands = min(attention.STRANDS, position // attention.SPLIT + 1)
    heads, _ = one_token(1, n_heads, strands, i64(context + 88))
    put_i64(attend + _ATTEND_TASK_HEADS, heads)
    put_i64(attend + _ATTEND_STRANDS, strands)
    put_i64(i64(context + 96), (n_heads + heads - 1) // heads * strands)


@inline
def _rotate(x: int, n: int, state: int) -> None:
    """Rotary embedding of n float32 at x, in place."""
    layer_ops.rotate_heads(x, 0, 1, i64(state + _COS), i64(state + _SIN), n // 2)


class Query(IntEnum):
    """Fields of `query_task`."""

    STATE = 0
    Q = 1  # (heads, NOPE + ROPE) float32
    NOPE = 2
    ROPE = 3
    JOBS = 4  # k_b of each head; X: (heads, columns) float32, zero beyond NOPE; OUT: WIDE
    WIDE = 5  # (heads, WIDTH) float32, zero where neither part reaches
    WIDTH = 6
    ROPE_AT = 7
    SCALE = 8  # a float64


JOB_BYTES = 8 * len(Job)


@task
def query_task(context: int, h: int, thread: int) -> None:
    """One head's query for the latent cache: k_b . nope part, rotated rope part, both scaled."""
    state, nope, rope = i64(context), i64(context + 16), i64(context + 24)
    q = i64(context + 8) + 4 * h * (nope + rope)
    job = i64(context + 32) + JOB_BYTES * h
    width = i64(context + 48)
    wide = i64(context + 40) + 4 * width * h
    x = i64(job + _X)
    for i in range(nope):
        put_f32(x + 4 * i, f32(q + 4 * i))
    call_kernel(i64(job + _KERNEL), job, 0, i64(job + _N_ROWS))
    out = wide + 4 * i64(context + 56)
    for i in range(rope):
        put_f32(out + 4 * i, f32(q + 4 * (nope + i)))
    _rotate(out, rope, state)
    scale = splat_f32(np.float32(f64(context + 64)))
    for i in range(0, 4 * width, 32):
        store_f32(wide + i, load_f32(wide + i) * scale)


class Value(IntEnum):
    """Fields of `value_task`."""

    Z = 0  # (heads, Z_BYTES) float32, what attention leaves
    Z_BYTES = 1
    LATENT = 2
    JOBS = 3  # v_b of each head; X: (heads, columns) float32, zero beyond LATENT
    COPY = 4  # whether z has to be copied to X, for rows differ in length
    Q16 = 5  # 0, or the record of all heads' outputs, if a head's are whole groups of 32
    COLUMNS = 6  # of the record
    MERGE = 7  # address of `attention.merge_task`
    ATTEND = 8  # its context


@task
def value_task(context: int, h: int, thread: int) -> None:
    """One head's output: v_b . z, and its part of the record. context: `Value`."""
    call_kernel(i64(context + 56), i64(context + 64), h, thread)
    job = i64(context + 24) + JOB_BYTES * h
    if i64(context + 32):
        z, x = i64(context) + i64(context + 8) * h, i64(job + _X)
        for i in range(i64(context + 16)):
            put_f32(x + 4 * i, f32(z + 4 * i))
    rows = i64(job + _N_ROWS)
    call_kernel(i64(job + _KERNEL), job, 0, rows)
    record, n = i64(context + 40), i64(context + 48)
    if record:
        for i in range(0, rows, 32):
            quantize_32(i64(job + _OUT) + 4 * i, n, record, h * rows + i, 2)


class Route(IntEnum):
    """Fields of `route_task`."""

    STATE = 0
    LOGITS = 1  # (EXPERTS,) float32
    EXPERTS = 2
    BIAS = 3  # (N_BIAS,) float32
    N_BIAS = 4  # EXPERTS or 0
    SIGMOID = 5
    GROUPS = 6
    GROUPS_USED = 7
    NORMALISE = 8
    SCALE = 9  # a float64
    IDS = 10  # (TOP_K,) int64, written
    WEIGHTS = 11  # (TOP_K,) float32, written
    TOP_K = 12
    GATE_UP = 13  # jobs whose W and W2 are written
    DOWN = 14
    GATE0 = 15  # expert 0 of each, and bytes from expert to expert
    GATE_BYTES = 16
    UP0 = 17
    UP_BYTES = 18
    DOWN0 = 19
    DOWN_BYTES = 20
    LAYER = 21  # row of State.FORCED


@task
def route_task(context: int, index: int, thread: int) -> None:
    """Choose experts and aim the jobs at them. context: `Route`."""
    experts, top_k = i64(context + 16), i64(context + 96)
    ids = carray(as_pointer(i64(context + 80)), (1, top_k), np.int64)
    route_rows(
        floats(i64(context + 8), 1, experts),
        vector(i64(context + 24), i64(context + 32)),
        i64(context + 40) != 0,
        i64(context + 48),
        i64(context + 56),
        i64(context + 64) != 0,
        f64(context + 72),
        ids,
        floats(i64(context + 88), 1, top_k),
    )
    forced = i64(i64(context) + _FORCED)
    if forced:
        forced += 8 * top_k * i64(context + 168)
        for k in range(top_k):
            ids[0, k] = i64(forced + 8 * k)
    gate_up, down = i64(context + 104), i64(context + 112)
    for k in range(top_k):
        e = ids[0, k]
        put_i64(gate_up + JOB_BYTES * k + _W, i64(context + 120) + e * i64(context + 128))
        put_i64(gate_up + JOB_BYTES * k + _W2, i64(context + 136) + e * i64(context + 144))
        put_i64(down + JOB_BYTES * k + _W, i64(context + 152) + e * i64(context + 160))


class Tape:
    """Steps in the making, and the memory that they point to."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int, int]] = []
        self._kept: list[Any] = []

    def __len__(self) -> int:
        return len(self._steps)

    def keep(self, array: np.ndarray) -> int:
        """Address of an array that lives as long as the tape."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def room(self, n_bytes: int) -> int:
        """Address of zeroed memory, on a cache line of its own."""
        data = np.zeros(n_bytes + 64, np.uint8)
        return self.keep(data) + -data.ctypes.data % 64

    def context(self, *fields: int | float) -> int:
        """Address of a context: int64 fields; a float is stored as float64."""
        data = np.array([f if isinstance(f, int) else 0 for f in fields], np.int64)
        for i, value in enumerate(fields):
            if isinstance(value, float):
                data.view(np.float64)[i] = value
        return self.keep(data)

    def add(self, fn: int, context: int, count: int = 1, count_at: int = 0) -> None:
        """One more step; its number of tasks is `count`, or read from count_at as it begins."""
        self._steps.append((fn, context, count, count_at))

    def table(self) -> np.ndarray:
        """The steps, (n, STEP_FIELDS) int64; valid as long as the tape lives."""
        return np.array(self._steps, np.int64).reshape(-1, STEP_FIELDS)
