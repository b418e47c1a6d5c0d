"""The templates that every packed layout is built from: pack, matrix-vector, tiles of many tokens.

A layout supplies (addresses are int64, a step is 256 columns):

    pack_group(blocks, q, out)      one step of a row group: `blocks` is the table of the addresses
                                    of its native blocks, q (GROUP_ROWS, 256) int8 what `decode`
                                    makes of them, out the GROUP_BYTES to write
    add_step(p, y, ys, isums, sums, acc)
                                    acc and low of kernels.py grow by the step at p; y: the step's
                                    activations, ys: their scales, isums, sums: their sums by GROUP;
                                    acc: [group][plane][16 rows] float32, low the same LOW bytes on
    add_two(p, y, ys, isums, sums, acc, other, more)
                                    or None: add_step, and the same with the activations `other`
                                    bytes on for the sums `more` bytes on; weights unpacked once
    fill_plane(p, plane, w, w_stride, s, o, s_stride)
                                    the step's rows 16 plane .. as weights of a tile (tile.py):
                                    group g at w + g * w_stride, vectors 128 bytes apart; scales
                                    and offsets at s, o + g * s_stride

Rows lie in lanes, so that no sum goes across lanes. The accumulators of a row group live in memory
(8 KB at most, always in L1): there is one vector for each group of columns of each plane.
"""

from __future__ import annotations

from quant.compiler.jit import OPEN
from quant.kernels import (
    _N_COLS,
    _N_ROWS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    GROUP,
    OFFSETS,
    decode,
    token_at,
)
from quant.matvec.few import MORE_ROOM, MOST, SUMS, SUMS_ROOM, clear_sums, put_rows
from quant.matvec.few import add_step as add_few
from quant.simd.vectors import (
    alloca,
    f32,
    i64,
    prefetch_far,
    put_f32,
    put_i64,
    store_f32,
    store_f32x16,
    zero_f32,
    zero_f32x16,
)
from quant.tile.tile import PAD, add_lanes

GROUP_ROWS: int = OPEN
GROUP_BYTES: int = OPEN
LOW = 6144  # bytes from acc to low: more than 16 groups x 4 planes x 16 float32
ROOM = 10304  # bytes of the sums of a row group; those of two tokens lie in other sets of L1
ROOM_OF_TWO = 2 * ROOM
PLANES_ROOM = 4 * SUMS_ROOM
AHEAD = 6144  # bytes: how far ahead of the step in work its successors are fetched
FEW_AHEAD = 8192  # the same of `few`


def pack_group(blocks: int, q: int, out: int) -> None:
    """Open: the layout's own."""


def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Open: the layout's own."""


def add_two(
    p: int, y: int, ys: int, isums: int, sums: int, acc: int, other: int, more: int
) -> None:
    """Open: the layout's own."""


def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Open: the layout's own."""


