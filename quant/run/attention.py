"""MLA attention over the latent cache, absorbed form: every head reads the same 576 values a token.

    score[s] = q . cache[s]                 q: (latent + rope,), already scaled and absorbed by k_b
    z        = sum over s of softmax(score)[s] * cache[s, :latent]

Positions are cut into splits of SPLIT, and split i belongs to strand i mod STRANDS. A strand goes
through its splits in blocks of BLOCK with a running maximum,

    block of the cache, widened to float32 once:  64 x 576 = 144 KiB of L2
    scores = 64 rows (token, head) . block        4 x 4 register tiles (float_tiles.dots)
    scores -> exp(score - maximum), total
    z     += scores . block                       4 rows x 64 columns (float_tiles.mix)

and leaves maximum, total and unscaled z; then the strands of a row are merged in order. So there is
work for many threads at one token, no array of scores, and no sum depends on the number of threads,
on how rows are grouped into tasks, or on which other tokens are computed: prefill equals decoding.
"""

from __future__ import annotations

import numpy as np

from quant.compiler.jit import inline, task
from quant.run.cache_rows import RowKind, widen_rows
from quant.run.fields import I64, Fields, write
from quant.run.pool import Pool
from quant.simd.floats import (
    LANES,
    PART,
    V_BYTES,
    WIDE,
    exp_v,
    first_lane,
    first_lanes_v,
    fma_v,
    load_v,
    max_v,
    maximum_v,
    splat_v,
    store_part_0,
    store_part_1,
    store_part_2,
    store_part_3,
    store_v,
    sum_v,
    zero_v,
)
from quant.simd.vectors import alloca, f32, i64, put_f32
from quant.tile.float_tiles import MIX_COLS, dots, mix, mix_one_vector

HEADS = 4  # a multiple of it is asked for
BLOCK = 64  # positions
SPLIT = 256  # positions, a multiple of BLOCK
STRANDS = 16  # partial results of a row, at most
ROWS = 64 if WIDE else 32  # (token, head) pairs of a task, at most
PARTIAL_BYTES = 1 << 25  # of partial results at a time


class Attend(Fields):
    """Fields of the context of both tasks; addresses and strides in bytes."""

    Q = I64  # (tokens, heads, width) float32, scaled
    Z = I64  # (tokens, heads, latent) float32, written by merge_task
    CACHE = I64  # position 0
    ROW_BYTES = I64
    KIND = I64  # a RowKind
    FIRST = I64  # position of token 0
    N_HEADS = I64  # a multiple of HEADS
    WIDTH = I64  # elements of a row, a multiple of 16
    LATENT = I64  # a multiple of 16
    N_TOKENS = I64
    TASK_HEADS = I64  # heads of a task, a multiple of HEADS
    TASK_TOKENS = I64  # tokens of a task
    STRANDS = I64  # at least min(STRANDS, ceil((first + n_tokens) / SPLIT))
    PARTIALS = I64  # (tokens, heads, strands, latent + 16) float32: z, maximum, total
    SCRATCH = I64
    SCRATCH_BYTES = I64  # per thread: scratch_bytes(width)


_P = 4 * BLOCK  # bytes of a row of scores


def scratch_bytes(width: int) -> int:
    """Scratch that one thread needs: a block of the cache in float32, and its scores."""
    return 4 * BLOCK * (width + ROWS)


@inline
def soften(p: int, count: int, state: int, z: int, n: int) -> None:
    """BLOCK scores -> exp(score - maximum so far), 0 from `count` on.

    state: the row's maximum and total; z: (n,) what was summed before, which shrinks if the
    maximum rises. All float32; count > 0.
    """
    top = f32(state)
    best = splat_v(top)
    for i in range(0, BLOCK, LANES):
        v = first_lanes_v(load_v(p + 4 * i), count - i)
        store_v(p + 4 * i, v)
        best = max_v(v, best)
    highest = maximum_v(best)
    best = splat_v(highest)
    total = f32(state + 4)
    if highest > top:
        shrink = exp_v(splat_v(top) - best)
        total *= first_lane(shrink)
        for i in range(0, 4 * n, V_BYTES):
            store_v(z + i, load_v(z + i) * shrink)
        put_f32(state, highest)
    acc = zero_v()
    for i in range(0, BLOCK, LANES):
        v = exp_v(load_v(p + 4 * i) - best)
        store_v(p + 4 * i, v)
        acc = acc + v
    put_f32(state + 4, total + sum_v(acc))


