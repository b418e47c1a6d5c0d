"""Many tokens: a tile of rows is decoded once to int8, and every token's products run over it.

    tile    32 rows x at most 2,048 columns, columns in groups (see kernels.py) and steps of 256:
            weights [group][step][4 columns][2 x 16 rows x 4 bytes]: a vector = 16 rows x 4 columns
            scales  [group][step][2 x 16 rows], offsets the same

A 32-bit lane is a row, so that no sum goes across lanes: one instruction multiplies 16 rows x 4
columns with four bytes of a token, which every lane gets (`strips`, below). Results are those of
`matvec`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant import isa
from quant.kernels import (
    _INDEX,
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    _X,
    _X_STRIDE,
    BYTES,
    GROUP,
    OFFSETS,
    PLANES,
    SIZE,
    decode_step,
)
from quant.simd import (
    F32,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    alloca,
    call,
    f32,
    f32x16,
    i32x16,
    i64,
    load_f32x16,
    prefetch_far,
    prefetch_to_write,
    put_f32,
    put_i64,
    splat_value,
    store_f32x16,
    zero_f32x16,
)

ROWS = 32
COLS = 2048
STEPS = COLS // 256
TOKENS = 6 if isa.ISA.startswith("avx512") else 2  # per pass over the tile: what registers hold
TILES = 2  # that share a pass over the tokens, which come from the third cache at best
SUMS = 1536  # tokens x groups of columns that are kept at a time
AHEAD = 8  # tokens: how early their lines of the output are fetched
# With VNNI a weight is stored 128 too large, as an unsigned byte: what the instruction wants.
ZERO = 128 if isa.VNNI else 0


# --- 16 x 16 lanes of 32 bits ---------------------------------------------------------------------


def _transpose(b: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 lanes: lane i of result j = lane j of rows[i]."""
    for size in (1, 2, 4, 8):
        low = [i if i & size == 0 else i - size + 16 for i in range(16)]
        high = [i + size if i & size == 0 else i + 16 for i in range(16)]
        done = list(rows)
        for i in range(16):
            if i & size == 0:
                x, y = rows[i], rows[i + size]
                done[i] = b.shuffle_vector(x, y, _lanes(low))
                done[i + size] = b.shuffle_vector(x, y, _lanes(high))
        rows = done
    return rows


def _transpose_16(flip: int) -> Any:
    """transpose(src, src_stride, dst, quads, quad_stride, group_stride).

    16 rows of 64 bytes at src -> vector m to dst + m // quads * group_stride + m % quads *
    quad_stride; every byte xor `flip`.
    """

    def generate(b: Any, m: Any, v: Any) -> Any:
        src, stride, dst, quads, quad_stride, group_stride = v
        vector = ir.VectorType(I32, 16)
        rows = []
        for i in range(16):
            at = b.add(src, b.mul(stride, ir.Constant(I64, i)))
            rows.append(b.load(_pointer(b, at, vector), align=1))
        mask = ir.Constant(vector, [flip * 0x01010101 - (1 << 32) * (flip > 127)] * 16)
        for j, x in enumerate(_transpose(b, rows)):
            j64 = ir.Constant(I64, j)
            at = b.add(dst, b.mul(b.udiv(j64, quads), group_stride))
            at = b.add(at, b.mul(b.urem(j64, quads), quad_stride))
            b.store(b.xor(x, mask) if flip else x, _pointer(b, at, vector), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P, P, P, P, P, P), generate)


transpose_weights = _transpose_16(ZERO)
transpose_floats = _transpose_16(0)


