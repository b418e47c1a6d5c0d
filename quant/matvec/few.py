"""A few tokens at once: 16 rows are decoded a step at a time, and multiplied with every token.

    step      256 columns of 16 rows, in L1: as half a tile (tile.py), a lane to a row;
              group g of columns: vectors of 4 columns 128 bytes apart, scales and offsets
    sums      of every token and group of columns, in memory as well: [token][group][16 rows]

A row is read and decoded once for up to MOST tokens, from the file's bytes and from records, so
that nothing has to be prepared (a tile wants panels). No sum goes across lanes, and activations are
read as they lie: a product costs little more than its dots. Decoding 16 rows together does cost
more than what `matvec` does with one, so that this pays from two tokens on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.compiler.jit import OPEN
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    GROUP,
    OFFSETS,
    PLANES,
    SIZE,
    STEP,
    token_at,
)
from quant.simd.vbmi import store_i32x16
from quant.simd.vectors import (
    F32,
    I32,
    I64,
    P,
    _op,
    _plus,
    _pointer,
    alloca,
    call,
    f32,
    f32x16,
    i32x16,
    i64,
    load_i32x16,
    prefetch_far,
    put_f32,
    put_i64,
    splat_value,
    store_f32x16,
    zero_f32x16,
)
from quant.tile.tile import add_lanes, fill_step, transpose_16

ROWS = 16
MOST = 8  # tokens for which a row is decoded once
AHEAD = 8192  # bytes of 16 rows: how far ahead they are fetched
SUMS = 1024  # bytes from a token's sums to the next one's: at most 16 groups
TO_LOW = MOST * SUMS  # from sums of products to those of offsets
SUMS_ROOM = 2 * TO_LOW
MORE_ROOM = 64 * MOST
ZERO: int = OPEN  # what stored weights are too large by


def products_4(*arguments: int) -> None:
    """Open: `_products` of four tokens."""


def products_2(*arguments: int) -> None:
    """Open: of two."""


def products_1(*arguments: int) -> None:
    """Open: of one."""


def correct(records: int, count: int, c: int, n: int, to: int) -> None:
    """What stored weights are too large by, times the sums of activations; open for GROUP."""
    isum = PLANES * n + (n // 2 if GROUP == 32 else n // 8 * 5) + c // GROUP * 4
    for t in range(count):
        store_i32x16(to + 64 * t, load_i32x16(i64(records + 8 * t) + isum) * -ZERO)


def add_step(
    w: int, s: int, o: int, records: int, count: int, c: int, n: int, more: int, acc: int
) -> None:
    """The sums at acc + the step's products with `count` tokens; open because GROUP is.

    w: groups GROUP * 32 bytes apart; s, o: 64; c: the step's first column.
    """
    used = min(STEP, n - c) // GROUP
    if ZERO:
        correct(records, count, c, n, more)
    t = 0
    while t < count:
        many = 4 if count - t >= 4 else 2 if count - t >= 2 else 1
        for g in range(used):
            column = c + g * GROUP
            to_w, to_s, to_o = w + g * (GROUP * 32), s + 64 * g, o + 64 * g
            table, start, at = records + 8 * t, more + 64 * t + 4 * g, acc + SUMS * t + 64 * g
            if many == 4:
                products_4(to_w, to_s, to_o, table, column, n, start, at)
            elif many == 2:
                products_2(to_w, to_s, to_o, table, column, n, start, at)
            else:
                products_1(to_w, to_s, to_o, table, column, n, start, at)
        t += many


def clear_sums(acc: int, count: int) -> None:
    """Zeros for `count` tokens; open because GROUP is."""
    for t in range(count):
        for i in range(0, STEP // GROUP * 64, 64):
            store_f32x16(acc + SUMS * t + i, zero_f32x16())
            if OFFSETS:
                store_f32x16(acc + TO_LOW + SUMS * t + i, zero_f32x16())


def put_rows(acc: int, rows: int, out: int) -> None:
    """The first `rows` results of a token -> out; open."""
    total = add_lanes(acc, TO_LOW, 64)
    if rows >= ROWS:
        store_f32x16(out, total)
    else:
        store_f32x16(acc, total)
        for r in range(rows):
            put_f32(out + 4 * r, f32(acc + 4 * r))


def few(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, as records; 16 rows at a time."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    n_tokens, stride = i64(job + _N_TOKENS), i64(job + _OUT_STRIDE)
    step_bytes = STEP // SIZE * BYTES
    ahead = max(1, AHEAD // (ROWS * step_bytes)) * step_bytes
    weights = alloca(8192)
    s = alloca(1024)
    o = alloca(1024)
    acc = alloca(SUMS_ROOM)
    more = alloca(MORE_ROOM)
    places = alloca(128)
    records = alloca(64)
    for t0 in range(0, n_tokens, MOST):
        count = min(MOST, n_tokens - t0)
        for t in range(count):
            put_i64(records + 8 * t, token_at(job, t0 + t))
        for top in range(r0, r1, ROWS):
            rows = min(ROWS, r1 - top)
            for i in range(ROWS):
                put_i64(places + 8 * i, w + (top + min(i, rows - 1)) * row_bytes)
            clear_sums(acc, count)
            at = 0
            for c in range(0, n, STEP):
                far = at + ahead  # or as far into the next 16 rows
                far += (ROWS - 1) * row_bytes if far >= row_bytes else 0
                for i in range(ROWS):
                    for line in range(0, step_bytes, 64):
                        prefetch_far(i64(places + 8 * i) + far + line)
                fill_step(places, at, n - c, weights, GROUP * 32, s, o, 64)
                add_step(weights, s, o, records, count, c, n, more, acc)
                at += step_bytes
            for t in range(count):
                out = i64(job + _OUT) + (t0 + t) * stride + 4 * (top - i64(job + _ROW0))
                put_rows(acc + SUMS * t, rows, out)


def _splat_load(b: Any, address: Any, element: Any) -> Any:
    x = b.load(_pointer(b, address, element), align=1)
    return splat_value(b, x, ir.VectorType(element, 16))


@cache
def _products(tokens: int, planes: int, group: int, zero: int, offsets: bool) -> Any:
    """products(w, s, o, records, column, n, more, acc): a group of columns and `tokens` tokens.

    records: the table of their addresses; more: what is added to the sums of products, 64 bytes
    from token to token.
    """
    v16i, v16f = i32x16.llvm, f32x16.llvm

    def i64_of(number: int) -> Any:
        return ir.Constant(I64, number)

    def generate(b: Any, m: Any, v: Any) -> Any:
        w, s, o, records, column, n, more, acc = v
        x = [b.load(_pointer(b, _plus(b, records, 8 * t), I64), align=8) for t in range(tokens)]
        y = [b.add(at, column) for at in x]
        planes_end = b.mul(n, i64_of(planes))
        to_scale = b.add(planes_end, b.mul(b.lshr(column, i64_of(5)), i64_of(4)))
        size = b.lshr(n, i64_of(3 if group == 32 else 2))
        to_sums = b.add(b.add(planes_end, size), b.udiv(column, i64_of(group // 4)))
        sums = [[ir.Constant(v16i, [0] * 16)] * tokens for _ in range(planes)]
        if zero:
            sums[-1] = [_splat_load(b, _plus(b, more, 64 * t), I32) for t in range(tokens)]
        for k in range(group // 4):
            weights = b.load(_pointer(b, _plus(b, w, 128 * k), v16i), align=1)
            ready = isa.prepare_quad(b, m, weights)
            for plane in range(planes):
                for t in range(tokens):
                    at = b.add(y[t], n) if plane else y[t]
                    quad = _splat_load(b, _plus(b, at, 4 * k), I32)
                    sums[plane][t] = isa.add_quad(b, m, sums[plane][t], ready, quad)
        scale = b.load(_pointer(b, s, v16f), align=1)
        offset = b.load(_pointer(b, o, v16f), align=1)

        def add(x: Any, y: Any, at: Any) -> None:
            """The sums at `at` + x * y."""
            place = _pointer(b, at, v16f)
            z = call(b, m, "llvm.fma.v16f32", v16f, [x, y, b.load(place, align=1)])
            b.store(z, place, align=1)

        for t in range(tokens):
            dot = sums[0][t]
            if planes == 2:
                dot = b.add(b.shl(dot, ir.Constant(v16i, [8] * 16)), sums[1][t])
            by = b.fmul(scale, _splat_load(b, b.add(x[t], to_scale), F32))
            add(b.sitofp(dot, v16f), by, _plus(b, acc, SUMS * t))
            if offsets:
                sum_ = _splat_load(b, b.add(x[t], to_sums), F32)
                add(offset, sum_, _plus(b, acc, TO_LOW + SUMS * t))
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 8, generate)


def intrinsics(planes: int, group: int, *, offsets: bool) -> dict[str, Any]:
    """What the template leaves open, for a kind of type."""
    zero = 128 if isa.VNNI else 0  # unsigned bytes, or signed ones: as `isa.add_quad` wants them
    found = {f"products_{k}": _products(k, planes, group, zero, offsets) for k in (4, 2, 1)}
    found |= {"transpose_weights": transpose_16(zero), "WIDE": False, "ZERO": zero}
    return found


# what has open names itself, in the order in which it is bound
OPEN_HELPERS = {f.__name__: f for f in (correct, add_step, clear_sums, put_rows)}
