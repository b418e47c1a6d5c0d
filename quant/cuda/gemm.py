"""Matrix x many activations on int8 tensor cores, with the CPU's bits.

A block makes ROWS rows x TOKENS tokens. Warp w has columns 32 w .. of every step: one lane of the
product's definition, or two. It decodes them once for all tokens, and keeps acc and low of its
lanes for every output; at the end lanes are added through shared memory. Until then no warp waits
for another. A unit is 16 rows of a lane, a warp has 4; the tensor cores multiply it by 8 tokens:

    slot 8 u + i   row 2 i of unit u, which is row i of the 16, and row 2 i + 1, which is row i + 8
    group of 32    column 8 t + i (i < 4) is their column 4 t + i, 8 t + 4 + i their 16 + 4 t + i

Shared memory of a warp: slots of weights (both rows' words in turn; where a slot has 64 bytes,
parts of 16 change places so that banks do not collide), their s and o, and twice, for one is filled
while the other is used, numbers, scales, sums and integer sums of the tokens.

Instructions of sm_90 for 16 rows x 8 tokens x 32 columns: Q4_K 34 (two planes) and 30 (one), Q8_0
24 (two), Q6_K 56 (two), Q2_K 60 (one). 12 to 20 of them, twice as many for groups of 16, are what
the definition asks for: conversion, scale, and one fused multiply-add or two for each output.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    add32,
    as_f32,
    as_u32,
    block_x,
    block_y,
    block_z,
    blocks_z,
    copies_done_0,
    copies_sent,
    copy_4,
    copy_16,
    f32,
    fma,
    i32,
    load_f32,
    load_i64,
    load_u32,
    mma_i8,
    mma_i8_16,
    mul32,
    put_shared_2,
    put_shared_4,
    shared,
    shared_2,
    shared_4,
    shared_f32,
    shared_u32,
    shl,
    store_f32,
    sync,
    sync_warp,
    thread,
    thread_anew,
    u32,
)
from quant.cuda.plane_type import PlaneType

THREADS = 256
PART = 16  # tokens that go together; a part without tokens is left out
SCALES = PART // 4  # of a thread
ROWS: int = OPEN
TOKENS: int = OPEN
PLANES: int = OPEN  # of the records
LANES: int = OPEN
STEPS: int = OPEN
OFFSETS: bool = OPEN
ZERO: int = OPEN
SPLIT: int = OPEN  # lanes of a warp
OWN: int = OPEN  # tokens whose copies a thread starts
OUTPUTS: int = OPEN  # of a thread, its lanes counted one by one
WORDS: int = OPEN  # of a part's numbers, of a thread
PAIRS: int = OPEN  # of a part's tokens and a warp's lanes
SLOT: int = OPEN  # bytes
BUFFER: int = OPEN  # bytes
WARP: int = OPEN  # bytes
PITCH: int = OPEN  # floats from token to token where lanes are added


def tile_rows(planes: PlaneType) -> int:
    """ROWS of a type."""
    return 512 // planes.lanes


def tile_tokens(planes: PlaneType) -> int:
    """TOKENS of a type: as many as registers allow."""
    return 32 if planes.offsets else 64


def sizes(planes: PlaneType, n_planes: int) -> dict[str, int]:
    """Open numbers of the templates."""
    rows, tokens, split = tile_rows(planes), tile_tokens(planes), planes.lanes // 8
    slot = 2 * planes.group_columns
    sums = split * (planes.offsets + (planes.zero > 0))
    buffer = tokens * (32 * n_planes + 4 + 4 * sums)
    return {
        "ROWS": rows, "TOKENS": tokens, "PLANES": n_planes, "SPLIT": split, "OWN": tokens // 32,
        "OUTPUTS": 2 * tokens, "WORDS": PART // 4 * n_planes, "PAIRS": PART // 4 * split,
        "SLOT": slot, "BUFFER": buffer, "PITCH": rows + 4,
        "WARP": 32 * (slot + (16 if planes.offsets else 8)) + 2 * buffer,
    }  # fmt: skip


def shared_bytes(planes: PlaneType, n_planes: int) -> int:
    """Of a block."""
    found = sizes(planes, n_planes)
    return max(8 * found["WARP"], planes.lanes * 4 * PART * found["PITCH"])


def group(base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any) -> Any:
    """Open: the type's own."""


