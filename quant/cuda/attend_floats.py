"""Absorbed attention over f32 rows: HEADS_AT_ONCE heads of a token, a warp each, in plain float32.

Tiles of TILE positions lie in shared memory; a lane has the score of one position, and then all
threads share the columns of z.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.attend_halves import LOG2_E, LOWEST
from quant.cuda.cache_rows import KIND, PAGE, PAGES, POSITION, RECORD, page_of
from quant.cuda.intrinsics import (
    as_f32,
    block_x,
    block_y,
    block_z,
    copies_done_0,
    copies_sent,
    copy_16,
    f32,
    fma,
    larger,
    load_f32,
    load_i64,
    power_of_2,
    put_shared_f32,
    shared,
    shared_4,
    shared_f32,
    store_f32,
    swap_f32,
    sync,
    thread,
)
from quant.run.cache_rows import RowKind

THREADS = 256
HEADS_AT_ONCE = THREADS // 32
TILE = 32  # positions, a lane each
OWN_KIND = int(RowKind.F32)
SPLIT: int = OPEN
STRANDS: int = OPEN
HEADS: int = OPEN
LATENT: int = OPEN
WIDTH: int = OPEN
SHARES: int = OPEN  # columns of z that a thread has
Z_FLOATS: int = OPEN  # for all heads


def shared_bytes(width: int) -> int:
    """Bytes of shared memory: queries, a tile, p and what z shrinks by."""
    return 4 * (HEADS_AT_ONCE * width + TILE * (width + 4) + HEADS_AT_ONCE * (TILE + 1))


def attend(rows: int, layer: int, wide: int, wide_stride: int, strands: int, partials: int) -> None:
    """As in attend_halves.py. Grid: strands, heads / HEADS_AT_ONCE, tokens."""
    t = block_z()
    record = rows + RECORD * t
    n = load_i64(record + POSITION) + 1
    first = block_x() * SPLIT
    if load_i64(record + KIND) != OWN_KIND or first >= n:
        return
    i, warp, lane = thread(), thread() // 32, thread() % 32
    head = HEADS_AT_ONCE * block_y()
    tile = shared() + 4 * HEADS_AT_ONCE * WIDTH
    row = 4 * (WIDTH + 4)  # bytes of a row in the tile
    p = tile + TILE * row  # (TILE, HEADS_AT_ONCE)
    shrinks = p + 4 * TILE * HEADS_AT_ONCE
    for c in range(lane, WIDTH, 32):
        v = f32(0)
        if head + warp < HEADS:
            v = load_f32(wide + t * wide_stride + 4 * (WIDTH * (head + warp) + c))
        put_shared_f32(shared() + 4 * (WIDTH * warp + c), v)
    z = cuda.local.array(Z_FLOATS, types.float32)
    for k in range(Z_FLOATS):
        z[k] = f32(0)
    top, total = LOWEST, f32(0)
    while first < n:
        page = page_of(load_i64(record + PAGES), first)
        at = page + (layer * PAGE + first % PAGE) * 4 * WIDTH
        for r in range(warp, TILE, HEADS_AT_ONCE):
            here = min(r, n - 1 - first)  # rows behind the last: the last, for p 0
            for c in range(lane, WIDTH // 4, 32):
                copy_16(tile + r * row + 16 * c, at + 4 * WIDTH * here + 16 * c)
        copies_sent()
        copies_done_0()
        sync()
        s0, s1, s2, s3 = f32(0), f32(0), f32(0), f32(0)
        for c in range(0, 4 * WIDTH, 16):
            a = shared_4(shared() + 4 * WIDTH * warp + c)
            b = shared_4(tile + lane * row + c)
            s0 = fma(as_f32(a[0]), as_f32(b[0]), s0)
            s1 = fma(as_f32(a[1]), as_f32(b[1]), s1)
            s2 = fma(as_f32(a[2]), as_f32(b[2]), s2)
            s3 = fma(as_f32(a[3]), as_f32(b[3]), s3)
        s = ((s0 + s1) + (s2 + s3)) * LOG2_E if first + lane < n else LOWEST
        best = s
        for k in range(5):
            best = larger(best, swap_f32(best, 1 << k))
        best = larger(best, top)
        shrink = power_of_2(top - best)
        s = power_of_2(s - best)
        top = best
        put_shared_f32(p + 4 * (HEADS_AT_ONCE * lane + warp), s)
        for k in range(5):
            s = s + swap_f32(s, 1 << k)
        total = fma(total, shrink, s)
        if lane == 0:
            put_shared_f32(shrinks + 4 * warp, shrink)
        sync()
        for h in range(HEADS_AT_ONCE):
            by = shared_f32(shrinks + 4 * h)
            for j in range(SHARES):
                z[SHARES * h + j] = z[SHARES * h + j] * by
        for r in range(TILE):
            a, b, c, d = shared_4(p + 4 * HEADS_AT_ONCE * r)
            e, f, g, h = shared_4(p + 4 * HEADS_AT_ONCE * r + 16)
            for j in range(SHARES):
                column = min(i + THREADS * j, LATENT - 1)
                v = shared_f32(tile + r * row + 4 * column)
                z[j] = fma(as_f32(a), v, z[j])
                z[SHARES + j] = fma(as_f32(b), v, z[SHARES + j])
                z[2 * SHARES + j] = fma(as_f32(c), v, z[2 * SHARES + j])
                z[3 * SHARES + j] = fma(as_f32(d), v, z[3 * SHARES + j])
                z[4 * SHARES + j] = fma(as_f32(e), v, z[4 * SHARES + j])
                z[5 * SHARES + j] = fma(as_f32(f), v, z[5 * SHARES + j])
                z[6 * SHARES + j] = fma(as_f32(g), v, z[6 * SHARES + j])
                z[7 * SHARES + j] = fma(as_f32(h), v, z[7 * SHARES + j])
        sync()
        first += TILE
        if first % SPLIT == 0:
            first += (STRANDS - 1) * SPLIT
    step = 4 * (LATENT + 4) * strands  # from head to head
    part = partials + step * (HEADS * t + head) + 4 * (LATENT + 4) * block_x()
    if lane == 0 and head + warp < HEADS:
        store_f32(part + step * warp + 4 * LATENT, top)
        store_f32(part + step * warp + 4 * LATENT + 4, total)
    for h in range(HEADS_AT_ONCE):
        for j in range(SHARES):
            if i + THREADS * j < LATENT and head + h < HEADS:
                store_f32(part + step * h + 4 * (i + THREADS * j), z[SHARES * h + j])