def fill_tile(
    w: int, row_bytes: int, top: int, rows: int, c0: int, cols: int, tile_w: int, s: int, o: int
) -> None:
    """`cols` columns from c0 on of `rows` rows from `top` on; open because decode_step is.

    Rows beyond `rows` repeat the last one. Of a last step with fewer columns the rest is zero.
    """
    steps = (cols + 255) // 256
    p = w + top * row_bytes + c0 // SIZE * BYTES
    q16 = alloca(4096)  # 16 rows of 256 weights, then scales and offsets
    s16 = alloca(1088)
    o16 = alloca(1088)
    for step in range(steps):
        blocks = min(256, cols - 256 * step) // SIZE
        for half in range(2):
            for i in range(16):
                row = p + min(16 * half + i, rows - 1) * row_bytes
                row += step * (256 // SIZE) * BYTES
                decode_step(row, blocks, q16 + 256 * i, s16 + 64 * i, o16 + 64 * i)
            at = tile_w + step * GROUP * 32 + 64 * half
            for k in range(4):
                transpose_weights(
                    q16 + 64 * k, 256, at + k * (64 // GROUP) * steps * GROUP * 32,
                    GROUP // 4, 128, steps * GROUP * 32,
                )  # fmt: skip
            spread_scales(s16, s + step * 128 + 64 * half, steps * 128)
            if OFFSETS:
                spread_scales(o16, o + step * 128 + 64 * half, steps * 128)


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


def _splat_load(b: Any, address: Any, element: Any) -> Any:
    x = b.load(_pointer(b, address, element), align=1)
    return splat_value(b, x, ir.VectorType(element, 16))


def _plus(b: Any, x: Any, n: int) -> Any:
    return b.add(x, ir.Constant(I64, n)) if n else x


def _opaque(b: Any, x: Any) -> Any:
    """The same int64. LLVM cannot see that: it would keep every sum with it in a register."""
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [x], side_effect=False)


def _for_steps(b: Any, steps: Any, kept: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
    """A loop: the values `kept` become body(i, *kept) for every step i; returned at its end."""
    before = b.block
    loop = b.append_basic_block("steps")
    after = b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    phis = [b.phi(value.type) for value in kept]
    for phi, value in zip(phis, kept, strict=True):
        phi.add_incoming(value, before)
    new = body(i, *phis)
    following = b.add(i, ir.Constant(I64, 1))
    for phi, value in zip([i, *phis], [following, *new], strict=True):
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, steps), loop, after)
    b.position_at_end(after)
    return new


def _places(b: Any, acc: Any, tokens: int) -> list[Any]:
    """Where the accumulators of tokens lie: those of both halves of the rows of each."""
    return [_pointer(b, _plus(b, acc, 128 * i), f32x16.llvm) for i in range(2 * tokens)]


def _both(b: Any, at: Any) -> list[Any]:
    """Scales or offsets of the two halves of the rows."""
    return [b.load(_pointer(b, _plus(b, at, 64 * half), f32x16.llvm), align=1) for half in range(2)]


