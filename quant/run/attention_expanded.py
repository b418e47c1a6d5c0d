"""MLA attention over the latent cache, expanded form: keys and values of each head are made first.

    key[s]   = [k_b . c[s] | k_rope[s]]     score = q . key[s]      192 values in Kimi K2.5
    value[s] = v_b . c[s]                                           128 values

Less arithmetic than the absorbed form where many tokens share an expansion. A task is one head and
some tokens; for each block of BLOCK positions it

    widens 64 rows of the cache to float32, expands them to keys and values      (96 + 32 + 48 KiB)
    goes through its tokens 64 at a time: scores, exp(score - maximum so far), z += scores . values

so memory is the same whatever the length of prompt and cache.
"""

from __future__ import annotations

import numpy as np

from quant.compiler.jit import inline, task
from quant.run.attention import BLOCK, aligned, soften
from quant.run.cache_rows import RowKind, widen_rows
from quant.run.fields import I64, Fields, write
from quant.run.pool import Pool
from quant.simd.floats import (
    LANES,
    PART,
    V_BYTES,
    load_v,
    splat_v,
    store_part_0,
    store_part_1,
    store_part_2,
    store_part_3,
    store_v,
    zero_v,
)
from quant.simd.vectors import alloca, f32, i64, put_f32
from quant.tile.float_tiles import MIX_COLS, dots, mix, mix_one_vector

TOKENS = 64  # whose scores are kept at a time


class Expand(Fields):
    """Fields of the context of `expanded_task`; all arrays float32 but the cache."""

    Q = I64  # (tokens, heads, nope + rope), scaled
    Z = I64  # (tokens, heads, values), written
    CACHE = I64  # position 0: rows [c: latent | k_rope: rope]
    ROW_BYTES = I64
    KIND = I64  # a RowKind
    FIRST = I64  # position of token 0
    N_HEADS = I64
    WIDTH = I64  # latent + rope; these and those below are multiples of 16
    LATENT = I64
    N_TOKENS = I64  # a multiple of 4
    NOPE = I64
    VALUES = I64
    K_B = I64  # (heads, k_rows, nope)
    K_ROWS = I64  # at most latent
    V_B = I64  # (heads, values, v_cols)
    V_COLS = I64  # at least latent
    TASK_TOKENS = I64  # tokens of a task, a multiple of TOKENS
    SCRATCH = I64
    SCRATCH_BYTES = I64  # per thread
    N_KEYS = I64  # positions of the cache


_P = 4 * BLOCK  # bytes of a row of scores


@inline
def mix_columns(z: int, dz: int, p: int, dp: int, v: int, dv: int, n: int, columns: int) -> None:
    """`mix` over all columns of four rows."""
    c = 0
    while c + MIX_COLS <= columns:
        mix(z + 4 * c, dz, p, dp, v + 4 * c, dv, n)
        c += MIX_COLS
    while c < columns:
        mix_one_vector(z + 4 * c, dz, p, dp, v + 4 * c, dv, n)
        c += LANES


@inline
def expand_block(
    context: int, head: int, rows: int, block: int, keys: int, values: int, spare: int
) -> None:
    """(rows, width) at `block` -> keys (rows, nope + rope), values (rows, VALUES), by fours."""
    width, latent = i64(context + Expand.WIDTH), i64(context + Expand.LATENT)
    nope, n_values = i64(context + Expand.NOPE), i64(context + Expand.VALUES)
    k_rows, v_cols = i64(context + Expand.K_ROWS), i64(context + Expand.V_COLS)
    k_b = i64(context + Expand.K_B) + 4 * k_rows * nope * head
    v_b = i64(context + Expand.V_B) + 4 * n_values * v_cols * head
    dc = 4 * width
    dk = 4 * (nope + width - latent)
    dv = 4 * n_values
    for s in range(0, rows, 4):
        for j in range(4):
            at = keys + (s + j) * dk
            for i in range(0, 4 * nope, V_BYTES):
                store_v(at + i, zero_v())
            for i in range(0, 4 * (width - latent), V_BYTES):
                store_v(at + 4 * nope + i, load_v(block + (s + j) * dc + 4 * latent + i))
    c = 0
    while c < nope:
        many = c + MIX_COLS <= nope
        for s in range(0, rows, 4):
            at = keys + s * dk + 4 * c
            if many:
                mix(at, dk, block + s * dc, dc, k_b + 4 * c, 4 * nope, k_rows)
            else:
                mix_one_vector(at, dk, block + s * dc, dc, k_b + 4 * c, 4 * nope, k_rows)
        c += MIX_COLS if many else LANES
    for j in range(0, n_values, PART):
        for s in range(0, rows, 4):
            a = block + s * dc
            b = v_b + 4 * v_cols * j
            sums = dots(
                a, a + dc, a + 2 * dc, a + 3 * dc, b, 4 * v_cols, 4 * latent, spare, True, True
            )
            at = values + s * dv + 4 * j
            store_part_0(at, sums)
            store_part_1(at + dv, sums)
            store_part_2(at + 2 * dv, sums)
            store_part_3(at + 3 * dv, sums)