@inline
def score_block(q: int, width: int, block: int, p: int, spare: int, s0: int, count: int) -> None:
    """Scores of four heads at positions s0 .. s0 + 2 PART - 1 of a block with `count` rows."""
    dq = 4 * width
    for s in range(s0, min(count, s0 + 2 * PART), PART):
        v = dots(q, q + dq, q + 2 * dq, q + 3 * dq, block + s * dq, dq, dq, spare, True, True)
        store_part_0(p + 4 * s, v)
        store_part_1(p + _P + 4 * s, v)
        store_part_2(p + 2 * _P + 4 * s, v)
        store_part_3(p + 3 * _P + 4 * s, v)


@task
def attend_task(context: int, index: int, thread: int) -> None:
    """One strand of some heads of some tokens -> partial results. context: see `Attend`.

    index: (tokens / TASK_TOKENS, heads / TASK_HEADS, STRANDS), the last fastest.
    """
    n_heads, width, latent = (
        i64(context + Attend.N_HEADS),
        i64(context + Attend.WIDTH),
        i64(context + Attend.LATENT),
    )
    strands, first = i64(context + Attend.STRANDS), i64(context + Attend.FIRST)
    kind, row_bytes = i64(context + Attend.KIND), i64(context + Attend.ROW_BYTES)
    strand = index % strands
    groups = (n_heads + i64(context + Attend.TASK_HEADS) - 1) // i64(context + Attend.TASK_HEADS)
    h0 = index // strands % groups * i64(context + Attend.TASK_HEADS)
    t0 = index // strands // groups * i64(context + Attend.TASK_TOKENS)
    heads = min(i64(context + Attend.TASK_HEADS), n_heads - h0)
    t1 = min(t0 + i64(context + Attend.TASK_TOKENS), i64(context + Attend.N_TOKENS))
    end = first + t1
    begin = strand * SPLIT
    if begin >= end:
        return
    block = i64(context + Attend.SCRATCH) + thread * i64(context + Attend.SCRATCH_BYTES)
    scores = block + 4 * BLOCK * width
    spare = alloca(64)
    z_row = 4 * (latent + 16)
    dz = strands * z_row  # from head to head
    q = i64(context + Attend.Q) + 4 * width * (t0 * n_heads + h0)
    dt_q = 4 * width * n_heads  # from token to token
    z = i64(context + Attend.PARTIALS) + (t0 * n_heads + h0) * dz + strand * z_row
    dt_z = n_heads * dz
    for t in range(t0, t1):
        for h in range(heads):
            at = z + (t - t0) * dt_z + h * dz
            for i in range(0, 4 * latent, V_BYTES):
                store_v(at + i, zero_v())
            put_f32(at + 4 * latent, np.float32(-np.inf))
            put_f32(at + 4 * latent + 4, np.float32(0))
    s0 = begin
    while s0 < end:
        rows = min(BLOCK, end - s0)
        at = i64(context + Attend.CACHE) + s0 * row_bytes
        widen_rows(kind, at, row_bytes, rows, latent, width - latent, block)
        for s in range(0, rows, 2 * PART):
            p = scores
            for t in range(t0, t1):
                count = min(rows, first + t + 1 - s0)
                for h in range(0, heads, 4):
                    at = q + (t - t0) * dt_q + 4 * width * h
                    score_block(at, width, block, p, spare, s, count)
                    p += 4 * _P
        p = scores
        for t in range(t0, t1):
            count = min(rows, first + t + 1 - s0)
            for h in range(heads):
                if count > 0:
                    at = z + (t - t0) * dt_z + h * dz
                    soften(p, count, at + 4 * latent, at, latent)
                p += _P
        column = 0
        while column < latent:
            many = column + MIX_COLS <= latent
            p = scores
            for t in range(t0, t1):
                count = min(rows, first + t + 1 - s0)
                for h in range(0, heads, 4):
                    at = z + (t - t0) * dt_z + h * dz + 4 * column
                    if many:
                        mix(at, dz, p, _P, block + 4 * column, 4 * width, count)
                    else:
                        mix_one_vector(at, dz, p, _P, block + 4 * column, 4 * width, count)
                    p += 4 * _P
            column += MIX_COLS if many else LANES
        s0 += BLOCK
        if s0 % SPLIT == 0:
            s0 += (STRANDS - 1) * SPLIT


