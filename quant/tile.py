"""Many tokens: a tile of rows is decoded once to int8, and every token's products run over it.

    tile    32 rows x at most 2,048 columns, columns in groups (see kernels.py) and steps of 256:
            weights [group][step][4 columns][2 x 16 rows x 4 bytes]: a vector = 16 rows x 4 columns
            scales  [group][step][2 x 16 rows], offsets the same

A 32-bit lane is a row, so that no sum goes across lanes: one instruction multiplies 16 rows x 4
columns with four bytes of a token, which every lane gets (`strips`, below). Results are those of
`matvec`, bit for bit.
"""

from __future__ import annotations

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
    fma_16,
    i32x16,
    i64,
    load_f32x16,
    put_f32,
    put_i64,
    splat_f32x16,
    splat_value,
    store_f32x16,
    zero_f32x16,
)

ROWS = 32
COLS = 2048
STEPS = COLS // 256
TOKENS = 6 if isa.ISA.startswith("avx512") else 2  # per pass over the tile: what registers hold
MANY = 96  # tokens whose sums are kept at a time
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


def _strips(tokens: int, group: int, planes: int) -> Any:
    """strips(w, s, steps, table, x, ys, isum, n, acc, acc_stride).

    One group of columns of 32 rows for `tokens` tokens: acc grows by all steps. table: addresses of
    the tokens' records; x, ys, isum: what to add to these for the group's first columns, scales and
    sums; n: from one plane to the next. Token t's acc lies t * acc_stride on, its second 16 rows
    128 bytes further.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, table, x0, ys0, isum0, n, acc0, stride = v
        v16f, v16i = f32x16.llvm, i32x16.llvm
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(tokens)]
        places = [
            _plus(b, b.add(acc0, b.mul(stride, ir.Constant(I64, t))), 128 * half)
            for t, half in pairs
        ]
        start = [b.load(_pointer(b, at, v16f), align=1) for at in places]
        before = b.block
        loop = b.append_basic_block("steps")
        after = b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        acc = [b.phi(v16f) for _ in start]
        for phi, value in zip(acc, start, strict=True):
            phi.add_incoming(value, before)
        w = b.add(w0, b.mul(i, ir.Constant(I64, group * 32)))
        to_s = b.mul(i, ir.Constant(I64, 128))
        to_x = b.mul(i, ir.Constant(I64, 256))
        to_ys = b.mul(i, ir.Constant(I64, 32))
        to_sum = b.mul(i, ir.Constant(I64, 1024 // group))
        dots = {pair: ir.Constant(v16i, [0] * 16) for pair in pairs}
        for plane in range(planes):
            if plane:
                dots = {pair: b.shl(d, ir.Constant(v16i, [8] * 16)) for pair, d in dots.items()}
            at = [b.add(r, b.add(x0, to_x)) for r in records]
            if plane:
                at = [b.add(a, n) for a in at]
            for k in range(group // 4):
                ready = []
                for half in range(2):
                    place = _pointer(b, _plus(b, w, 128 * k + 64 * half), v16i)
                    ready.append(isa.prepare_quad(b, m, b.load(place, align=1)))
                for t in range(tokens):
                    y = _splat_load(b, _plus(b, at[t], 4 * k), I32)
                    for half in range(2):
                        dots[t, half] = isa.add_quad(b, m, dots[t, half], ready[half], y)
        scale = [
            b.load(_pointer(b, _plus(b, b.add(s0, to_s), 64 * half), v16f), align=1)
            for half in range(2)
        ]
        new: list[Any] = []
        for t in range(tokens):
            bias = None
            if ZERO:
                isum = b.load(_pointer(b, b.add(records[t], b.add(isum0, to_sum)), I32), align=1)
                bias = splat_value(b, b.mul(isum, ir.Constant(I32, ZERO)), v16i)
            ys = _splat_load(b, b.add(records[t], b.add(ys0, to_ys)), F32)
            for half in range(2):
                d = dots[t, half] if bias is None else b.sub(dots[t, half], bias)
                args = [b.sitofp(d, v16f), b.fmul(scale[half], ys), acc[len(new)]]
                new.append(call(b, m, "llvm.fma.v16f32", v16f, args))
        following = b.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, loop)
        for phi, value in zip(acc, new, strict=True):
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, steps), loop, after)
        b.position_at_end(after)
        for at, value in zip(places, new, strict=True):
            b.store(value, _pointer(b, at, v16f), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 10, generate)


@cache
def strips(planes: int, group: int, tokens: int) -> Any:
    """The intrinsic for a kind of type; made once for each."""
    return _strips(tokens, group, planes)


def strips_many(*arguments: int) -> None:
    """Open: `strips` of TOKENS tokens."""


def strips_one(*arguments: int) -> None:
    """Open: `strips` of one token."""


def matmul(job: int, r0: int, r1: int) -> None:
    """`matvec` for many tokens, bit for bit.

    Token t lies at X + INDEX[t], or at X + t * X_STRIDE where INDEX is 0.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    x, x_stride, n_tokens = i64(job + _X), i64(job + _X_STRIDE), i64(job + _N_TOKENS)
    index = i64(job + _INDEX)
    lanes = 256 // GROUP
    tile_w = alloca(65536)  # ROWS * COLS
    tile_s = alloca(16384)  # ROWS * COLS / 16 floats
    tile_o = alloca(16384)
    table = alloca(768)  # MANY addresses
    accs = alloca(393216)  # MANY tokens x 2 x 16 groups x (sums: 64 bytes, of offsets: 64 bytes)
    to_scale = PLANES * n
    for top in range(r0, r1, ROWS):
        rows = min(ROWS, r1 - top)
        for t0 in range(0, n_tokens, MANY):
            count = min(MANY, n_tokens - t0)
            for t in range(count):
                at = i64(index + 8 * (t0 + t)) if index else (t0 + t) * x_stride
                put_i64(table + 8 * t, x + at)
            for t in range(count, -(-count // TOKENS) * TOKENS):
                put_i64(table + 8 * t, i64(table))  # computed and forgotten
            for i in range(-(-count // TOKENS) * TOKENS * lanes * 4):
                store_f32x16(accs + 64 * i, zero_f32x16())
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                steps = (cols + 255) // 256
                fill_tile(w, row_bytes, top, rows, c0, cols, tile_w, tile_s, tile_o)
                for g in range(lanes):
                    to_x = c0 + g * GROUP
                    to_ys = to_scale + to_x // 32 * 4
                    to_sums = to_scale + (n // 8 if GROUP == 32 else n // 4) + to_x // GROUP * 4
                    to_isum = to_scale + (n // 2 if GROUP == 32 else n // 8 * 5)
                    to_isum += to_x // GROUP * 4
                    used = steps if to_x + (steps - 1) * 256 < n else steps - 1
                    if used == 0:
                        continue
                    tw = tile_w + g * steps * GROUP * 32
                    ts = tile_s + g * steps * 128
                    to = tile_o + g * steps * 128
                    at = accs + 256 * g
                    stride = lanes * 256
                    t = 0
                    while t < count:
                        here, acc = table + 8 * t, at + t * stride
                        if count - t > TOKENS // 3:
                            strips_many(tw, ts, used, here, to_x, to_ys, to_isum, n, acc, stride)
                            t += TOKENS
                        else:
                            strips_one(tw, ts, used, here, to_x, to_ys, to_isum, n, acc, stride)
                            t += 1
                    if OFFSETS:
                        for t in range(count):
                            add_offsets(at + t * stride, to, used, i64(table + 8 * t) + to_sums)
            for t in range(count):
                out = i64(job + _OUT) + (t0 + t) * i64(job + _OUT_STRIDE)
                out += 4 * (top - i64(job + _ROW0))
                for half in range(2 if rows > 16 else 1):
                    at = accs + t * lanes * 256 + half * 128
                    add_lanes(at)
                    for r in range(min(16, rows - 16 * half)):
                        put_f32(out + 64 * half + 4 * r, f32(at + 4 * r))


def add_offsets(acc: int, o: int, steps: int, sums: int) -> None:
    """Offsets * sums of all steps, for one group of one token; open because GROUP is."""
    first = load_f32x16(acc + 64)
    second = load_f32x16(acc + 192)
    for step in range(steps):
        here = splat_f32x16(f32(sums + step * (1024 // GROUP)))
        first = fma_16(load_f32x16(o + 128 * step), here, first)
        second = fma_16(load_f32x16(o + 128 * step + 64), here, second)
    store_f32x16(acc + 64, first)
    store_f32x16(acc + 192, second)


def add_lanes(at: int) -> None:
    """Halves of the groups' sums added until one is left, at `at`; open because GROUP is."""
    n = 256 // GROUP
    if OFFSETS:
        for g in range(n):
            total = load_f32x16(at + 256 * g) + load_f32x16(at + 256 * g + 64)
            store_f32x16(at + 256 * g, total)
    while n > 1:
        n //= 2
        for g in range(n):
            total = load_f32x16(at + 256 * g) + load_f32x16(at + 256 * (g + n))
            store_f32x16(at + 256 * g, total)
