"""Many tokens: a tile of rows is decoded once to int8, and every token's products run over it.

    tile    32 rows x at most 2,048 columns, columns in groups (see kernels.py) and steps of 256:
            weights [group][step][4 columns][2 x 16 rows x 4 bytes]: a vector = 16 rows x 4 columns
            scales  [group][step][2 x 16 rows], offsets the same
    panel   the activations of all tokens, in the order in which loops read them (panels.py)

A 32-bit lane is a row, so that no sum goes across lanes: one instruction multiplies 16 rows x 4
columns with four bytes of a token, which every lane gets (inner_loops.py, which also says how a
weight is stored; those of 16 bits are two columns to a lane). Results are those of `matvec`, bit
for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa, stack
from quant.compiler.jit import OPEN
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _PANELS,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    GROUP,
    OFFSETS,
    SIZE,
    decode_step,
)
from quant.simd.vectors import (
    I8,
    I16,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _plus,
    _pointer,
    alloca,
    constant,
    f32,
    i64,
    load_f32x16,
    prefetch_far,
    prefetch_to_write,
    put_f32,
    put_i64,
    store_f32x16,
    zero_f32x16,
)
from quant.tile import inner_loops
from quant.tile.inner_loops import ROWS
from quant.tile.panels import COLS, MOST, Panel, block_at, storage

TILES = 384 // MOST  # that share a block of the panel
APART = 192  # bytes: a token's sums of all groups are added, and must not share a set of the cache
PAD = 192  # bytes after each group of a tile's weights: a step writes to all groups, likewise
TOKENS_AHEAD = 8  # tokens: how early their lines of the output are fetched

LANES = 16 if isa.ISA.startswith("avx512") else 8  # of a register

# bytes on the stack, for every type: at most 16 groups of columns, 16 bits to a weight, and sums of
# products and of offsets of both halves of the rows
WEIGHTS_ROOM = 2 * ROWS * COLS + 16 * PAD
SCALES_ROOM = 4 * ROWS * COLS // 16
SUMS_ROOM = TILES * 16 * (4 * 64 * MOST + APART)
ZEROS_ROOM = 6 * 4 * 64  # of as many tokens as a pass takes
assert WEIGHTS_ROOM + 2 * SCALES_ROOM + SUMS_ROOM + ZEROS_ROOM <= stack.OF_KERNELS

# open, filled in by `intrinsics`; see inner_loops.py and panels.py
TOKENS: int = OPEN  # per pass over the tile
SUMS: int = OPEN  # bytes from a token's sums of 32 rows to the next one's
NARROW: bool = OPEN  # a pass takes half of the rows
WIDE: bool = OPEN  # 16 bits for a weight and an activation
ACTIVATIONS: int = OPEN  # bytes of a token in an element of a panel
NUMBERS: int = OPEN  # where an element's numbers begin
ELEMENT: int = OPEN  # bytes of an element


# --- 16 x 16 lanes of 32 bits ---------------------------------------------------------------------


def _fours(b: Any, rows: list[Any]) -> list[Any]:
    """Four vectors of n lanes: lane i of every quarter of result j = lane j of it in rows[i]."""
    n = rows[0].type.count

    def both(x: Any, y: Any, lanes: list[int]) -> list[Any]:
        """These lanes of every quarter (those of y: from n on); the lanes two further on."""
        places = [[q + i + on for q in range(0, n, 4) for i in lanes] for on in (0, 2)]
        return [b.shuffle_vector(x, y, _lanes(p)) for p in places]

    low, high = both(rows[0], rows[1], [0, n, 1, n + 1])
    low_2, high_2 = both(rows[2], rows[3], [0, n, 1, n + 1])
    return both(low, low_2, [0, 1, n, n + 1]) + both(high, high_2, [0, 1, n, n + 1])


def _transpose(b: Any, rows: list[Any]) -> list[Any]:
    """n vectors of n lanes, 8 or 16: lane i of result j = lane j of rows[i].

    First within 128 bits (quarters of four lanes), then quarters change places.
    """
    n = len(rows)

    def halves(x: Any, y: Any) -> list[Any]:
        """Every other quarter of x and of y, from the first on; from the second on."""
        quarters = range(0, 2 * n, 8)
        places = [[q + i + on for q in quarters for i in range(4)] for on in (0, 4)]
        return [b.shuffle_vector(x, y, _lanes(p)) for p in places]

    fours = [_fours(b, rows[i : i + 4]) for i in range(0, n, 4)]  # [four rows][quarter's column]
    columns = []  # [a quarter's column][quarter]
    for c in range(4):
        quarters = halves(fours[0][c], fours[1][c])
        if n == 16:
            others = halves(fours[2][c], fours[3][c])
            even, odd = (halves(x, y) for x, y in zip(quarters, others, strict=True))
            quarters = [even[0], odd[0], even[1], odd[1]]
        columns.append(quarters)
    return [columns[c][q] for q in range(n // 4) for c in range(4)]


@cache
def transpose_16(zero: int = 0, step: int = 1, *, wide: bool = False, lanes: int = LANES) -> Any:
    """transpose(src, src_stride, dst, quads, quad_stride, group_stride).

    16 rows of 64 bytes at src -> vector m to dst + m // quads * group_stride + m % quads *
    quad_stride; every byte (x + zero) / step, a whole number. step: 1 or 2. wide: 16 bits for each,
    columns 0 and 2 of four in one vector, 1 and 3 in a second 128 bytes on. lanes: rows and columns
    at a time, what registers hold.
    """
    vector, as_bytes = ir.VectorType(I32, lanes), ir.VectorType(I8, 4 * lanes)

    def stored(b: Any, x: Any, at: Any) -> None:
        """Store a vector of four columns as a tile has it."""
        if zero:
            x = b.bitcast(
                b.add(b.bitcast(x, as_bytes), constant(as_bytes, [zero] * 4 * lanes)), vector
            )
        if step == 2:  # even bytes: nothing crosses into the next
            x = b.lshr(x, ir.Constant(vector, [1] * lanes))
        if wide:
            words = b.bitcast(x, ir.VectorType(I16, 2 * lanes))
            eight = ir.Constant(words.type, [8] * 2 * lanes)
            odds = b.bitcast(b.ashr(words, eight), vector)
            x = b.bitcast(b.ashr(b.shl(words, eight), eight), vector)
            b.store(odds, _pointer(b, b.add(at, ir.Constant(I64, 128)), vector), align=1)
        b.store(x, _pointer(b, at, vector), align=1)

    def generate(b: Any, m: Any, v: Any) -> Any:
        src, stride, dst, quads, quad_stride, group_stride = v
        for column in range(0, 16, lanes):
            places = []
            for j in range(column, column + lanes):
                j64 = ir.Constant(I64, j)
                at = b.add(dst, b.mul(b.udiv(j64, quads), group_stride))
                places.append(b.add(at, b.mul(b.urem(j64, quads), quad_stride)))
            for row in range(0, 16, lanes):
                rows = []
                for i in range(row, row + lanes):
                    at = _plus(b, b.add(src, b.mul(stride, ir.Constant(I64, i))), 4 * column)
                    rows.append(b.load(_pointer(b, at, vector), align=1))
                for at, x in zip(places, _transpose(b, rows), strict=True):
                    stored(b, x, _plus(b, at, 4 * row))
        return ir.Constant(I64, 0)

    return _op(types.int64, (P, P, P, P, P, P), generate)


transpose_floats = transpose_16()


def transpose_weights(src: int, stride: int, dst: int, quads: int, quad: int, group: int) -> None:
    """Open: `transpose` to what a tile stores."""


def fill_tile(
    w: int, row_bytes: int, top: int, rows: int, c0: int, cols: int, tile_w: int, s: int, o: int
) -> None:
    """`cols` columns from c0 on of `rows` rows from `top` on; open because fill_step is.

    Rows beyond `rows` repeat the last one. Of a last step with fewer columns the rest is zero.
    """
    steps = (cols + 255) // 256
    group = GROUP * (64 if WIDE else 32)  # bytes
    stride = steps * group + PAD
    places = alloca(128)
    for half in range(2):
        for i in range(16):
            row = top + min(16 * half + i, rows - 1)
            put_i64(places + 8 * i, w + row * row_bytes + c0 // SIZE * BYTES)
        for step in range(steps):
            to_s = step * 128 + 64 * half
            to_w = tile_w + step * group + 64 * half
            at = step * (256 // SIZE) * BYTES
            left = cols - 256 * step
            fill_step(places, at, left, to_w, stride, s + to_s, o + to_s, steps * 128)


def fill_16(rows: int, at: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Open: a type's own.

    The 256 columns `at` bytes behind the 16 addresses at `rows` -> half a tile's step, a lane to a
    row: group g at w + g * w_stride, vectors 128 bytes apart; scales and offsets at s, o +
    g * s_stride.
    """


