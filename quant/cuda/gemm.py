"""Matrix x many activations on int8 tensor cores, with the CPU's bits.

A block makes ROWS rows x TOKENS tokens. Warp g is lane g of the product's definition: it holds
columns of group g of every step, decodes them once for all tokens, and keeps acc and low of lane g
for every output; at the end the lanes are added through shared memory. So a warp waits for no
other until then. A product of the tensor cores is 16 rows x 8 tokens x a group:

    row 2 i of a thread's pair: row i of the 16; row 2 i + 1: row i + 8
    column 8 t + i (group 32; i < 4): column 4 t + i; 8 t + 4 + i: 16 + 4 t + i     in both factors

Shared memory of a warp: weights (a pair of rows: 4 x [8 bytes of each]; of the row pairs 16 bytes
are in turn, so that banks do not collide), s and o of its rows, and twice (one is filled while the
other is used) the numbers of the activations and their scales, sums and integer sums.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    add32,
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
    put_shared_f32,
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
    u32,
)
from quant.cuda.intrinsics import as_f32 as as_float
from quant.cuda.plane_type import PlaneType

ROWS = 64
ROUND = 16  # tokens whose lanes are added at a time
PITCH = 68  # floats from token to token meanwhile
TOKENS: int = OPEN
PART: int = OPEN  # tokens that go together; a part without tokens is left out
PLANES: int = OPEN  # of the records
LANES: int = OPEN
STEPS: int = OPEN
OFFSETS: bool = OPEN
ZERO: int = OPEN
GROUP: int = OPEN  # columns
OWN: int = OPEN  # tokens whose copies a thread starts
OUTPUTS: int = OPEN  # of a thread
PAIRS: int = OPEN  # tokens of a part that a thread has outputs of
WORDS: int = OPEN  # of a part's numbers that a thread feeds the tensor cores with
WEIGHTS: int = OPEN  # bytes, shared: of a warp's weights
BUFFER: int = OPEN  # of one of its two buffers
WARP: int = OPEN  # of all it has


def tile_tokens(planes: PlaneType) -> int:
    """TOKENS of a type: as many as registers allow."""
    return (32 if planes.offsets else 64) // (planes.lanes // 8)


def sizes(planes: PlaneType, n_planes: int) -> dict[str, int]:
    """Open numbers of the templates."""
    tokens, group = tile_tokens(planes), planes.group_columns
    weights = ROWS * (group + (8 if planes.offsets else 4))
    buffer = tokens * (group * n_planes + (8 if planes.offsets else 4) + (4 if planes.zero else 0))
    part = 16 if n_planes == 1 else min(32, tokens)
    return {
        "TOKENS": tokens, "PART": part, "PLANES": n_planes, "GROUP": group,
        "OWN": max(1, tokens // 32), "OUTPUTS": tokens * ROWS // 32, "PAIRS": part // 4,
        "WORDS": part // 4 * n_planes, "WEIGHTS": weights, "BUFFER": buffer,
        "WARP": weights + 2 * buffer,
    }  # fmt: skip


def shared_bytes(planes: PlaneType, n_planes: int) -> int:
    """Of a block."""
    return planes.lanes * max(sizes(planes, n_planes)["WARP"], 4 * ROUND * PITCH)


def group(base: Any, rows: Any, chunks: Any, row: Any, chunk: Any, j: Any, lane: Any) -> Any:
    """Open: the type's own."""


