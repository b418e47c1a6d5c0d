"""Absorbed attention over f16 and q8_0 rows: scores and sums on tensor cores, one strand a block.

A block has 16 MT heads of one token and goes through its strand in tiles of TILE positions:

    the next tile comes by copy_16 meanwhile      f16: as it is; q8_0: int8, widened to halves
    parts[ks] = q . tile of a slice of columns    warp (ks, m), queries in registers as hi + lo
    scores    = sum of parts; p = 2^(score - maximum) as halves, total  8 lanes a head
    z        += p . tile                          a warp has PAIRS x 16 columns

Halves of int8 are exact. Their d joins in float32 behind a score's products, and before the values'
in halves, so scores are as near to exact as those of f16 rows, and a value is rounded once. Queries
and values beyond 65504 are infinite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.attend_tiles import D_ROW, TILE
from quant.cuda.cache_rows import KIND, PAGES, POSITION, RECORD, page_of
from quant.cuda.intrinsics import (
    as_f32,
    as_u32,
    block_x,
    block_y,
    block_z,
    copies_done_0,
    copies_sent,
    f32,
    fma,
    fma_halves,
    half,
    larger,
    load_2,
    load_i64,
    matrix_4,
    matrix_4_turned,
    mma_f16,
    power_of_2,
    put_shared_2,
    put_shared_f32,
    shared,
    shared_2,
    shared_4,
    shared_f32,
    shared_u32,
    shr,
    store_2,
    store_f32,
    swap_f32,
    sync,
    thread,
    two_halves,
    u32,
)
from quant.cuda.ptx import device

THREADS = 256
PART = 160  # bytes of a head's scores in a part
P = 80  # bytes of a head's p
SPLIT: int = OPEN
STRANDS: int = OPEN
HEADS: int = OPEN
LATENT: int = OPEN
WIDTH: int = OPEN
MT: int = OPEN  # tiles of 16 heads
ROW: int = OPEN  # bytes of a row in a tile: 2 WIDTH + 16, so that no two rows share banks
SLICE: int = OPEN  # steps of 16 columns that a warp multiplies
PAIRS: int = OPEN
Q_WORDS: int = OPEN  # words of a thread's queries, their hi part,
Z_FLOATS: int = OPEN  # of its sums,
P_WORDS: int = OPEN  # of p for 16 positions
LATENT_GROUPS: int = OPEN
Q8: bool = OPEN
OWN_KIND: int = OPEN
PARTS_AT: int = OPEN  # where things lie in shared memory: parts,
P_AT: int = OPEN  # p,
SHRINK_AT: int = OPEN  # what z shrinks by,
RAW_AT: int = OPEN  # int8 rows as they come, and their d,
D_AT: int = OPEN  # d of each 16 columns: WIDTH / 16 rows of D_ROW float32,
DH_AT: int = OPEN  # and as halves
LOG2_E = np.float32(1.4426950408889634)
LOWEST = np.float32(-np.inf)
ZEROS = np.uint32(0)


def head_tiles(heads: int) -> int:
    """MT for a model's heads."""
    return 2 if heads > 16 else 1