@task
def merge_task(context: int, index: int, thread: int) -> None:
    """The strands of one row -> z. context: see `Attend`; index: token * N_HEADS + head."""
    latent = i64(context + Attend.LATENT)
    z_row = 4 * (latent + 16)
    n = i64(context + Attend.FIRST) + index // i64(context + Attend.N_HEADS) + 1
    strands = min(STRANDS, (n + SPLIT - 1) // SPLIT)
    part = i64(context + Attend.PARTIALS) + index * i64(context + Attend.STRANDS) * z_row
    top = part + 4 * latent
    best = f32(top)
    for s in range(1, strands):
        best = max(best, f32(top + s * z_row))
    total = np.float32(0)
    for s in range(strands):
        at = top + s * z_row
        weight = first_lane(exp_v(splat_v(f32(at)) - splat_v(best)))
        put_f32(at, weight)
        total += weight * f32(at + 4)
    inverse = splat_v(np.float32(1) / total)
    z = i64(context + Attend.Z) + 4 * latent * index
    for i in range(0, 4 * latent, V_BYTES):
        acc = zero_v()
        for s in range(strands):
            acc = fma_v(load_v(part + s * z_row + i), splat_v(f32(top + s * z_row)), acc)
        store_v(z + i, acc * inverse)


def partial_bytes(n_heads: int, latent: int, strands: int = STRANDS) -> int:
    """Bytes of the partial results of one token."""
    return n_heads * strands * 4 * (latent + 16)


def task_shape(n_tokens: int, n_heads: int, strands: int, threads: int) -> tuple[int, int]:
    """(TASK_HEADS, TASK_TOKENS): large tasks share a widened block, but every thread wants some."""
    heads = min(n_heads, ROWS)
    tokens = max(1, ROWS // n_heads)
    while heads > 16 and strands * n_tokens * -(-n_heads // heads) < 4 * threads:
        heads = -(-heads // 2 // HEADS) * HEADS
    return heads, tokens


def aligned(n_bytes: int) -> np.ndarray:
    """(n_bytes,) uint8 at the start of a cache line, so that no vector straddles two."""
    room = np.empty(n_bytes + 64, np.uint8)
    return room[-room.ctypes.data % 64 :][:n_bytes]


def attend(
    pool: Pool,
    q: np.ndarray,
    cache: int,
    row_bytes: int,
    kind: RowKind,
    first: int,
    z: np.ndarray,
) -> None:
    """Absorbed attention of T new tokens at positions first .. first + T - 1, causal.

    q: (T, A, width) float32 in C order, A a multiple of 4; cache: address of position 0, rows
    row_bytes apart; z: (T, A, latent), written. width and latent are multiples of 16.
    """
    n_tokens, n_heads, width = q.shape
    latent = z.shape[2]
    size = scratch_bytes(width)
    scratch = aligned(pool.threads * size)
    strands = min(STRANDS, -(-(first + n_tokens) // SPLIT))
    per_token = partial_bytes(n_heads, latent, strands)
    step = max(max(1, ROWS // n_heads), PARTIAL_BYTES // per_token)
    partials = aligned(min(step, n_tokens) * per_token)
    for t in range(0, n_tokens, step):
        count = min(step, n_tokens - t)
        heads, tokens = task_shape(count, n_heads, strands, pool.threads)
        context = write(
            Attend, Q=q[t:].ctypes.data, Z=z[t:].ctypes.data, CACHE=cache, ROW_BYTES=row_bytes,
            KIND=int(kind), FIRST=first + t, N_HEADS=n_heads, WIDTH=width, LATENT=latent,
            N_TOKENS=count, TASK_HEADS=heads, TASK_TOKENS=tokens, STRANDS=strands,
            PARTIALS=partials.ctypes.data, SCRATCH=scratch.ctypes.data, SCRATCH_BYTES=size,
        )  # fmt: skip
        tasks = -(-count // tokens) * -(-n_heads // heads) * strands
        pool.run(attend_task.address, context.ctypes.data, tasks)
        pool.run(merge_task.address, context.ctypes.data, count * n_heads)
