"""Attention of long prompts in expanded form: keys and values first, then blocks of queries.

    key[s] = [ k_b . c[s] | k_rope[s] ]    value[s] = v_b . c[s]    score = q . key[s]

Launched in order, for as many heads as have room (k_b, v_b, q and out of the first of them), for
the tokens of one span, whose rows have been appended:

    expand            positions 0 .. of the cache -> keys (heads, room, KEY), values (heads, room,
                      VALUES padded to 16) as halves; room: positions up to a multiple of BLOCK
    attend_expanded   queries -> out, BLOCK tokens and a head a block

for rows of f16 and q8_0 (of f32, halves would lose what they hold: those stay absorbed). A key is
made from its row alone and a query goes through all keys up to its own in order, TILE at a time, so
what a token gets does not depend on how its prompt was cut. nope, rope and values are even.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN, bind
from quant.cuda.attend_halves import LOG2_E, LOWEST, ZEROS, multiply_add
from quant.cuda.attend_tiles import halves_of
from quant.cuda.cache_rows import KIND, PAGE, PAGES, POSITION, RECORD, groups, page_of
from quant.cuda.intrinsics import (
    as_f32,
    as_u32,
    block_x,
    block_y,
    copies_done_0,
    copies_sent,
    copy_16,
    f32,
    fma,
    fma_halves,
    half,
    larger,
    load_2,
    load_4,
    load_f32,
    load_i64,
    load_u16,
    matrix_4,
    matrix_4_turned,
    mul32,
    power_of_2,
    put_shared_4,
    put_shared_u32,
    quotient,
    shared,
    shr,
    store_2,
    store_4,
    store_u32,
    swap_f32,
    sync,
    thread,
    two_halves,
    u32,
)
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import device
from quant.run.cache_rows import RowKind

THREADS = 256
BLOCK = 128  # positions, or queries, of a block
TILE = 64  # keys at a time
CUT = 64  # columns of c at a time
MOST_KEY, MOST_VALUES = 192, 128  # columns of a head: more would spill
CUT_ROW = 2 * CUT + 16  # bytes of a row of them
NOPE: int = OPEN
ROPE: int = OPEN
VALUES: int = OPEN
RANK: int = OPEN
LATENT: int = OPEN
WIDTH: int = OPEN
LATENT_GROUPS: int = OPEN
GROUPS: int = OPEN
NOPE_PAIRS: int = OPEN  # pairs of 8 columns: NOPE / 16,
VALUE_PAIRS: int = OPEN  # VALUES / 16,
KEY: int = OPEN  # 16 NOPE_PAIRS + the columns of k_rope
SUMS: int = OPEN  # floats of a thread's keys or values
Q_WORDS: int = OPEN
Z_FLOATS: int = OPEN
_Q8_0 = int(RowKind.Q8_0)
TWICE = np.uint32(0x10001)


def chunk(kind: Any, page: Any, layer: Any, place: Any, column: Any) -> Any:
    """Columns column .. column + 7 of the row at a place of a page: 4 words of halves."""
    if kind == _Q8_0:
        base = page + layer * PAGE * (WIDTH + 2 * GROUPS)
        g = column // 32
        if column >= LATENT:
            g = LATENT_GROUPS + (column - LATENT) // 32
        d = mul32(load_u16(base + PAGE * WIDTH + 2 * (place * GROUPS + g)), TWICE)
        low, high = load_2(base + place * WIDTH + column)
        a, b = halves_of(low)
        c, e = halves_of(high)
        a, b = fma_halves(a, d, ZEROS), fma_halves(b, d, ZEROS)
        c, e = fma_halves(c, d, ZEROS), fma_halves(e, d, ZEROS)
    else:
        a, b, c, e = load_4(page + (layer * PAGE + place) * 2 * WIDTH + 2 * column)
    return a, b, c, e


@device
def _weights(at: Any, there: Any) -> Any:
    """Two float32 -> a word of halves; 0 where there are none."""
    word = u32(0)
    if there:
        a, b = load_2(at)
        word = two_halves(as_f32(a), as_f32(b))
    return word


def expand(
    row: int, layer: int, positions: int, k_b: int, v_b: int, keys: int, values: int, room: int
) -> None:
    """Positions 0 .. positions - 1 of a sequence -> keys and values. Grid: positions, heads.

    row: a record of the sequence. k_b: (heads, RANK, NOPE), v_b: (heads, VALUES, RANK) float32.
    Behind the last position, up to the end of its BLOCK, come copies of it.
    """
    i, warp, lane = thread(), thread() // 32, thread() % 32
    first, h = BLOCK * block_x(), block_y()
    kind, page = load_i64(row + KIND), page_of(load_i64(row + PAGES), first)
    r, side = i // 2, i % 2  # a row of the block for loads, half of it
    place = first % PAGE + min(r, positions - 1 - first)
    nope_row = 32 * NOPE_PAIRS + 16
    k_at = shared() + BLOCK * CUT_ROW
    v_at = k_at + CUT * nope_row
    k_b += 4 * h * RANK * NOPE
    v_b += 4 * h * VALUES * RANK
    acc = cuda.local.array(SUMS, types.float32)
    a = cuda.local.array(8, types.uint32)
    for k in range(SUMS):
        acc[k] = f32(0)
    for cut in range(0, LATENT, CUT):
        sync()
        for k in range(4):
            column = 8 * (4 * side + k)
            b0, b1, b2, b3 = u32(0), u32(0), u32(0), u32(0)
            if cut + column < LATENT:
                b0, b1, b2, b3 = chunk(kind, page, layer, place, cut + column)
            put_shared_4(shared() + r * CUT_ROW + 2 * column, b0, b1, b2, b3)
        for k in range(i, CUT * 8 * NOPE_PAIRS, THREADS):
            c, j = k // (8 * NOPE_PAIRS), 2 * (k % (8 * NOPE_PAIRS))
            word = _weights(k_b + 4 * ((cut + c) * NOPE + j), cut + c < RANK and j < NOPE)
            put_shared_u32(k_at + c * nope_row + 2 * j, word)
        for k in range(i, 16 * VALUE_PAIRS * CUT // 2, THREADS):
            j, c = k // (CUT // 2), 2 * (k % (CUT // 2))
            word = _weights(v_b + 4 * (j * RANK + cut + c), cut + c < RANK and j < VALUES)
            put_shared_u32(v_at + j * CUT_ROW + 2 * c, word)
        sync()
        at = shared() + (32 * (warp % 4) + lane % 16) * CUT_ROW + 16 * (lane // 16)
        for step in range(CUT // 16):
            a[0], a[1], a[2], a[3] = matrix_4(at + 32 * step)
            a[4], a[5], a[6], a[7] = matrix_4(at + 32 * step + 16 * CUT_ROW)
            if warp < 4:
                of = k_at + (16 * step + lane % 16) * nope_row + 16 * (lane // 16)
                for j in range(NOPE_PAIRS):
                    b0, b1, b2, b3 = matrix_4_turned(of + 32 * j)
                    multiply_add(a, 0, b0, b1, acc, 16 * j)
                    multiply_add(a, 0, b2, b3, acc, 16 * j + 4)
                    multiply_add(a, 4, b0, b1, acc, 16 * j + 8)
                    multiply_add(a, 4, b2, b3, acc, 16 * j + 12)
            else:
                of = v_at + (lane // 16 * 8 + lane % 8) * CUT_ROW + lane // 8 % 2 * 16
                for j in range(VALUE_PAIRS):
                    b0, b1, b2, b3 = matrix_4(of + 16 * j * CUT_ROW + 32 * step)
                    multiply_add(a, 0, b0, b1, acc, 16 * j)
                    multiply_add(a, 0, b2, b3, acc, 16 * j + 4)
                    multiply_add(a, 4, b0, b1, acc, 16 * j + 8)
                    multiply_add(a, 4, b2, b3, acc, 16 * j + 12)
    here = room * h + first
    own = here + 32 * (warp % 4) + lane // 4
    if warp < 4:
        to = keys + 2 * KEY * own + 4 * (lane % 4)
        for j in range(NOPE_PAIRS):
            for k in range(4):  # rows 8 k ..
                n = 16 * j + 8 * (k // 2) + 2 * (k % 2)
                store_u32(to + 16 * KEY * k + 32 * j, two_halves(acc[n], acc[n + 1]))
                store_u32(to + 16 * KEY * k + 32 * j + 16, two_halves(acc[n + 4], acc[n + 5]))
    else:
        to = values + 32 * VALUE_PAIRS * own + 4 * (lane % 4)
        for j in range(VALUE_PAIRS):
            for k in range(4):
                n = 16 * j + 8 * (k // 2) + 2 * (k % 2)
                at = to + 256 * VALUE_PAIRS * k + 32 * j
                store_u32(at, two_halves(acc[n], acc[n + 1]))
                store_u32(at + 16, two_halves(acc[n + 4], acc[n + 5]))
    to = keys + 2 * (KEY * (here + r) + 16 * NOPE_PAIRS)
    for k in range(side, (WIDTH - LATENT) // 8, 2):
        b0, b1, b2, b3 = chunk(kind, page, layer, place, LATENT + 8 * k)
        store_4(to + 16 * k, b0, b1, b2, b3)


def bring(keys: Any, values: Any, first: Any, to: Any) -> None:
    """Send for TILE keys and values from position `first` on."""
    r, c = thread() // 4, thread() % 4
    at, tile = keys + 2 * KEY * (first + r), to + r * (2 * KEY + 16)
    for i in range(c, KEY // 8, 4):
        copy_16(tile + 16 * i, at + 16 * i)
    at = values + 32 * VALUE_PAIRS * (first + r)
    tile = to + TILE * (2 * KEY + 16) + r * (32 * VALUE_PAIRS + 16)
    for i in range(c, 2 * VALUE_PAIRS, 4):
        copy_16(tile + 16 * i, at + 16 * i)


def fetch(q: Any, cos: Any, sin: Any, scale: Any, at: Any, words: Any) -> None:
    """A token's queries, turned and scaled -> words at, at + 2, at + 4, .. of the block's 16."""
    lane = thread() % 32
    for j in range(KEY // 16):
        for i in range(2):
            column = 16 * j + 8 * i + 2 * (lane % 4)
            a, b = f32(0), f32(0)
            if j < NOPE_PAIRS:
                if column < NOPE:
                    c, d = load_2(q + 4 * column)
                    a, b = as_f32(c), as_f32(d)
            elif column - 16 * NOPE_PAIRS < ROPE:
                column -= 16 * NOPE_PAIRS
                c, d = load_2(q + 4 * (NOPE + column))
                x, y = as_f32(c), as_f32(d)
                co, si = load_f32(cos + 2 * column), load_f32(sin + 2 * column)
                a, b = x * co - y * si, x * si + y * co
            words[4 * j + 2 * i + at] = two_halves(a * scale, b * scale)


def soften(s: Any, at: Any, first: Any, last: Any, top: Any, p: Any) -> Any:
    """Scores of one query -> p as halves; its new top, what z shrinks by, what the total grows by.

    s: numbers 4 n + at and 4 n + at + 1 are of positions first + 8 n + 2 (lane mod 4) and the next;
    those behind `last` have no score.
    """
    lane = thread() % 32
    best = top
    for n in range(TILE // 8):
        position = first + 8 * n + 2 * (lane % 4)
        if position > last:
            s[4 * n + at] = LOWEST
        if position + 1 > last:
            s[4 * n + at + 1] = LOWEST
        best = larger(best, larger(s[4 * n + at], s[4 * n + at + 1]))
    best = larger(best, swap_f32(best, 1))
    best = larger(best, swap_f32(best, 2))
    more = f32(0)
    for n in range(TILE // 8):
        word = two_halves(power_of_2(s[4 * n + at] - best), power_of_2(s[4 * n + at + 1] - best))
        p[2 * n + at // 2] = word
        more = more + (half(word & u32(0xFFFF)) + half(shr(word, 16)))
    return best, power_of_2(top - best), more


def attend(
    rows: int, tokens: int, q: int, q_stride: int, q_head: int, cos: int, sin: int,
    scale_bits: int, keys: int, values: int, room: int, out: int, out_stride: int, out_head: int,
) -> None:  # fmt: skip
    """Causal attention of tokens of one sequence. Grid: tokens, heads.

    rows: records, positions ascending; q: [ NOPE | ROPE ] float32, not turned, heads q_head bytes
    apart; cos, sin: (tokens, ROPE / 2); out: (VALUES,) float32, heads out_head bytes apart.
    """
    warp, lane, h = thread() // 32, thread() % 32, block_y()
    t = BLOCK * block_x() + 16 * warp + lane // 4  # and t + 8
    t0, t1 = min(t, tokens - 1), min(t + 8, tokens - 1)
    end = load_i64(rows + RECORD * min(BLOCK * block_x() + BLOCK, tokens) - RECORD + POSITION) + 1
    last_0 = load_i64(rows + RECORD * t0 + POSITION)
    last_1 = load_i64(rows + RECORD * t1 + POSITION)
    keys += 2 * KEY * room * h
    values += 32 * VALUE_PAIRS * room * h
    size = TILE * (2 * KEY + 32 * VALUE_PAIRS + 32)
    tile, other = shared(), shared() + size
    bring(keys, values, 0, tile)
    copies_sent()
    scale = as_f32(u32(scale_bits)) * LOG2_E
    words = cuda.local.array(Q_WORDS, types.uint32)
    q += q_head * h
    fetch(q + q_stride * t0, cos + 2 * ROPE * t0, sin + 2 * ROPE * t0, scale, 0, words)
    fetch(q + q_stride * t1, cos + 2 * ROPE * t1, sin + 2 * ROPE * t1, scale, 1, words)
    z = cuda.local.array(Z_FLOATS, types.float32)
    for i in range(Z_FLOATS):
        z[i] = f32(0)
    s = cuda.local.array(32, types.float32)  # TILE / 2
    p = cuda.local.array(16, types.uint32)
    top_0, top_1, total_0, total_1 = LOWEST, LOWEST, f32(0), f32(0)
    for first in range(0, end, TILE):
        copies_done_0()
        sync()
        if first + TILE < end:
            bring(keys, values, first + TILE, other)
        copies_sent()
        for i in range(32):
            s[i] = f32(0)
        at = tile + (lane // 16 * 8 + lane % 8) * (2 * KEY + 16) + lane // 8 % 2 * 16
        for j in range(KEY // 16):
            for pair in range(TILE // 16):
                b0, b1, b2, b3 = matrix_4(at + pair * 16 * (2 * KEY + 16) + 32 * j)
                multiply_add(words, 4 * j, b0, b1, s, 8 * pair)
                multiply_add(words, 4 * j, b2, b3, s, 8 * pair + 4)
        top_0, shrink, more = soften(s, 0, first, last_0, top_0, p)
        total_0 = fma(total_0, shrink, more)
        for i in range(0, Z_FLOATS, 4):
            z[i], z[i + 1] = z[i] * shrink, z[i + 1] * shrink
        top_1, shrink, more = soften(s, 2, first, last_1, top_1, p)
        total_1 = fma(total_1, shrink, more)
        for i in range(2, Z_FLOATS, 4):
            z[i], z[i + 1] = z[i] * shrink, z[i + 1] * shrink
        at = tile + TILE * (2 * KEY + 16) + lane % 16 * (32 * VALUE_PAIRS + 16) + 16 * (lane // 16)
        for step in range(TILE // 16):
            for j in range(VALUE_PAIRS):
                b0, b1, b2, b3 = matrix_4_turned(at + step * 16 * (32 * VALUE_PAIRS + 16) + 32 * j)
                multiply_add(p, 4 * step, b0, b1, z, 8 * j)
                multiply_add(p, 4 * step, b2, b3, z, 8 * j + 4)
        tile, other = other, tile
    total_0 = total_0 + swap_f32(total_0, 1)
    total_0 = total_0 + swap_f32(total_0, 2)
    total_1 = total_1 + swap_f32(total_1, 1)
    total_1 = total_1 + swap_f32(total_1, 2)
    by_0, by_1 = quotient(f32(1), total_0), quotient(f32(1), total_1)
    to = out + out_stride * t + out_head * h
    for j in range(2 * VALUE_PAIRS):
        column = 8 * j + 2 * (lane % 4)
        if column < VALUES and t < tokens:
            store_2(to + 4 * column, as_u32(z[4 * j] * by_0), as_u32(z[4 * j + 1] * by_0))
        if column < VALUES and t + 8 < tokens:
            at = to + 8 * out_stride + 4 * column
            store_2(at, as_u32(z[4 * j + 2] * by_1), as_u32(z[4 * j + 3] * by_1))


def fits(nope: int, values: int, rope: int) -> bool:
    """Whether a block has registers and shared memory for heads of this size."""
    return nope + rope <= MOST_KEY and values <= MOST_VALUES


def room_bytes(nope: int, values: int, rope: int, positions: int) -> tuple[int, int, int]:
    """(positions with room, bytes of a head's keys, of its values)."""
    room = -(-positions // BLOCK) * BLOCK
    nope, values, rope = (-(-n // 16) * 16 for n in (nope, values, rope))
    return room, 2 * room * (nope + rope), 2 * room * values


@cache
def of_shape(
    nope: int, values: int, rank: int, rope: int, latent: int, width: int
) -> dict[str, Kernel]:
    """Both kernels of a shape; latent, width - latent: rank and rope up to multiples of 16."""
    of_latent, of_row = groups(latent, width)
    nope_pairs, value_pairs = -(-nope // 16), -(-values // 16)
    key = 16 * nope_pairs + width - latent
    names: dict[str, Any] = {
        "NOPE": nope, "ROPE": rope, "VALUES": values, "RANK": rank, "LATENT": latent,
        "WIDTH": width, "LATENT_GROUPS": of_latent, "GROUPS": of_row, "NOPE_PAIRS": nope_pairs,
        "VALUE_PAIRS": value_pairs, "KEY": key, "SUMS": 16 * max(nope_pairs, value_pairs),
        "Q_WORDS": key // 4, "Z_FLOATS": 8 * value_pairs,
    }  # fmt: skip
    for part in (chunk, bring, fetch, soften):
        names[part.__name__] = device(bind(part, part.__name__, **names))
    tiles = 2 * TILE * (2 * key + 32 * value_pairs + 32)
    cut = (BLOCK + 16 * value_pairs) * CUT_ROW + CUT * (32 * nope_pairs + 16)
    return {
        "expand": _kernel(expand, "expand", names, cut),
        "attend_expanded": _kernel(attend, "attend_expanded", names, tiles),
    }


def _kernel(template: Callable[..., None], name: str, names: dict[str, Any], shared: int) -> Kernel:
    return Kernel(name=name, function=bind(template, name, **names), threads=THREADS, shared=shared)