def shapes(heads: int, latent: int, width: int, row_groups: int, q8: bool) -> dict[str, int]:
    """The open numbers of a shape, and SHARED: bytes of shared memory."""
    mt = head_tiles(heads)
    steps = width // 16
    slices = 8 // mt
    row = 2 * width + 16
    each, pairs = -(-steps // slices), -(-latent // 128)
    names = {
        "MT": mt, "ROW": row, "SLICE": each, "PAIRS": pairs, "Q_WORDS": 4 * each,
        "Z_FLOATS": 8 * pairs * mt, "P_WORDS": 4 * mt,
    }  # fmt: skip
    at = TILE * row * (1 if q8 else 2)
    for name, n_bytes in (
        ("PARTS_AT", 8 * 16 * PART),
        ("P_AT", 16 * mt * P),
        ("SHRINK_AT", 16 * mt * 4),
        ("RAW_AT", TILE * (width + 2 * row_groups) if q8 else 0),
        ("D_AT", D_ROW * steps * 4 if q8 else 0),
        ("DH_AT", D_ROW * steps * 2 if q8 else 0),
    ):
        names[name] = at
        at += n_bytes
    return names | {"SHARED": at}


def bring(page: Any, layer: Any, first: Any, n: Any, to: Any) -> None:
    """Open: of attend_tiles.py."""


def widen(first: Any, n: Any) -> None:
    """Open: of attend_tiles.py."""


def behind(first: Any) -> Any:
    """Where the strand's next tile begins."""
    following = first + TILE
    if following % SPLIT == 0:
        following += (STRANDS - 1) * SPLIT
    return following


@device
def pair_of(a: Any, b: Any) -> Any:
    """Two float32 -> (their halves, halves of what is left of them)."""
    hi = two_halves(a, b)
    return hi, two_halves(a - half(hi & u32(0xFFFF)), b - half(shr(hi, 16)))


def fetch(q: Any, head: Any, m: Any, ks: Any, hi: Any, lo: Any) -> None:
    """A warp's queries: 16 heads from `head` on (HEADS in all) and its slice of columns."""
    lane = thread() % 32
    for j in range(SLICE):
        for i in range(4):
            h = head + 16 * m + lane // 4 + 8 * (i % 2)
            column = 16 * (ks * SLICE + j) + 2 * (lane % 4) + 8 * (i // 2)
            a, b = f32(0), f32(0)
            if h < HEADS and column < WIDTH:
                words = load_2(q + 4 * (WIDTH * h + column))
                a, b = as_f32(words[0]), as_f32(words[1])
            hi[4 * j + i], lo[4 * j + i] = pair_of(a, b)


@device
def multiply_add(a: Any, i: Any, b0: Any, b1: Any, c: Any, k: Any) -> None:
    """c[k ..] += words i .. of a, (16, 16), times (b0, b1), (16, 8)."""
    c[k], c[k + 1], c[k + 2], c[k + 3] = mma_f16(
        a[i], a[i + 1], a[i + 2], a[i + 3], b0, b1, c[k], c[k + 1], c[k + 2], c[k + 3]
    )


def multiply(hi: Any, lo: Any, tile: Any, m: Any, ks: Any) -> None:
    """A warp's part of the scores of its 16 heads and the tile."""
    lane = thread() % 32
    acc = cuda.local.array(8, types.float32)
    more = cuda.local.array(8, types.float32)
    at = tile + (lane // 16 * 8 + lane % 8) * ROW + lane // 8 % 2 * 16
    to = shared() + PARTS_AT + PART * (16 * (ks * MT + m) + lane // 4) + 8 * (lane % 4)
    for pair in range(2):  # 16 positions
        for i in range(8):
            acc[i] = more[i] = f32(0)
        for j in range(SLICE):
            step = ks * SLICE + j
            if 8 // MT * SLICE == WIDTH // 16 or step < WIDTH // 16:
                b0, b1, b2, b3 = matrix_4(at + pair * 16 * ROW + 32 * step)
                if Q8:
                    for i in range(8):
                        more[i] = f32(0)
                    multiply_add(hi, 4 * j, b0, b1, more, 0)
                    multiply_add(hi, 4 * j, b2, b3, more, 4)
                    multiply_add(lo, 4 * j, b0, b1, more, 0)
                    multiply_add(lo, 4 * j, b2, b3, more, 4)
                    d_at = shared() + D_AT + 4 * (D_ROW * step + 16 * pair + 2 * (lane % 4))
                    for i in range(0, 8, 4):
                        d, e = shared_2(d_at + 8 * i)
                        acc[i] = fma(more[i], as_f32(d), acc[i])
                        acc[i + 1] = fma(more[i + 1], as_f32(e), acc[i + 1])
                        acc[i + 2] = fma(more[i + 2], as_f32(d), acc[i + 2])
                        acc[i + 3] = fma(more[i + 3], as_f32(e), acc[i + 3])
                else:
                    multiply_add(hi, 4 * j, b0, b1, acc, 0)
                    multiply_add(hi, 4 * j, b2, b3, acc, 4)
                    multiply_add(lo, 4 * j, b0, b1, more, 0)
                    multiply_add(lo, 4 * j, b2, b3, more, 4)
        if not Q8:
            for i in range(8):
                acc[i] = acc[i] + more[i]
        for i in range(0, 8, 4):
            at_i = to + 64 * pair + 8 * i
            put_shared_2(at_i, as_u32(acc[i]), as_u32(acc[i + 1]))
            put_shared_2(at_i + 8 * PART, as_u32(acc[i + 2]), as_u32(acc[i + 3]))


def soften(count: Any, top: Any, total: Any) -> Any:
    """Parts -> p of `count` positions of the tile, and what z shrinks by; the new top and total.

    Lanes 8 i .. of warp w: head 4 w + i, four positions each. top is a power of 2's exponent.
    """
    h = thread() // 8
    c = 4 * (thread() % 8)
    at = shared() + PARTS_AT + PART * h + 4 * c
    s0, s1, s2, s3 = f32(0), f32(0), f32(0), f32(0)
    for ks in range(8 // MT):
        v = shared_4(at + ks * 16 * MT * PART)
        s0 = s0 + as_f32(v[0])
        s1 = s1 + as_f32(v[1])
        s2 = s2 + as_f32(v[2])
        s3 = s3 + as_f32(v[3])
    s0 = s0 * LOG2_E if c < count else LOWEST
    s1 = s1 * LOG2_E if c + 1 < count else LOWEST
    s2 = s2 * LOG2_E if c + 2 < count else LOWEST
    s3 = s3 * LOG2_E if c + 3 < count else LOWEST
    best = larger(larger(s0, s1), larger(s2, s3))
    best = larger(best, swap_f32(best, 1))
    best = larger(best, swap_f32(best, 2))
    best = larger(best, swap_f32(best, 4))
    best = larger(best, top)
    shrink = power_of_2(top - best)
    a = two_halves(power_of_2(s0 - best), power_of_2(s1 - best))
    b = two_halves(power_of_2(s2 - best), power_of_2(s3 - best))
    more = (half(a & u32(0xFFFF)) + half(shr(a, 16))) + (half(b & u32(0xFFFF)) + half(shr(b, 16)))
    more = more + swap_f32(more, 1)
    more = more + swap_f32(more, 2)
    more = more + swap_f32(more, 4)
    put_shared_2(shared() + P_AT + P * h + 2 * c, a, b)
    if c == 0:
        put_shared_f32(shared() + SHRINK_AT + 4 * h, shrink)
    return best, fma(total, shrink, more)


def mix(tile: Any, z: Any) -> None:
    """z = shrunken z + p . the tile's first LATENT columns; a warp has PAIRS x 16 of them."""
    lane, warp = thread() % 32, thread() // 32
    for m in range(MT):
        shrink = shared() + SHRINK_AT + 4 * (16 * m + lane // 4)
        r0, r1 = shared_f32(shrink), shared_f32(shrink + 32)
        for j in range(2 * PAIRS):
            k = 4 * (m * 2 * PAIRS + j)
            z[k], z[k + 1] = z[k] * r0, z[k + 1] * r0
            z[k + 2], z[k + 3] = z[k + 2] * r1, z[k + 3] * r1
    p = cuda.local.array(P_WORDS, types.uint32)
    for step in range(2):
        p_at = shared() + P_AT + P * (lane % 16) + 32 * step + 16 * (lane // 16)
        for m in range(MT):
            p[4 * m], p[4 * m + 1], p[4 * m + 2], p[4 * m + 3] = matrix_4(p_at + m * 16 * P)
        at = tile + (16 * step + lane % 16) * ROW + 16 * (lane // 16)
        for j in range(PAIRS):
            pair = warp * PAIRS + j
            if 8 * PAIRS == LATENT // 16 or pair < LATENT // 16:
                b0, b1, b2, b3 = matrix_4_turned(at + 32 * pair)
                if Q8:
                    d_at = shared() + DH_AT + 2 * (D_ROW * pair + 16 * step + 2 * (lane % 4))
                    d, e = shared_u32(d_at), shared_u32(d_at + 16)
                    b0, b1 = fma_halves(b0, d, ZEROS), fma_halves(b1, e, ZEROS)
                    b2, b3 = fma_halves(b2, d, ZEROS), fma_halves(b3, e, ZEROS)
                for m in range(MT):
                    multiply_add(p, 4 * m, b0, b1, z, 8 * (m * PAIRS + j))
                    multiply_add(p, 4 * m, b2, b3, z, 8 * (m * PAIRS + j) + 4)


def attend(rows: int, layer: int, wide: int, wide_stride: int, strands: int, partials: int) -> None:
    """A strand of 16 MT heads of a token -> its partial result. Grid: strands, heads, tokens.

    wide: (heads, WIDTH) float32 queries; partials: see attend.py. strands: of the grid, which has
    all that a token needs. Tokens of another kind are left alone.
    """
    t = block_z()
    record = rows + RECORD * t
    n = load_i64(record + POSITION) + 1
    first = block_x() * SPLIT
    if load_i64(record + KIND) != OWN_KIND or first >= n:
        return
    warp, lane = thread() // 32, thread() % 32
    m, ks = warp % MT, warp // MT
    head = 16 * MT * block_y()
    pages = load_i64(record + PAGES)
    bring(page_of(pages, first), layer, first, n, shared() + RAW_AT if Q8 else shared())
    copies_sent()
    following = behind(first)
    page = page_of(pages, min(following, n - 1))  # known a tile ahead: nobody waits for it
    hi = cuda.local.array(Q_WORDS, types.uint32)
    lo = cuda.local.array(Q_WORDS, types.uint32)
    fetch(wide + t * wide_stride, head, m, ks, hi, lo)
    z = cuda.local.array(Z_FLOATS, types.float32)
    for i in range(Z_FLOATS):
        z[i] = f32(0)
    top, total = LOWEST, f32(0)
    tile, other = shared(), shared() + TILE * ROW
    while first < n:
        count = n - first
        copies_done_0()
        sync()
        if Q8:
            widen(first, n)
            sync()
        if following < n:
            bring(page, layer, following, n, shared() + RAW_AT if Q8 else other)
        copies_sent()
        first, following = following, behind(following)
        page = page_of(pages, min(following, n - 1))
        multiply(hi, lo, tile, m, ks)
        sync()
        if warp < 4 * MT:
            top, total = soften(count, top, total)
        sync()
        mix(tile, z)
        if not Q8:
            tile, other = other, tile
    part = partials + 4 * (LATENT + 4) * strands * (HEADS * t + head) + 4 * (LATENT + 4) * block_x()
    step = 4 * (LATENT + 4) * strands  # from head to head
    if warp < 4 * MT and lane % 8 == 0 and head + thread() // 8 < HEADS:
        at = part + step * (thread() // 8) + 4 * LATENT
        store_f32(at, top)
        store_f32(at + 4, total)
    for m in range(MT):
        for j in range(PAIRS):
            pair = warp * PAIRS + j
            h = 16 * m + lane // 4
            at = part + step * h + 64 * pair + 8 * (lane % 4)
            k = 8 * (m * PAIRS + j)
            if pair < LATENT // 16 and head + h < HEADS:
                store_2(at, as_u32(z[k]), as_u32(z[k + 1]))
                store_2(at + 32, as_u32(z[k + 4]), as_u32(z[k + 5]))
            if pair < LATENT // 16 and head + h + 8 < HEADS:
                store_2(at + 8 * step, as_u32(z[k + 2]), as_u32(z[k + 3]))
                store_2(at + 8 * step + 32, as_u32(z[k + 6]), as_u32(z[k + 7]))


PARTS = behind, fetch, multiply, soften, mix