@task
def expanded_task(context: int, index: int, thread: int) -> None:
    """One head of some tokens. context: see `Expand`; index: (heads, tokens / TASK_TOKENS)."""
    n_heads, n_tokens = i64(context + Expand.N_HEADS), i64(context + Expand.N_TOKENS)
    width, n_values = i64(context + Expand.WIDTH), i64(context + Expand.VALUES)
    latent, kind = i64(context + Expand.LATENT), i64(context + Expand.KIND)
    key = i64(context + Expand.NOPE) + width - latent
    first, row_bytes = i64(context + Expand.FIRST), i64(context + Expand.ROW_BYTES)
    share = i64(context + Expand.TASK_TOKENS)
    turns = (n_tokens + share - 1) // share
    head = index // turns
    t0 = index % turns * share
    t1 = min(t0 + share, n_tokens)
    block = i64(context + Expand.SCRATCH) + thread * i64(context + Expand.SCRATCH_BYTES)
    keys = block + 4 * BLOCK * width
    values = keys + 4 * BLOCK * key
    scores = values + 4 * BLOCK * n_values
    state = scores + TOKENS * _P  # (share, 2): maximum, total
    spare = alloca(64)
    dq = 4 * key * n_heads  # from token to token
    q = i64(context + Expand.Q) + 4 * key * head
    dz = 4 * n_values * n_heads
    z = i64(context + Expand.Z) + 4 * n_values * head
    for t in range(t0, t1):
        for i in range(0, 4 * n_values, V_BYTES):
            store_v(z + t * dz + i, zero_v())
        put_f32(state + 8 * (t - t0), np.float32(-np.inf))
        put_f32(state + 8 * (t - t0) + 4, np.float32(0))
    end = min(first + t1, i64(context + Expand.N_KEYS))
    for s0 in range(0, end, BLOCK):
        rows = min(BLOCK, end - s0)
        at = i64(context + Expand.CACHE) + s0 * row_bytes
        widen_rows(kind, at, row_bytes, rows, latent, width - latent, block)
        expand_block(context, head, rows, block, keys, values, spare)
        for tile in range(t0, t1, TOKENS):
            last = min(t1, tile + TOKENS)
            for s in range(0, rows, 2 * PART):
                for t in range(tile, last, 4):
                    a = q + t * dq
                    p = scores + (t - tile) * _P
                    for u in range(s, min(min(rows, first + t + 4 - s0), s + 2 * PART), PART):
                        b = keys + 4 * key * u
                        v = dots(
                            a, a + dq, a + 2 * dq, a + 3 * dq, b, 4 * key, 4 * key, spare,
                            True, True,
                        )  # fmt: skip
                        store_part_0(p + 4 * u, v)
                        store_part_1(p + _P + 4 * u, v)
                        store_part_2(p + 2 * _P + 4 * u, v)
                        store_part_3(p + 3 * _P + 4 * u, v)
            for t in range(tile, last):
                count = min(rows, first + t + 1 - s0)
                p = scores + (t - tile) * _P
                if count > 0:
                    soften(p, count, state + 8 * (t - t0), z + t * dz, n_values)
                else:
                    for i in range(0, _P, V_BYTES):
                        store_v(p + i, zero_v())
            for t in range(tile, last, 4):
                count = min(rows, first + t + 4 - s0)
                if count > 0:
                    p = scores + (t - tile) * _P
                    mix_columns(z + t * dz, dz, p, _P, values, 4 * n_values, count, n_values)
    for t in range(t0, t1):
        inverse = splat_v(np.float32(1) / f32(state + 8 * (t - t0) + 4))
        for i in range(0, 4 * n_values, V_BYTES):
            store_v(z + t * dz + i, load_v(z + t * dz + i) * inverse)


def attend_expanded(
    pool: Pool,
    q: np.ndarray,
    k_b: np.ndarray,
    v_b: np.ndarray,
    cache: int,
    row_bytes: int,
    kind: RowKind,
    n_keys: int,
    latent: int,
    first: int,
    z: np.ndarray,
) -> None:
    """Causal attention of T new tokens at positions first .. first + T - 1.

    q (T, A, nope + rope), scaled; k_b (A, at most latent, nope); v_b (A, v, at least latent);
    cache: address of position 0, n_keys rows row_bytes apart; z (T, A, v), written. Widths are
    multiples of 16; what pads them is zero. T is a multiple of 4; tokens from position n_keys on
    attend to all of them.
    """
    n_tokens, n_heads, key = q.shape
    nope, n_values = k_b.shape[2], z.shape[2]
    width = latent + key - nope
    turns = max(1, min(-(-n_tokens // TOKENS), 2 * pool.threads // n_heads))
    share = -(-n_tokens // (turns * TOKENS)) * TOKENS
    size = 4 * (BLOCK * (width + key + n_values) + TOKENS * BLOCK + 2 * share)
    scratch = aligned(pool.threads * size)
    scratch[:] = 0  # rows beyond the last position are expanded by fours, to nothing
    context = write(
        Expand, Q=q.ctypes.data, Z=z.ctypes.data, CACHE=cache, ROW_BYTES=row_bytes, KIND=int(kind),
        FIRST=first, N_HEADS=n_heads, WIDTH=width, LATENT=latent, N_TOKENS=n_tokens, NOPE=nope,
        VALUES=n_values, K_B=k_b.ctypes.data, K_ROWS=k_b.shape[1], V_B=v_b.ctypes.data,
        V_COLS=v_b.shape[2], TASK_TOKENS=share, SCRATCH=scratch.ctypes.data, SCRATCH_BYTES=size,
        N_KEYS=n_keys,
    )  # fmt: skip
    pool.run(expanded_task.address, context.ctypes.data, n_heads * -(-n_tokens // share))
