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
from numba import prange

from quant.jit import inline, kernel
from quant.simd import (
    f32,
    fma,
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


@kernel(parallel=True)
def attend(
    q: np.ndarray, cache: int, row_bytes: int, half: bool, first: int, latent: int, z: np.ndarray
) -> None:
    """Absorbed attention of T new tokens at positions first .. first + T - 1, causal.

    q: (T, A, width) float32, width a multiple of 8, A a multiple of 4; cache: address of position 0,
    rows of `width` halves (half) or float32, row_bytes apart; z: (T, A, latent) float32, written.
    """
    n_tokens, n_heads, width = q.shape
    groups = n_heads // HEADS
    for task in prange(n_tokens * groups):
        t = task // groups
        h = task % groups * HEADS
        n = first + t + 1
        qa = q.ctypes.data + 4 * width * (t * n_heads + h)
        za = z.ctypes.data + 4 * latent * (t * n_heads + h)
        p = np.empty((HEADS, BLOCK), np.float32)
        pa = p.ctypes.data
        top = np.full(HEADS, np.float32(-np.inf))
        total = np.zeros(HEADS, np.float32)
        for i in range(0, HEADS * latent, 8):
            store_f32(za + 4 * i, zero_f32())
        for s0 in range(0, n, BLOCK):
            count = min(BLOCK, n - s0)
            row = cache + s0 * row_bytes
            for s in range(count):
                score_4(qa, row + s * row_bytes, width, half, pa + 4 * s)
            for j in range(HEADS):
                best = top[j]
                for s in range(count):
                    best = max(best, p[j, s])
                if best > top[j]:
                    shrink = np.exp(top[j] - best)
                    top[j] = best
                    total[j] *= shrink
                    for i in range(0, 4 * latent, 32):
                        at = za + 4 * latent * j + i
                        store_f32(at, load_f32(at) * splat_f32(shrink))
                for s in range(count):
                    p[j, s] = np.exp(p[j, s] - best)
                    total[j] += p[j, s]
            add_values_4(za, pa, row, row_bytes, count, latent, half)
        for j in range(HEADS):
            inverse = splat_f32(np.float32(1) / total[j])
            for i in range(0, 4 * latent, 32):
                at = za + 4 * latent * j + i
                store_f32(at, load_f32(at) * inverse)