def bring(at: Any, n: Any, k: Any, lane: Any, to: Any) -> None:
    """Start to copy step k of the tile's tokens into a buffer. at: records of a thread's tokens."""
    me = thread() & 31
    for q in range(OWN):
        token = (me + 32 * q) & (TOKENS - 1)
        for plane in range(PLANES):
            numbers = at[q] + plane * n + 256 * k + GROUP * lane
            here = to + GROUP * (TOKENS * plane + token)
            copy_16(here, numbers)
            if GROUP == 32:
                copy_16(here + 16, numbers + 16)
        scales = at[q] + PLANES * n
        column = 256 * k + GROUP * lane
        factors = to + GROUP * TOKENS * PLANES
        if OFFSETS:
            copy_4(factors + 8 * token, scales + column // 32 * 4)
            sums = scales + (n // 8 + column // 8 if GROUP == 32 else n // 4 + column // 4)
            copy_4(factors + 8 * token + 4, sums)
        else:
            copy_4(factors + 4 * token, scales + column // 32 * 4)
        if ZERO:
            whole = scales + (n // 2 + column // 8 if GROUP == 32 else n // 8 * 5 + column // 4)
            copy_4(factors + (8 if OFFSETS else 4) * TOKENS + 4 * token, whole)
    copies_sent()


def put_pair(to: Any, first: Any, second: Any) -> None:
    """Weights and factors of a thread's two rows into shared memory. Each: what `group` gave."""
    me = thread() & 31
    a, s, o = first
    b, s2, o2 = second
    if GROUP == 32:
        pair = to + 64 * me
        turn = me >> 1
        put_shared_4(pair + 16 * (turn & 3), a[0], a[1], b[0], b[1])
        put_shared_4(pair + 16 * (turn + 1 & 3), a[2], a[3], b[2], b[3])
        put_shared_4(pair + 16 * (turn + 2 & 3), a[4], a[5], b[4], b[5])
        put_shared_4(pair + 16 * (turn + 3 & 3), a[6], a[7], b[6], b[7])
    else:
        put_shared_4(to + 32 * me, a[0], b[0], a[1], b[1])
        put_shared_4(to + 32 * me + 16, a[2], b[2], a[3], b[3])
    factors = to + ROWS * GROUP
    if OFFSETS:
        put_shared_4(factors + 16 * me, as_u32(s), as_u32(o), as_u32(s2), as_u32(o2))
    else:
        put_shared_2(factors + 8 * me, as_u32(s), as_u32(s2))


def part(weights: Any, x: Any, first: Any, acc: Any, low: Any) -> None:
    """Add a step to lane g of the PART tokens from `first` on (a literal)."""
    me = thread() & 31
    g, t = me >> 2, me & 3
    numbers = cuda.local.array(WORDS, types.uint32)
    scale = cuda.local.array(PAIRS, types.float32)
    sums = cuda.local.array(PAIRS, types.float32)
    zero = cuda.local.array(PAIRS, types.int32)
    factors = x + GROUP * TOKENS * PLANES
    for j in range(PART // 8):
        token = first + 8 * j
        for plane in range(PLANES):
            at = x + GROUP * (TOKENS * plane + token + g)
            if GROUP == 32:
                low_columns, high_columns = shared_2(at + 8 * t)
                numbers[2 * (PLANES * j + plane)] = low_columns
                numbers[2 * (PLANES * j + plane) + 1] = high_columns
            else:
                numbers[2 * (PLANES * j + plane)] = shared_u32(at + 4 * t)
        token = token + 2 * t
        if OFFSETS:
            a, b, c, d = shared_4(factors + 8 * token)
            scale[2 * j] = as_float(a)
            sums[2 * j] = as_float(b)
            scale[2 * j + 1] = as_float(c)
            sums[2 * j + 1] = as_float(d)
        else:
            a, b = shared_2(factors + 4 * token)
            scale[2 * j] = as_float(a)
            scale[2 * j + 1] = as_float(b)
        zero[2 * j] = i32(0)
        zero[2 * j + 1] = i32(0)
        if ZERO:
            a, b = shared_2(factors + (8 if OFFSETS else 4) * TOKENS + 4 * token)
            zero[2 * j] = i32(mul32(a, -ZERO))
            zero[2 * j + 1] = i32(mul32(b, -ZERO))
    turn = me >> 3
    for m in range(ROWS // 16):
        a0, a1, a2, a3 = u32(0), u32(0), u32(0), u32(0)
        if GROUP == 32:
            a0, a2, a1, a3 = shared_4(weights + 512 * m + 64 * g + 16 * (turn + t & 3))
        else:
            a0, a1 = shared_2(weights + 256 * m + 32 * g + 8 * t)
        rows = weights + ROWS * GROUP
        s, o, s2, o2 = u32(0), u32(0), u32(0), u32(0)
        if OFFSETS:
            s, o, s2, o2 = shared_4(rows + 128 * m + 16 * g)
        else:
            s, s2 = shared_2(rows + 64 * m + 8 * g)
        for j in range(PART // 8):
            b0, b1 = numbers[2 * PLANES * j], numbers[2 * PLANES * j + 1]
            z, z2 = zero[2 * j], zero[2 * j + 1]
            c0, c1 = i32(0), i32(0)
            if PLANES == 1:
                c0, c1 = z, z2
            if GROUP == 32:
                d0, d1, d2, d3 = mma_i8(a0, a1, a2, a3, b0, b1, c0, c1, c0, c1)
            else:
                d0, d1, d2, d3 = mma_i8_16(a0, a1, b0, c0, c1, c0, c1)
            if PLANES == 2:
                b0, b1 = numbers[4 * j + 2], numbers[4 * j + 3]
                if GROUP == 32:
                    e0, e1, e2, e3 = mma_i8(a0, a1, a2, a3, b0, b1, z, z2, z, z2)
                else:
                    e0, e1, e2, e3 = mma_i8_16(a0, a1, b0, z, z2, z, z2)
                d0, d1, d2, d3 = both(d0, e0), both(d1, e1), both(d2, e2), both(d3, e3)
            at = 4 * ((first // 8 + j) * (ROWS // 16) + m)
            k, k2 = scale[2 * j], scale[2 * j + 1]
            acc[at] = fma(f32(d0), as_float(s) * k, acc[at])
            acc[at + 1] = fma(f32(d1), as_float(s) * k2, acc[at + 1])
            acc[at + 2] = fma(f32(d2), as_float(s2) * k, acc[at + 2])
            acc[at + 3] = fma(f32(d3), as_float(s2) * k2, acc[at + 3])
            if OFFSETS:
                k, k2 = sums[2 * j], sums[2 * j + 1]
                low[at] = fma(as_float(o), k, low[at])
                low[at + 1] = fma(as_float(o), k2, low[at + 1])
                low[at + 2] = fma(as_float(o2), k, low[at + 2])
                low[at + 3] = fma(as_float(o2), k2, low[at + 3])


def both(high: Any, low: Any) -> Any:
    """Two planes' products as one."""
    return i32(add32(shl(u32(high), 8), u32(low)))


def tile(w: Any, rows: Any, chunks: Any, x: Any, x_stride: Any, n: Any, index: Any, first: Any,
         count: Any, out: Any, out_stride: Any, add: Any) -> None:  # fmt: skip
    """Rows ROWS * block_x() .. times the `count` tokens from `first` on, at most TOKENS.

    index: address of the tokens' rows of x (uint32), or 0: they are the tokens.
    """
    me, lane = thread() & 31, thread() >> 5
    row = ROWS * block_x() + 2 * me
    row, row2 = min(row, rows - 1), min(row + 1, rows - 1)
    at = cuda.local.array(OWN, types.int64)
    for q in range(OWN):
        token = first + min((me + 32 * q) & (TOKENS - 1), count - 1)
        at[q] = x + x_stride * (load_u32(index + 4 * token) if index else token)
    acc = cuda.local.array(OUTPUTS, types.float32)
    low = cuda.local.array(OUTPUTS, types.float32)
    for i in range(OUTPUTS):
        acc[i] = f32(0)
        low[i] = f32(0)
    weights = shared() + WARP * lane
    used, filled = weights + WEIGHTS, weights + WEIGHTS + BUFFER
    bring(at, n, 0, lane, used)
    put_pair(
        weights, group(w, rows, chunks, row, 0, 0, lane), group(w, rows, chunks, row2, 0, 0, lane)
    )
    copies_done_0()
    sync_warp()
    steps = chunks * STEPS
    for k in range(steps):
        ahead = min(k + 1, steps - 1)
        bring(at, n, ahead, lane, filled)
        chunk, j = ahead // STEPS, ahead % STEPS
        pair = group(w, rows, chunks, row, chunk, j, lane)
        pair2 = group(w, rows, chunks, row2, chunk, j, lane)
        part(weights, used, 0, acc, low)
        if TOKENS // PART > 1 and count > PART:
            part(weights, used, PART, acc, low)
        if TOKENS // PART > 2 and count > 2 * PART:
            part(weights, used, 2 * PART, acc, low)
        if TOKENS // PART > 3 and count > 3 * PART:
            part(weights, used, 3 * PART, acc, low)
        sync_warp()
        put_pair(weights, pair, pair2)
        copies_done_0()
        sync_warp()
        used, filled = filled, used
    for i in range(TOKENS // ROUND):
        sync()
        put_lane(i, lane, acc, low)
        sync()
        for q in range(ROUND * ROWS // (32 * LANES)):
            o = thread() + 32 * LANES * q
            row, token = ROWS * block_x() + o % ROWS, ROUND * i + o // ROWS
            v = sum_of_lanes(shared() + 4 * (o // ROWS * PITCH + o % ROWS))
            if row < rows and token < count:
                to = out + out_stride * (first + token) + 4 * row
                store_f32(to, load_f32(to) + v if add else v)
    sync()


def put_lane(i: Any, lane: Any, acc: Any, low: Any) -> None:
    """A lane's sums of the ROUND tokens number i (a literal) into shared memory."""
    me = thread() & 31
    to = shared() + 4 * ROUND * PITCH * lane + 8 * PITCH * (me & 3) + 8 * (me >> 2)
    for j in range(ROUND // 8):
        for m in range(ROWS // 16):
            for k in range(4):
                at = 4 * ((ROUND // 8 * i + j) * (ROWS // 16) + m) + k
                v = acc[at]
                if OFFSETS:
                    v = v + low[at]
                put_shared_f32(to + 4 * PITCH * (8 * j + (k & 1)) + 64 * m + 4 * (k >> 1), v)


def sum_of_lanes(at: Any) -> Any:
    """Of one output: halves added until one is left."""
    v = cuda.local.array(LANES, types.float32)
    for i in range(LANES):
        v[i] = shared_f32(at + 4 * ROUND * PITCH * i)
    if LANES == 16:
        for i in range(8):
            v[i] = v[i] + v[i + 8]
    for i in range(4):
        v[i] = v[i] + v[i + 4]
    return (v[0] + v[2]) + (v[1] + v[3])


INNER = (both, bring, put_pair, part, put_lane, sum_of_lanes, tile)  # what kernels call, in order


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
    end = load_u32(starts + 4 * item + 4)
    begin = load_u32(starts + 4 * item) + TOKENS * block_z()
    for first in range(begin, end, TOKENS * blocks_z()):
        count = min(TOKENS, end - first)
        tile(w, rows, chunks, x, x_stride, n, index, first, count, out, out_stride, 0)
