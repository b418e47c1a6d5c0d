"""Experts on the GPU: who computes what (`route`, as in quant/run/layer_ops.py), and their sum.

    route          a warp per token (scores.py)
    sort_choices   one block: a warp has consecutive choices, 32 at a time, and counts of its own
    combine        a thread has 4 columns

Rows of float32 begin at multiples of 16 bytes; logits and biases may be read up to the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from quant.cuda.intrinsics import (
    add32,
    alike,
    as_f32,
    as_u32,
    block_x,
    block_y,
    div32,
    fma,
    from_lane_u32,
    i32,
    larger,
    load_4,
    load_f32,
    load_i64,
    load_u32,
    pop_count,
    put_shared_f32,
    put_shared_u32,
    quotient,
    shared,
    shared_f32,
    shared_u32,
    store_2,
    store_4,
    store_f32,
    store_i64,
    store_u32,
    sync,
    sync_warp,
    thread,
    u32,
    vote,
)
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import device
from quant.cuda.scores import (
    NOBODY,
    NONE,
    ZERO,
    best_choice,
    drop_groups,
    exponentials,
    fetch,
    known,
    numbers,
    put_numbers,
)
from quant.run.layer_ops import MIN_WEIGHT_SUM

ONE, NAN = np.float32(1), np.float32(np.nan)


def route_shared(n_experts: int) -> int:
    """Bytes of shared memory that `route` needs."""
    return 12 * (-(-n_experts // 128) * 128)


def route(logits: int, logits_stride: int, n_experts: int, bias: int, sigmoid: int, groups: int,
          used: int, normalise: int, scale_bits: int, top_k: int, ids: int,
          weights: int) -> None:  # fmt: skip
    """Choose top_k <= 32 experts per token: ids (int64) and weights, both (rows, top_k).

    bias: 0, or (n_experts,) float32. scale_bits: of a float32. Grid: rows; shared memory:
    `route_shared`.
    """
    t, lane = block_x(), thread()
    n = (n_experts + 127) // 128 * 128
    scores = shared()
    choice = scores + 4 * n
    fetch(scores, logits + logits_stride * t, choice, bias, n_experts)
    fault = exponentials(scores, n_experts, n, sigmoid)
    total = ZERO
    if not sigmoid:
        for e in range(0, n, 4):  # in every lane: one after the other, as the CPU does
            a, b, c, d = numbers(scores + 4 * e)
            total = (((total + a) + b) + c) + d
        sync_warp()
    for e in range(4 * lane, n, 128):
        a, b, c, d = numbers(scores + 4 * e)
        if sigmoid:
            a, b = quotient(ONE, ONE + a), quotient(ONE, ONE + b)
            c, d = quotient(ONE, ONE + c), quotient(ONE, ONE + d)
        else:
            a, b = quotient(a, total), quotient(b, total)
            c, d = quotient(c, total), quotient(d, total)
        put_numbers(scores + 4 * e, a, b, c, d)
        if bias:
            v = known(choice, e, n_experts, ZERO)
            a, b, c, d = a + v[0], b + v[1], c + v[2], d + v[3]
        fault = fault + ((a - a) + (b - b) + (c - c) + (d - d))
        put_numbers(
            choice + 4 * e,
            a if e < n_experts else NONE,
            b if e + 1 < n_experts else NONE,
            c if e + 2 < n_experts else NONE,
            d if e + 3 < n_experts else NONE,
        )
    fault = NAN if vote(fault != fault) else ZERO
    if groups > 1:
        drop_groups(choice, n_experts, groups, used, choice + 4 * n)
    sync_warp()
    total = ZERO
    own = ZERO
    own_id = 0
    for k in range(top_k):
        best = i32(best_choice(choice, n))
        if fault != fault:  # nothing compares, but no expert may be chosen twice
            best = i32(k)
        if lane == best >> 2 & 31:
            put_shared_f32(choice + 4 * best, NONE)
        weight = shared_f32(scores + 4 * best)
        total = total + weight
        if lane == k:
            own = weight
            own_id = best
    if lane < top_k:
        if normalise:
            own = quotient(own, larger(total, MIN_WEIGHT_SUM))
        at = t * top_k + lane
        store_i64(ids + 8 * at, own_id)
        store_f32(weights + 4 * at, own * as_f32(u32(scale_bits)) + fault)


SORTERS = 256
WARPS = SORTERS // 32


def sort_shared(n_experts: int) -> int:
    """Bytes of shared memory that `sort_choices` needs."""
    return 4 * (WARPS + 1) * n_experts + 4 * WARPS


@device
def places_before(v: Any, sums: Any) -> Any:
    """The sum of the words of all threads before this one. sums: room for a word of each warp."""
    lane, warp = thread() % 32, thread() // 32
    total = v
    for lanes in (1, 2, 4, 8, 16):
        below = from_lane_u32(total, lane - lanes)
        if lane >= lanes:
            total = add32(total, below)
    if lane == 31:
        put_shared_u32(sums + 4 * warp, total)
    sync()
    before = u32(total - v)
    for w in range(WARPS):
        if w < warp:
            before = add32(before, shared_u32(sums + 4 * w))
    return before


@device
def is_here(table: Any, e: Any) -> Any:
    """Whether an expert has an entry; 0: all have."""
    return table == 0 or load_i64(table + 8 * e) != 0


def sort_choices(ids: int, rows: int, top_k: int, n_experts: int, table: int, experts: int,
                 starts: int, tokens: int, slots: int, used: int) -> None:  # fmt: skip
    """A routing sorted by expert, as `group_choices` does; but for ids and table all are uint32.

    ids (rows, top_k), int64, at most 65535 of them; table: 0, or (n_experts,) int64: experts whose
    entry is 0 are not here, and come behind all others -> experts (n in use,), ascending among
    those that are here and among those that are not; starts (n + 1,): first slot of each; tokens
    (rows * top_k,): the row of each slot; slots (rows, top_k): the slot of each choice; used (2,):
    experts in use that are here, slots of theirs. Grid: 1; shared memory: `sort_shared`.
    """
    lane, warp = thread() % 32, thread() // 32
    count = rows * top_k
    each = (count + SORTERS - 1) // SORTERS * 32  # choices of a warp
    first = each * warp
    counts = shared()
    own = counts + 4 * n_experts * warp
    totals = counts + 4 * n_experts * WARPS
    before = u32((1 << lane) - 1)  # lanes
    for i in range(thread(), WARPS * n_experts, SORTERS):
        put_shared_u32(counts + 4 * i, 0)
    sync()
    for i in range(first + lane, first + each, 32):
        expert = load_i64(ids + 8 * i) if i < count else NOBODY
        same = alike(expert)
        if i < count and same & before == 0:
            put_shared_u32(own + 4 * expert, shared_u32(own + 4 * expert) + pop_count(same))
        sync_warp()
    sync()
    many = (2 * n_experts + SORTERS - 1) // SORTERS  # places of a thread: all experts, twice
    start = thread() * many
    end = min(start + many, 2 * n_experts)
    places = u32(0)  # slots; from bit 16 on: experts in use
    for v in range(start, end):
        e = v if v < n_experts else v - n_experts
        if is_here(table, e) == (v < n_experts):
            total = u32(0)
            for w in range(WARPS):
                at = counts + 4 * (w * n_experts + e)
                n = shared_u32(at)
                put_shared_u32(at, total)
                total = add32(total, n)
            put_shared_u32(totals + 4 * e, total)
            places = add32(places, total + (0x10000 if total else 0))
    places = places_before(places, totals + 4 * n_experts)
    for v in range(start, end):
        e = v if v < n_experts else v - n_experts
        if v == n_experts:
            store_2(used, places >> 16, places & 0xFFFF)
        if is_here(table, e) == (v < n_experts):
            total = shared_u32(totals + 4 * e)
            slot = places & 0xFFFF
            put_shared_u32(totals + 4 * e, slot)
            if total:
                store_u32(experts + 4 * (places >> 16), e)
                store_u32(starts + 4 * (places >> 16), slot)
                places = add32(places, total + 0x10000)
    if thread() == SORTERS - 1:
        store_u32(starts + 4 * (places >> 16), places & 0xFFFF)
    sync()
    for i in range(first + lane, first + each, 32):
        expert = load_i64(ids + 8 * i) if i < count else NOBODY
        same = alike(expert)
        if i < count:
            here = shared_u32(own + 4 * expert)
            slot = shared_u32(totals + 4 * expert) + here + pop_count(same & before)
            store_u32(slots + 4 * i, slot)
            store_u32(tokens + 4 * slot, div32(i, top_k))
        sync_warp()
        if i < count and same & before == 0:
            put_shared_u32(own + 4 * expert, shared_u32(own + 4 * expert) + pop_count(same))
        sync_warp()


AT_ONCE = 8  # parts under way
NUMBERS = 4 * AT_ONCE


@device
def loaded(at: Any) -> Any:
    """Four numbers."""
    words = load_4(at)
    return as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3])


def combine(parts: int, parts_stride: int, slots: int, weights: int, top_k: int, shared_part: int,
            shared_stride: int, n: int, x: int, x_stride: int, here: int, elsewhere: int,
            elsewhere_stride: int, elsewhere_slots: int,
            elsewhere_slots_stride: int) -> None:  # fmt: skip
    """x += a row's parts (those of its slots) times weights, k = 0 first; then its shared part.

    x (rows, n); slots (uint32), weights (rows, top_k); n: a multiple of 8. shared_part: 0: none.
    here: 0, or the address of a uint32: a choice of that slot, or a later one, has its part
    elsewhere, in the slot that elsewhere_slots (rows, top_k) int64 has for it.
    Grid: n / 256, rows.
    """
    t, column = block_y(), 256 * block_x() + 4 * thread()
    if column >= n:
        return
    row = x + x_stride * t
    a, b, c, d = loaded(row + 4 * column)
    n_here = load_u32(here) if here else u32(0xFFFFFFFF)
    for first in range(0, top_k, AT_ONCE):
        v = cuda.local.array(NUMBERS, types.float32)
        w = cuda.local.array(AT_ONCE, types.float32)
        for i in range(AT_ONCE):
            k = min(first + i, top_k - 1)
            at = 4 * (t * top_k + k)
            w[i] = load_f32(weights + at)
            slot = load_u32(slots + at)
            if slot < n_here:
                part = parts + parts_stride * slot
            else:
                slot = load_i64(elsewhere_slots + elsewhere_slots_stride * t + 8 * k)
                part = elsewhere + elsewhere_stride * slot
            v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3] = loaded(part + 4 * column)
        for i in range(AT_ONCE):
            if first + i < top_k:
                a, b = fma(v[4 * i], w[i], a), fma(v[4 * i + 1], w[i], b)
                c, d = fma(v[4 * i + 2], w[i], c), fma(v[4 * i + 3], w[i], d)
    if shared_part:
        s = loaded(shared_part + shared_stride * t + 4 * column)
        a, b, c, d = a + s[0], b + s[1], c + s[2], d + s[3]
    store_4(row + 4 * column, as_u32(a), as_u32(b), as_u32(c), as_u32(d))


ROUTE = Kernel(name="route", function=route, threads=32)
SORT = Kernel(name="sort_choices", function=sort_choices, threads=SORTERS)
ALL_HERE = 0, 0, 0, 0, 0  # of COMBINE: no part is elsewhere
COMBINE = Kernel(name="combine", function=combine, threads=64)