def pack(job: int, g0: int, g1: int) -> None:
    """Native rows at W -> row groups g0 .. g1 - 1 of the packed matrix at OUT."""
    w, row_bytes = i64(job + _W), i64(job + _ROW_BYTES)
    n_rows, n = i64(job + _N_ROWS), i64(job + _N_COLS)
    q = alloca(16384)  # GROUP_ROWS x 256
    s = alloca(128)
    o = alloca(128)
    blocks = alloca(512)  # GROUP_ROWS addresses
    nothing = alloca(128)  # the block of a row that pads
    for i in range(0, 128, 32):
        store_f32(nothing + i, zero_f32())
    out = i64(job + _OUT) + g0 * (n // 256) * GROUP_BYTES
    for g in range(g0, g1):
        for step in range(n // 256):
            for i in range(GROUP_ROWS):
                r = g * GROUP_ROWS + i
                p = w + r * row_bytes + step * BYTES
                if r >= n_rows:
                    p = nothing
                put_i64(blocks + 8 * i, p)
                decode(p, q + 256 * i, s, o)
            pack_group(blocks, q, out)
            out += GROUP_BYTES


def clear_group(acc: int) -> None:
    """Zeros for a row group's sums; open because GROUP is."""
    for i in range(0, 256 // GROUP * 4 * GROUP_ROWS, 64):
        store_f32x16(acc + i, zero_f32x16())
        if OFFSETS:
            store_f32x16(acc + LOW + i, zero_f32x16())


def put_group(acc: int, rows: int, out: int) -> None:
    """The first `rows` results of a row group -> out; open."""
    to = out if rows == GROUP_ROWS else acc
    for plane in range(0, 4 * GROUP_ROWS, 64):
        store_f32x16(to + plane, add_lanes(acc + plane, LOW, 4 * GROUP_ROWS))
    if rows < GROUP_ROWS:
        for r in range(rows):
            put_f32(out + 4 * r, f32(acc + 4 * r))


def add_group(p: int, n: int, x: int, acc: int) -> None:
    """acc = the row group at p . the record at x; open."""
    scales = x + n
    sums = scales + (n // 8 if GROUP == 32 else n // 4)
    isums = scales + (n // 2 if GROUP == 32 else n // 8 * 5)
    clear_group(acc)
    for c in range(0, n, 256):
        to_sum = c // GROUP * 4
        add_step(p, x + c, scales + c // 8, isums + to_sum, sums + to_sum, acc)
        p += GROUP_BYTES


def add_group_to_two(p: int, n: int, x: int, other: int, acc: int) -> None:
    """The same for the records at x and `other` bytes on: sums at acc and ROOM bytes on; open."""
    scales = x + n
    sums = scales + (n // 8 if GROUP == 32 else n // 4)
    isums = scales + (n // 2 if GROUP == 32 else n // 8 * 5)
    clear_group(acc)
    clear_group(acc + ROOM)
    for c in range(0, n, 256):
        to_sum = c // GROUP * 4
        add_two(p, x + c, scales + c // 8, isums + to_sum, sums + to_sum, acc, other, ROOM)
        p += GROUP_BYTES


def matvec(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t (Q8 records); r0 is a multiple of GROUP_ROWS.

    Up to a layout's `few` tokens this is faster than `tile.matmul`: the rows of a group stay in
    caches.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    acc = alloca(ROOM)
    for top in range(r0, r1, GROUP_ROWS):
        p = w + top // GROUP_ROWS * row_bytes
        for t in range(i64(job + _N_TOKENS)):
            out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) + 4 * (top - i64(job + _ROW0))
            add_group(p, n, token_at(job, t), acc)
            put_group(acc, min(GROUP_ROWS, r1 - top), out)


def few_by_two(job: int, r0: int, r1: int) -> None:
    """`matvec` for two tokens at a time."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, stride = i64(job + _N_TOKENS), i64(job + _OUT_STRIDE)
    acc = alloca(ROOM_OF_TWO)
    for top in range(r0, r1, GROUP_ROWS):
        p = w + top // GROUP_ROWS * row_bytes
        rows = min(GROUP_ROWS, r1 - top)
        out = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
        for t in range(0, n_tokens, 2):
            x = token_at(job, t)
            if t + 1 < n_tokens:
                add_group_to_two(p, n, x, token_at(job, t + 1) - x, acc)
                put_group(acc + ROOM, rows, out + stride)
            else:
                add_group(p, n, x, acc)
            put_group(acc, rows, out)
            out += 2 * stride


def few(job: int, r0: int, r1: int) -> None:
    """`matvec` for a few tokens: a step of 16 rows is unpacked once for all (matvec/few.py)."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, stride = i64(job + _N_TOKENS), i64(job + _OUT_STRIDE)
    weights = alloca(8192)
    s = alloca(1024)
    o = alloca(1024)
    accs = alloca(PLANES_ROOM)
    more = alloca(MORE_ROOM)
    records = alloca(64)
    for t0 in range(0, n_tokens, MOST):
        count = min(MOST, n_tokens - t0)
        for t in range(count):
            put_i64(records + 8 * t, token_at(job, t0 + t))
        for top in range(r0, r1, GROUP_ROWS):
            planes = (min(GROUP_ROWS, r1 - top) + 15) // 16
            p = w + top // GROUP_ROWS * row_bytes
            for plane in range(planes):
                clear_sums(accs + SUMS_ROOM * plane, count)
            for c in range(0, n, 256):
                for line in range(0, GROUP_BYTES, 64):
                    prefetch_far(p + FEW_AHEAD + line)
                for plane in range(planes):
                    fill_plane(p, plane, weights, GROUP * 32, s, o, 64)
                    to = accs + SUMS_ROOM * plane
                    add_few(weights, s, o, records, count, c, n, more, to)
                p += GROUP_BYTES
            out = i64(job + _OUT) + t0 * stride + 4 * (top - i64(job + _ROW0))
            for plane in range(planes):
                rows = min(16, r1 - top - 16 * plane)
                for t in range(count):
                    put_rows(
                        accs + SUMS_ROOM * plane + SUMS * t, rows, out + 64 * plane + t * stride
                    )


def fill_tile(
    w: int, row_bytes: int, top: int, rows: int, c0: int, cols: int, tile_w: int, s: int, o: int
) -> None:
    """`tile.fill_tile` from packed rows: two planes, maybe of two row groups, or twice the last."""
    planes = GROUP_ROWS // 16
    stride = cols // 256 * GROUP * 32 + PAD
    for half in range(2):
        plane = top // 16 + (half if rows > 16 else 0)
        p = w + plane // planes * row_bytes + c0 // 256 * GROUP_BYTES
        for step in range(cols // 256):
            to_s = step * 128 + 64 * half
            fill_plane(
                p, plane % planes, tile_w + step * GROUP * 32 + 64 * half, stride,
                s + to_s, o + to_s, cols // 256 * 128,
            )  # fmt: skip
            p += GROUP_BYTES


def fetch(w: int, row_bytes: int, top: int, last: int, c0: int, cols: int) -> None:
    """`tile.fetch` of packed rows."""
    size = cols // 256 * GROUP_BYTES
    for group in range(top // GROUP_ROWS, (last - 1) // GROUP_ROWS + 1):
        p = w + group * row_bytes + c0 // 256 * GROUP_BYTES
        for line in range(0, size, 64):
            prefetch_far(p + line)