def bring(numbers: Any, scales: Any, sums: Any, n: Any, to: Any) -> None:
    """Start to copy the next step of the tile's tokens into a buffer.

    Addresses of what a thread copies next, for each of its tokens: see `tile`.
    """
    me = thread() & 31
    for q in range(OWN):
        token = me + 32 * q
        for plane in range(PLANES):
            here = to + 32 * (TOKENS * plane + token)
            copy_16(here, numbers[q] + plane * n)
            copy_16(here + 16, numbers[q] + plane * n + 16)
        here = to + 32 * TOKENS * PLANES
        copy_4(here + 4 * token, scales[q])
        here = here + 4 * TOKENS
        of_sums = scales[q] + n // 8 if SPLIT == 1 else sums[q]
        for h in range(SPLIT):
            if OFFSETS:
                copy_4(here + 4 * (SPLIT * token + h), of_sums + 4 * h)
            if ZERO:
                at = here + (4 * SPLIT * TOKENS if OFFSETS else 0)
                copy_4(at + 4 * (SPLIT * token + h), of_sums + n // 8 * 3 + 4 * h)
        numbers[q] += 256
        scales[q] += 32
        sums[q] += 64
    copies_sent()


def decoded(w: Any, rows: Any, chunks: Any, k: Any) -> Any:
    """Step k of a thread's slot: what `group` gives for its two rows."""
    this = thread_anew()
    me = this & 31
    row = ROWS * block_x() + 2 * (me % (32 // SPLIT))
    lane = SPLIT * (this >> 5) + me // (32 // SPLIT)
    chunk, j = k >> STEPS // 2, k & STEPS - 1
    return (
        group(w, rows, chunks, min(row, rows - 1), chunk, j, lane),
        group(w, rows, chunks, min(row + 1, rows - 1), chunk, j, lane),
    )


def put(to: Any, pair: Any) -> None:
    """What `decoded` gave into a thread's slot."""
    me = thread() & 31
    a, s, o = pair[0]
    b, s2, o2 = pair[1]
    put_words(to + SLOT * me, a, b)
    factors = to + 32 * SLOT
    if OFFSETS:
        put_shared_4(factors + 16 * me, as_u32(s), as_u32(o), as_u32(s2), as_u32(o2))
    else:
        put_shared_2(factors + 8 * me, as_u32(s), as_u32(s2))


def put_8(slot: Any, a: Any, b: Any) -> None:
    """Words of two rows of 32 columns."""
    here = slot + 16 * (thread() >> 1 & 3)
    put_shared_4(here, a[0], b[0], a[1], b[1])
    put_shared_4(here ^ 16, a[2], b[2], a[3], b[3])
    put_shared_4(here ^ 32, a[4], b[4], a[5], b[5])
    put_shared_4(here ^ 48, a[6], b[6], a[7], b[7])


def put_4(slot: Any, a: Any, b: Any) -> None:
    """Words of two rows of 16 columns."""
    put_shared_4(slot, a[0], b[0], a[1], b[1])
    put_shared_4(slot + 16, a[2], b[2], a[3], b[3])


def put_words(slot: Any, a: Any, b: Any) -> None:
    """Open: put_8 or put_4."""


def part(weights: Any, x: Any, first: Any, acc: Any, low: Any) -> None:
    """Add a step to acc and low of the PART tokens from `first` on (a literal)."""
    me = thread() & 31
    g, t = me >> 2, me & 3
    numbers = cuda.local.array(WORDS, types.uint32)
    scale = cuda.local.array(SCALES, types.float32)
    sums = cuda.local.array(PAIRS, types.float32)
    zero = cuda.local.array(PAIRS, types.int32)
    at = x + 32 * g + (8 if SPLIT == 1 else 4) * t
    factors = x + 32 * TOKENS * PLANES + 8 * t
    more = x + (32 * PLANES + 4) * TOKENS + 8 * SPLIT * t
    for j in range(PART // 8):
        for plane in range(PLANES):
            here = 32 * (TOKENS * plane + first + 8 * j)
            i = 2 * (PLANES * j + plane)
            if SPLIT == 1:
                numbers[i], numbers[i + 1] = shared_2(at + here)
            else:
                numbers[i] = shared_u32(at + here)
                numbers[i + 1] = shared_u32(at + (here + 16))
        for i in range(2):
            scale[2 * j + i] = shared_f32(factors + 4 * (first + 8 * j + i))
        for i in range(2 * SPLIT):
            here = 4 * (SPLIT * (first + 8 * j) + i)
            if OFFSETS:
                sums[2 * SPLIT * j + i] = shared_f32(more + here)
            zero[2 * SPLIT * j + i] = i32(0)
            if ZERO:
                whole = shared_u32(more + (here + (4 * SPLIT * TOKENS if OFFSETS else 0)))
                zero[2 * SPLIT * j + i] = i32(mul32(whole, -ZERO))
    at = weights + SLOT * g + (16 * (t ^ g >> 1) if SPLIT == 1 else 8 * t)
    for u in range(4):
        a0, a1, a2, a3 = u32(0), u32(0), u32(0), u32(0)
        if SPLIT == 1:
            a0, a1, a2, a3 = shared_4(at + 8 * SLOT * u)
        else:
            a0, a1 = shared_2(at + 8 * SLOT * u)
        factors = weights + 32 * SLOT
        s, o, s2, o2 = u32(0), u32(0), u32(0), u32(0)
        if OFFSETS:
            s, o, s2, o2 = shared_4(factors + 128 * u + 16 * g)
        else:
            s, s2 = shared_2(factors + 64 * u + 8 * g)
        for j in range(PART // 8):
            h = u // 2 if SPLIT == 2 else 0
            b0, b1 = numbers[2 * PLANES * j], numbers[2 * PLANES * j + 1]
            i = 2 * SPLIT * j + h
            z, z2 = zero[i], zero[i + SPLIT]
            d0, d1, d2, d3 = z, z2, z, z2
            if PLANES == 2:
                b2, b3 = numbers[4 * j + 2], numbers[4 * j + 3]
                d0, d1, d2, d3 = i32(0), i32(0), i32(0), i32(0)
                if SPLIT == 1:
                    d0, d1, d2, d3 = mma_i8(a0, a1, a2, a3, b0, b1, d0, d1, d2, d3)
                else:
                    d0, d1, d2, d3 = mma_i8_16(a0, a1, b1 if h else b0, d0, d1, d2, d3)
                d0, d1, d2, d3 = both(d0, z), both(d1, z2), both(d2, z), both(d3, z2)
                b0, b1 = b2, b3
            if SPLIT == 1:
                d0, d1, d2, d3 = mma_i8(a0, a1, a2, a3, b0, b1, d0, d1, d2, d3)
            else:
                d0, d1, d2, d3 = mma_i8_16(a0, a1, b1 if h else b0, d0, d1, d2, d3)
            k, k2 = scale[2 * j], scale[2 * j + 1]
            to = 4 * (4 * (first // 8 + j) + u)
            acc[to] = fma(f32(d0), as_f32(s) * k, acc[to])
            acc[to + 1] = fma(f32(d1), as_f32(s) * k2, acc[to + 1])
            acc[to + 2] = fma(f32(d2), as_f32(s2) * k, acc[to + 2])
            acc[to + 3] = fma(f32(d3), as_f32(s2) * k2, acc[to + 3])
            if OFFSETS:
                k, k2 = sums[i], sums[i + SPLIT]
                low[to] = fma(as_f32(o), k, low[to])
                low[to + 1] = fma(as_f32(o), k2, low[to + 1])
                low[to + 2] = fma(as_f32(o2), k, low[to + 2])
                low[to + 3] = fma(as_f32(o2), k2, low[to + 3])


def both(high: Any, low: Any) -> Any:
    """256 high + low."""
    return i32(add32(shl(u32(high), 8), u32(low)))


def finish(i: Any, rows: Any, first: Any, count: Any, out: Any, out_stride: Any, add: Any,
           acc: Any, low: Any) -> None:  # fmt: skip
    """Add the lanes of the PART tokens number i (a literal) and store the sums."""
    sync()
    put_lanes(i, acc, low)
    sync()
    for q in range(PART * ROWS // THREADS):
        o = thread() + THREADS * q
        row, token = ROWS * block_x() + o % ROWS, PART * i + o // ROWS
        v = sum_of_lanes(shared() + 4 * (o // ROWS * PITCH + o % ROWS))
        if row < rows and token < count:
            to = out + out_stride * (first + token) + 4 * row
            store_f32(to, load_f32(to) + v if add else v)


def tile(w: Any, rows: Any, chunks: Any, x: Any, x_stride: Any, n: Any, index: Any, first: Any,
         count: Any, out: Any, out_stride: Any, add: Any) -> None:  # fmt: skip
    """Rows ROWS * block_x() .. times the `count` tokens from `first` on, at most TOKENS.

    index: address of the tokens' rows of x (uint32), or 0: they are the tokens.
    """
    me, warp = thread() & 31, thread() >> 5
    numbers = cuda.local.array(OWN, types.int64)
    scales = cuda.local.array(OWN, types.int64)
    sums = cuda.local.array(OWN, types.int64)
    for q in range(OWN):
        token = first + min(me + 32 * q, count - 1)
        at = x + x_stride * (load_u32(index + 4 * token) if index else token)
        numbers[q] = at + 32 * warp
        scales[q] = at + PLANES * n + 4 * warp
        sums[q] = at + PLANES * n + n // 4 + 8 * warp  # of 16 columns
    acc = cuda.local.array(OUTPUTS, types.float32)
    low = cuda.local.array(OUTPUTS, types.float32)
    for i in range(OUTPUTS):
        acc[i] = f32(0)
        low[i] = f32(0)
    weights = shared() + WARP * warp
    used, filled = weights + (WARP - 2 * BUFFER), weights + (WARP - BUFFER)
    bring(numbers, scales, sums, n, used)
    put(weights, decoded(w, rows, chunks, 0))
    copies_done_0()
    sync_warp()
    steps = chunks * STEPS
    for k in range(1, steps + 1):
        if k < steps:
            bring(numbers, scales, sums, n, filled)
        ahead = decoded(w, rows, chunks, min(k, steps - 1))
        part(weights, used, 0, acc, low)
        if count > PART:
            part(weights, used, PART, acc, low)
        if TOKENS > 2 * PART and count > 2 * PART:
            part(weights, used, 2 * PART, acc, low)
        if TOKENS > 2 * PART and count > 3 * PART:
            part(weights, used, 3 * PART, acc, low)
        sync_warp()
        put(weights, ahead)
        copies_done_0()
        sync_warp()
        used, filled = filled, used
    finish(0, rows, first, count, out, out_stride, add, acc, low)
    finish(1, rows, first, count, out, out_stride, add, acc, low)
    if TOKENS > 2 * PART:
        finish(2, rows, first, count, out, out_stride, add, acc, low)
        finish(3, rows, first, count, out, out_stride, add, acc, low)


def put_lanes(i: Any, acc: Any, low: Any) -> None:
    """A warp's lanes of the PART tokens number i (a literal) into shared memory."""
    me, warp = thread() & 31, thread() >> 5
    to = shared() + 4 * PART * PITCH * SPLIT * warp + 8 * PITCH * (me & 3) + 8 * (me >> 2)
    for j in range(PART // 8):
        for u in range(4):
            here = to + (64 * u if SPLIT == 1 else 4 * PART * PITCH * (u // 2) + 64 * (u % 2))
            for k in range(2):
                at = 4 * (4 * (PART // 8 * i + j) + u) + k
                v, v2 = acc[at], acc[at + 2]
                if OFFSETS:
                    v, v2 = v + low[at], v2 + low[at + 2]
                put_shared_2(here + 4 * PITCH * (8 * j + k), as_u32(v), as_u32(v2))


def sum_of_lanes(at: Any) -> Any:
    """Of one output: halves added until one is left."""
    v = cuda.local.array(LANES, types.float32)
    for i in range(LANES):
        v[i] = shared_f32(at + 4 * PART * PITCH * i)
    if LANES == 16:
        for i in range(8):
            v[i] = v[i] + v[i + 8]
    for i in range(4):
        v[i] = v[i] + v[i + 4]
    return (v[0] + v[2]) + (v[1] + v[3])


def inner(planes: PlaneType) -> dict[str, Any]:
    """What kernels call, in an order in which it can be bound."""
    return {
        "both": both, "bring": bring, "decoded": decoded,
        "put_words": put_8 if planes.lanes == 8 else put_4, "put": put, "part": part,
        "put_lanes": put_lanes, "sum_of_lanes": sum_of_lanes, "finish": finish, "tile": tile,
    }  # fmt: skip


def many_dense(w: int, rows: int, chunks: int, x: int, x_stride: int, n: int, tokens: int,
               out: int, out_stride: int, add: int) -> None:  # fmt: skip
    """As matvec.dense, for any number of tokens. Grid: row tiles, token tiles."""
    first = TOKENS * block_y()
    count = min(TOKENS, tokens - first)
    tile(w, rows, chunks, x, x_stride, n, 0, first, count, out, out_stride, add)


def many_chosen(table: int, items: int, used: int, starts: int, index: int, rows: int, chunks: int,
                x: int, x_stride: int, n: int, out: int, out_stride: int) -> None:  # fmt: skip
    """As matvec.chosen. Grid: row tiles, items at most, any number: blocks that share an item."""
    item = block_y()
    if item >= load_u32(used):
        return
    w = load_i64(table + 8 * load_u32(items + 4 * item))
    first = load_u32(starts + 4 * item) + TOKENS * block_z()
    while first < load_u32(starts + 4 * item + 4):
        count = min(TOKENS, load_u32(starts + 4 * item + 4) - first)
        tile(w, rows, chunks, x, x_stride, n, index, first, count, out, out_stride, 0)
        sync()
        first += TOKENS * blocks_z()