def _strips(tokens: int, group: int, planes: int) -> Any:
    """strips(w, s, steps, table, x, ys, isum, n, acc).

    One group of columns of 32 rows for `tokens` tokens: acc grows by all steps. table: addresses of
    the tokens' records; x, ys, isum: what to add to these for the group's first columns, scales and
    sums; n: from one plane to the next. Token t's acc lies 256 t bytes on, its second 16 rows 128
    bytes further.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, table, x0, ys0, isum0, n, acc0 = v
        v16f, v16i = f32x16.llvm, i32x16.llvm
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(tokens)]
        places = _places(b, acc0, tokens)

        def body(i: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, group * 32)))
            to_x = _opaque(b, b.add(x0, b.mul(i, ir.Constant(I64, 256))))
            to_ys = _opaque(b, b.add(ys0, b.mul(i, ir.Constant(I64, 32))))
            dots = {pair: ir.Constant(v16i, [0] * 16) for pair in pairs}
            if ZERO:  # what the weights are too large by, of all columns: taken off
                to_sum = _opaque(b, b.add(isum0, b.mul(i, ir.Constant(I64, 1024 // group))))
                at_sum = [b.add(r, to_sum) for r in records]
                isum = [b.load(_pointer(b, at, I32), align=1) for at in at_sum]
                bias = [splat_value(b, b.mul(x, ir.Constant(I32, -ZERO)), v16i) for x in isum]
                if planes == 1:
                    dots = {(t, half): bias[t] for t, half in pairs}
            for plane in range(planes):
                if plane:
                    dots = {pair: b.shl(d, ir.Constant(v16i, [8] * 16)) for pair, d in dots.items()}
                    if ZERO:
                        dots = {(t, half): b.add(d, bias[t]) for (t, half), d in dots.items()}
                if plane:
                    to_x = _opaque(b, b.add(to_x, n))
                at = [b.add(r, to_x) for r in records]
                for k in range(group // 4):
                    ready = []
                    for half in range(2):
                        place = _pointer(b, _plus(b, w, 128 * k + 64 * half), v16i)
                        ready.append(isa.prepare_quad(b, m, b.load(place, align=1)))
                    for t in range(tokens):
                        y = _splat_load(b, _plus(b, at[t], 4 * k), I32)
                        for half in range(2):
                            dots[t, half] = isa.add_quad(b, m, dots[t, half], ready[half], y)
            scale = _both(b, b.add(s0, b.mul(i, ir.Constant(I64, 128))))
            for t in range(tokens):
                ys = _splat_load(b, b.add(records[t], to_ys), F32)
                for half in range(2):
                    place = places[2 * t + half]
                    args = [b.sitofp(dots[t, half], v16f), b.fmul(scale[half], ys)]
                    args.append(b.load(place, align=1))
                    b.store(call(b, m, "llvm.fma.v16f32", v16f, args), place, align=1)
            return []

        _for_steps(b, steps, [], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 9, generate)


def _offset_strips(tokens: int, group: int) -> Any:
    """offset_strips(o, steps, table, sums, low): the same for offsets * sums.

    sums: what to add to a record's address for the sum of the group's first columns.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]

    def generate(b: Any, m: Any, v: Any) -> Any:
        o, steps, table, sums, low = v
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(tokens)]

        def body(i: Any, *acc: Any) -> list[Any]:
            offset = _both(b, b.add(o, b.mul(i, ir.Constant(I64, 128))))
            to_sum = b.add(sums, b.mul(i, ir.Constant(I64, 1024 // group)))
            here = [_splat_load(b, b.add(r, to_sum), F32) for r in records]
            return [
                call(b, m, "llvm.fma.v16f32", f32x16.llvm, [offset[half], here[t], x])
                for (t, half), x in zip(pairs, acc, strict=True)
            ]

        places = _places(b, low, tokens)
        start = [b.load(place, align=1) for place in places]
        for place, value in zip(places, _for_steps(b, steps, start, body), strict=True):
            b.store(value, place, align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 5, generate)


@cache
def intrinsics(planes: int, group: int) -> dict[str, Any]:
    """What `matmul` leaves open, for a kind of type; made once for each."""
    return {
        "strips_many": _strips(TOKENS, group, planes),
        "strips_one": _strips(1, group, planes),
        "offsets_many": _offset_strips(TOKENS, group),
        "offsets_one": _offset_strips(1, group),
    }


def strips_many(*arguments: int) -> None:
    """Open: `strips` of TOKENS tokens."""


def strips_one(*arguments: int) -> None:
    """Open: `strips` of one token."""


def offsets_many(*arguments: int) -> None:
    """Open: `offset_strips` of TOKENS tokens."""


def offsets_one(*arguments: int) -> None:
    """Open: `offset_strips` of one token."""


def matmul(job: int, r0: int, r1: int) -> None:
    """`matvec` for many tokens, bit for bit.

    Token t lies at X + INDEX[t], or at X + t * X_STRIDE where INDEX is 0.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    x, x_stride, n_tokens = i64(job + _X), i64(job + _X_STRIDE), i64(job + _N_TOKENS)
    index = i64(job + _INDEX)
    lanes = 256 // GROUP
    many = SUMS // lanes
    tile_w = alloca(65536)  # ROWS * COLS
    tile_s = alloca(16384)  # ROWS * COLS / 16 floats
    tile_o = alloca(16384)
    table = alloca(3072)  # addresses of tokens
    accs = alloca(786432)  # TILES x SUMS x 2 halves x (sums: 64 bytes, of offsets: 64 bytes)
    to_scale = PLANES * n
    for first in range(r0, r1, TILES * ROWS):
        last = min(first + TILES * ROWS, r1)
        for t0 in range(0, n_tokens, many):
            count = min(many, n_tokens - t0)
            padded = -(-count // TOKENS) * TOKENS
            for t in range(padded):  # those beyond the last: computed and forgotten
                k = t0 + min(t, count - 1)
                put_i64(table + 8 * t, x + (i64(index + 8 * k) if index else k * x_stride))
            for i in range(TILES * lanes):
                for j in range(4 * padded):
                    store_f32x16(accs + 256 * many * i + 64 * j, zero_f32x16())
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                steps = (cols + 255) // 256
                fetch(w, row_bytes, first, last, c0, cols)
                for top in range(first, last, ROWS):
                    rows = min(ROWS, r1 - top)
                    fill_tile(w, row_bytes, top, rows, c0, cols, tile_w, tile_s, tile_o)
                    for g in range(lanes):
                        column = c0 + g * GROUP
                        ys = to_scale + column // 32 * 4
                        sums = to_scale + (n // 8 if GROUP == 32 else n // 4) + column // GROUP * 4
                        isum = to_scale + (n // 2 if GROUP == 32 else n // 8 * 5)
                        isum += column // GROUP * 4
                        used = steps if column + (steps - 1) * 256 < n else steps - 1
                        if used == 0:
                            continue
                        tw = tile_w + g * steps * GROUP * 32
                        ts = tile_s + g * steps * 128
                        to = tile_o + g * steps * 128
                        acc = accs + 256 * many * ((top - first) // ROWS * lanes + g)
                        t = 0
                        while t < count:
                            here, at = table + 8 * t, acc + 256 * t
                            if count - t > TOKENS // 3:
                                strips_many(tw, ts, used, here, column, ys, isum, n, at)
                                if OFFSETS:
                                    offsets_many(to, used, here, sums, at + 64)
                                t += TOKENS
                            else:
                                strips_one(tw, ts, used, here, column, ys, isum, n, at)
                                if OFFSETS:
                                    offsets_one(to, used, here, sums, at + 64)
                                t += 1
            for top in range(first, last, ROWS):
                rows = min(ROWS, r1 - top)
                acc = accs + 256 * many * ((top - first) // ROWS * lanes)
                to_out = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
                for t in range(count):
                    out = to_out + (t0 + t) * i64(job + _OUT_STRIDE)
                    ahead = out + AHEAD * i64(job + _OUT_STRIDE)
                    prefetch_to_write(ahead)
                    prefetch_to_write(ahead + 64)
                    for half in range(2 if rows > 16 else 1):
                        at = acc + 256 * t + 128 * half
                        add_lanes(at, 256 * many)
                        if rows - 16 * half >= 16:
                            store_f32x16(out + 64 * half, load_f32x16(at))
                        else:
                            for r in range(rows - 16 * half):
                                put_f32(out + 64 * half + 4 * r, f32(at + 4 * r))


def add_lanes(at: int, stride: int) -> None:
    """The groups' sums, `stride` apart, added by halves until one is left, at `at`; open."""
    n = 256 // GROUP
    if OFFSETS:
        for g in range(n):
            here = at + stride * g
            store_f32x16(here, load_f32x16(here) + load_f32x16(here + 64))
    while n > 1:
        n //= 2
        for g in range(n):
            here = at + stride * g
            store_f32x16(here, load_f32x16(here) + load_f32x16(here + stride * n))
