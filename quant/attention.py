"""MLA attention over the latent cache, absorbed form: every head reads the same 576 values a token.

    score[s] = q . cache[s]                 q: (latent + rope,), already scaled and absorbed by k_b
    z        = sum over s of softmax(score)[s] * cache[s, :latent]

One pass with a running maximum: no score array in memory. Heads are taken in groups of four, so
that a cache row is loaded and widened once for four heads. Positions are summed in the same order
whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.jit import inline, task
from quant.pool import Pool
from quant.simd import (
    alloca,
    f32,
    fma,
    i64,
    load_f16,
    load_f32,
    put_f32,
    splat_f32,
    store_f32,
    sum_f32,
    zero_f32,
)

HEADS = 4  # per task
BLOCK = 32  # positions whose scores are kept at a time


@inline
def load_cache(address: int, i: int, half: bool) -> Any:
    """8 cache values from element i of the row at `address`."""
    if half:
        return load_f16(address + 2 * i)
    return load_f32(address + 4 * i)


@inline
def score_4(q: int, row: int, width: int, half: bool, out: int) -> None:
    """Four heads' scores for one position; q: (4, width) float32; out: 4 floats, BLOCK apart."""
    a = zero_f32()
    b = zero_f32()
    c = zero_f32()
    d = zero_f32()
    for i in range(0, width, 8):
        v = load_cache(row, i, half)
        a = fma(v, load_f32(q + 4 * i), a)
        b = fma(v, load_f32(q + 4 * (width + i)), b)
        c = fma(v, load_f32(q + 4 * (2 * width + i)), c)
        d = fma(v, load_f32(q + 4 * (3 * width + i)), d)
    put_f32(out, sum_f32(a))
    put_f32(out + 4 * BLOCK, sum_f32(b))
    put_f32(out + 8 * BLOCK, sum_f32(c))
    put_f32(out + 12 * BLOCK, sum_f32(d))


@inline
def add_values_4(z: int, p: int, row: int, row_bytes: int, n: int, latent: int, half: bool) -> None:
    """z[h] += sum over n positions of p[h, s] * cache[s]; z: (4, latent) float32; p: (4, BLOCK)."""
    for i in range(0, latent, 8):
        a = load_f32(z + 4 * i)
        b = load_f32(z + 4 * (latent + i))
        c = load_f32(z + 4 * (2 * latent + i))
        d = load_f32(z + 4 * (3 * latent + i))
        for s in range(n):
            v = load_cache(row + s * row_bytes, i, half)
            a = fma(v, splat_f32(f32(p + 4 * s)), a)
            b = fma(v, splat_f32(f32(p + 4 * (BLOCK + s))), b)
            c = fma(v, splat_f32(f32(p + 4 * (2 * BLOCK + s))), c)
            d = fma(v, splat_f32(f32(p + 4 * (3 * BLOCK + s))), d)
        store_f32(z + 4 * i, a)
        store_f32(z + 4 * (latent + i), b)
        store_f32(z + 4 * (2 * latent + i), c)
        store_f32(z + 4 * (3 * latent + i), d)


@inline
def soften(p: int, count: int, top: int, total: int, z: int, latent: int) -> None:
    """Scores -> exp(score - maximum so far); what was summed before shrinks if that rose."""
    best = f32(top)
    for s in range(count):
        best = max(best, f32(p + 4 * s))
    if best > f32(top):
        shrink = np.exp(f32(top) - best)
        put_f32(top, best)
        put_f32(total, f32(total) * shrink)
        for i in range(0, 4 * latent, 32):
            store_f32(z + i, load_f32(z + i) * splat_f32(shrink))
    for s in range(count):
        e = np.exp(f32(p + 4 * s) - best)
        put_f32(p + 4 * s, e)
        put_f32(total, f32(total) + e)


@task
def attend_task(context: int, index: int, thread: int) -> None:
    """Four heads of one token. context: the fields that `attend` writes, in its order."""
    q, z, cache = i64(context), i64(context + 8), i64(context + 16)
    row_bytes, half, first = i64(context + 24), i64(context + 32) == 1, i64(context + 40)
    n_heads, width, latent = i64(context + 48), i64(context + 56), i64(context + 64)
    groups = n_heads // HEADS
    t = index // groups
    h = index % groups * HEADS
    n = first + t + 1
    q += 4 * width * (t * n_heads + h)
    z += 4 * latent * (t * n_heads + h)
    p = alloca(512)  # HEADS * BLOCK scores
    top = alloca(64)
    total = alloca(64)
    for j in range(HEADS):
        put_f32(top + 4 * j, np.float32(-np.inf))
        put_f32(total + 4 * j, np.float32(0))
    for i in range(0, 4 * HEADS * latent, 32):
        store_f32(z + i, zero_f32())
    for s0 in range(0, n, BLOCK):
        count = min(BLOCK, n - s0)
        row = cache + s0 * row_bytes
        for s in range(count):
            score_4(q, row + s * row_bytes, width, half, p + 4 * s)
        for j in range(HEADS):
            soften(p + 4 * BLOCK * j, count, top + 4 * j, total + 4 * j, z + 4 * latent * j, latent)
        add_values_4(z, p, row, row_bytes, count, latent, half)
    for j in range(HEADS):
        inverse = splat_f32(np.float32(1) / f32(total + 4 * j))
        for i in range(0, 4 * latent, 32):
            at = z + 4 * latent * j + i
            store_f32(at, load_f32(at) * inverse)


def attend(
    pool: Pool, q: np.ndarray, cache: int, row_bytes: int, half: bool, first: int, z: np.ndarray
) -> None:
    """Absorbed attention of T new tokens at positions first .. first + T - 1, causal.

    q: (T, A, width) float32, width a multiple of 8, A a multiple of 4; cache: address of position
    0, rows of `width` halves (half) or float32, row_bytes apart; z: (T, A, latent), written.
    """
    n_tokens, n_heads, width = q.shape
    fields = [
        q.ctypes.data, z.ctypes.data, cache, row_bytes, half, first, n_heads, width, z.shape[2],
    ]  # fmt: skip
    context = np.array(fields, np.int64)
    pool.run(attend_task.address, context.ctypes.data, n_tokens * (n_heads // HEADS))