def fill_by_16(
    rows: int, at: int, cols: int, w: int, w_stride: int, s: int, o: int, s_stride: int
) -> None:
    """`fill_step` with a type's `fill_16`; blocks of 256 come whole."""
    if SIZE == 256 or cols >= 256:
        fill_16(rows, at, w, w_stride, s, o, s_stride)
    else:
        fill_by_rows(rows, at, cols, w, w_stride, s, o, s_stride)


def fill_by_rows(
    rows: int, at: int, cols: int, w: int, w_stride: int, s: int, o: int, s_stride: int
) -> None:
    """`fill_step` for any type: every row is decoded, then turned; open because decode_step is."""
    q16 = alloca(4096)  # 16 rows of 256 weights, then scales and offsets
    s16 = alloca(1088)
    o16 = alloca(1088)
    for i in range(16):
        row = i64(rows + 8 * i) + at
        decode_step(row, min(256, cols) // SIZE, q16 + 256 * i, s16 + 64 * i, o16 + 64 * i)
    for k in range(4):
        to = w + k * (64 // GROUP) * w_stride
        transpose_weights(q16 + 64 * k, 256, to, GROUP // 4, 256 if WIDE else 128, w_stride)
    spread_scales(s16, s, s_stride)
    if OFFSETS:
        spread_scales(o16, o, s_stride)


def fill_step(
    rows: int, at: int, cols: int, w: int, w_stride: int, s: int, o: int, s_stride: int
) -> None:
    """Open: `fill_by_rows` or `fill_by_16`; `fill_16` of the first `cols` columns only."""


def _row_loads(b: Any, rows: Any, at: Any, vector: Any) -> list[Any]:
    """What lies `at` bytes behind each of the 16 addresses at `rows`."""
    found = []
    for i in range(16):
        row = b.load(_pointer(b, _plus(b, rows, 8 * i), I64), align=8)
        found.append(b.load(_pointer(b, b.add(row, at), vector), align=1))
    return found


@cache
def fill_nibbles(zero: int) -> Any:
    """An intrinsic (rows, at, w, w_stride): 64 bytes of each row as four groups of a tile.

    Every run of 32 bytes holds a group in its low nibbles, the next in its high ones. The weights
    are stored `zero` too large.
    """
    vector = ir.VectorType(I32, 16)

    def nibbles(b: Any, x: Any) -> Any:
        x = b.and_(x, ir.Constant(vector, [0x0F0F0F0F] * 16))
        return b.or_(x, constant(vector, [0x01010101 * zero] * 16))

    def generate(b: Any, m: Any, v: Any) -> Any:
        rows, at, w, w_stride = v
        four = ir.Constant(vector, [4] * 16)
        for j, x in enumerate(_transpose(b, _row_loads(b, rows, at, vector))):
            to = b.add(w, b.mul(w_stride, ir.Constant(I64, j // 8 * 2)))
            to = _plus(b, to, 128 * (j % 8))
            b.store(nibbles(b, x), _pointer(b, to, vector), align=1)
            to = b.add(to, w_stride)
            b.store(nibbles(b, b.lshr(x, four)), _pointer(b, to, vector), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 4, generate)


def fetch(w: int, row_bytes: int, top: int, last: int, c0: int, cols: int) -> None:
    """Bring what `fill_tile` will want of rows top .. last - 1 into the second cache; open.

    Sixteen rows are decoded at a time: too many streams for the processor's own prefetching.
    """
    size = (cols + SIZE - 1) // SIZE * BYTES
    for r in range(top, last):
        p = w + r * row_bytes + c0 // SIZE * BYTES
        for line in range(0, size + 63, 64):
            prefetch_far(p + line)


def spread_scales(src: int, dst: int, stride: int) -> None:
    """16 rows of 16 scales -> one vector of rows per group; open because GROUP is."""
    if GROUP == 16:
        transpose_floats(src, 64, dst, 1, 0, stride)
    else:  # both halves of a group of 32 are the same: the second overwrites the first
        transpose_floats(src, 64, dst, 2, 0, stride)


# --- the products ---------------------------------------------------------------------------------


def intrinsics(planes: int, group: int, weights: range, *, offsets: bool) -> dict[str, Any]:
    """What `matmul` leaves open, for a kind of type."""
    stored = storage(weights, planes)
    panel = Panel.of(weights, group, planes)
    transpose = transpose_16(stored.zero, stored.step, wide=stored.wide)
    sums = 4 * ROWS * (2 if offsets else 1)
    open_names = {"transpose_weights": transpose, "SUMS": sums, **panel.names()}
    return open_names | inner_loops.intrinsics(panel, stored, sums)


def loop_many(*arguments: int) -> None:
    """Open: `inner_loop` of TOKENS tokens."""


def loop_one(*arguments: int) -> None:
    """Open: `inner_loop` of one token."""


def narrow_many(*arguments: int) -> None:
    """Open: `narrow_loop` of TOKENS tokens."""


def narrow_one(*arguments: int) -> None:
    """Open: `narrow_loop` of one token."""


def offsets_many(*arguments: int) -> None:
    """Open: `offset_loop` of TOKENS tokens."""


def offsets_one(*arguments: int) -> None:
    """Open: `offset_loop` of one token."""


def matmul(job: int, r0: int, r1: int) -> None:
    """`matvec` for the tokens of the panel at PANELS, bit for bit."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, panels = i64(job + _N_TOKENS), i64(job + _PANELS)
    lanes = 256 // GROUP
    tile_w = alloca(WEIGHTS_ROOM)
    tile_s = alloca(SCALES_ROOM)
    tile_o = alloca(SCALES_ROOM)
    accs = alloca(SUMS_ROOM)
    zeros = alloca(ZEROS_ROOM)  # what sums begin with
    for i in range(0, ZEROS_ROOM, 64):
        store_f32x16(zeros + i, zero_f32x16())
    apart = SUMS * MOST + APART  # bytes from the sums of one group of columns to the next
    for first in range(r0, r1, TILES * ROWS):
        last = min(first + TILES * ROWS, r1)
        for t0 in range(0, n_tokens, MOST):
            count = min(MOST, n_tokens - t0)
            padded = -(-count // TOKENS) * TOKENS
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                steps = (cols + 255) // 256
                fetch(w, row_bytes, first, last, c0, cols)
                block = block_at(panels, t0, padded, c0, n)
                for top in range(first, last, ROWS):
                    rows = min(ROWS, r1 - top)
                    fill_tile(w, row_bytes, top, rows, c0, cols, tile_w, tile_s, tile_o)
                    for g in range(lanes):
                        column = c0 + g * GROUP
                        used = steps if column + (steps - 1) * 256 < n else steps - 1
                        acc = accs + apart * ((top - first) // ROWS * lanes + g)
                        if used == 0:
                            if c0 == 0:
                                for i in range(SUMS // 64 * padded):
                                    store_f32x16(acc + 64 * i, zero_f32x16())
                            continue
                        tw = tile_w + g * (steps * GROUP * (64 if WIDE else 32) + PAD)
                        ts = tile_s + g * steps * 128
                        to = tile_o + g * steps * 128
                        elements = block + g * (padded // TOKENS) * steps * ELEMENT
                        t = 0
                        while t < count:
                            at = acc + SUMS * t
                            y = elements + t // TOKENS * steps * ELEMENT
                            numbers = y + NUMBERS + 4 * (t % TOKENS)
                            y += ACTIVATIONS * (t % TOKENS)
                            start = at if c0 > 0 else zeros
                            many_left = count - t > (TOKENS - 2 if NARROW else TOKENS // 3)
                            if NARROW:
                                for half in range(2):
                                    w0, s0 = tw + 64 * half, ts + 64 * half
                                    a0, b0 = at + SUMS // 2 * half, start + SUMS // 2 * half
                                    if many_left:
                                        narrow_many(w0, s0, used, y, numbers, a0, b0)
                                    else:
                                        narrow_one(w0, s0, used, y, numbers, a0, b0)
                            elif many_left:
                                loop_many(tw, ts, used, y, numbers, at, start)
                            else:
                                loop_one(tw, ts, used, y, numbers, at, start)
                            if OFFSETS:
                                if many_left:
                                    offsets_many(to, used, numbers, at + 64, start + 64)
                                else:
                                    offsets_one(to, used, numbers, at + 64, start + 64)
                            t += TOKENS if many_left else 1
            for top in range(first, last, ROWS):
                rows = min(ROWS, r1 - top)
                acc = accs + apart * ((top - first) // ROWS * lanes)
                to_out = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
                for t in range(count):
                    out = to_out + (t0 + t) * i64(job + _OUT_STRIDE)
                    ahead = out + TOKENS_AHEAD * i64(job + _OUT_STRIDE)
                    prefetch_to_write(ahead)
                    prefetch_to_write(ahead + 64)
                    for half in range(2 if rows > 16 else 1):
                        at = acc + SUMS * t + SUMS // 2 * half
                        total = add_lanes(at, 64, apart)
                        if rows - 16 * half >= 16:
                            store_f32x16(out + 64 * half, total)
                        else:
                            store_f32x16(at, total)
                            for r in range(rows - 16 * half):
                                put_f32(out + 64 * half + 4 * r, f32(at + 4 * r))


def sums_of(at: int, to_offsets: int, stride: int) -> Any:
    """The sums of a group, and of the group 8 on where there are 16; open for GROUP and OFFSETS."""
    x = load_f32x16(at)
    if OFFSETS:
        x = x + load_f32x16(at + to_offsets)
    if GROUP == 16:
        y = load_f32x16(at + 8 * stride)
        if OFFSETS:
            y = y + load_f32x16(at + 8 * stride + to_offsets)
        x = x + y
    return x


def sums_of_two(at: int, to_offsets: int, stride: int) -> Any:
    """Those of a group and of the group 4 on; open as well."""
    return sums_of(at, to_offsets, stride) + sums_of(at + 4 * stride, to_offsets, stride)


def add_lanes(at: int, to_offsets: int, stride: int) -> Any:
    """The groups' sums, `stride` apart, added by halves until one is left; open as well."""
    even = sums_of_two(at, to_offsets, stride)
    even = even + sums_of_two(at + 2 * stride, to_offsets, stride)
    odd = sums_of_two(at + stride, to_offsets, stride)
    return even + (odd + sums_of_two(at + 3 * stride, to_offsets, stride))
