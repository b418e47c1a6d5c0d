"""The templates every quant type is built from: dequantise, matrix-vector, matrix-matrix.

A type supplies one function, its readable definition

    decode(p, q, s, o)    # p: address of a block; q: (size,) int8; s, o: (size/16,) float32

such that weight[i] = s[i // 16] * q[i] + o[i // 16], bit for bit what libggml's dequantize_row
gives. s and o are written as whole vectors: there is room for 8 floats even where a block has
fewer. From it the templates below make C kernels `kernel(job, r0, r1)`; a job is a record of int64
in memory (`Job`), rows r0 <= r < r1 are computed. Types may bring faster kernels of their own under
the same contract.

Activations are float32, or records of one or two int8 planes with a float32 scale per 32 columns
(activations.py). Sums are exact in int32 within 32 columns and float32 across them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from quant import isa
from quant.jit import inline
from quant.simd import (
    alloca,
    dot_i8,
    dot_i8x64,
    dot_u8x64,
    f32,
    fma,
    fma_16,
    i64,
    join_f32,
    load_f32,
    load_f32x2,
    load_f32x4_twice,
    load_f32x16,
    load_i8,
    load_i8_as_f32,
    load_i8x64,
    load_u8x64,
    prefetch,
    put_f32,
    splat_f32,
    splat_i8,
    splat_u8x64,
    spread_pair,
    store_f32,
    store_f32x16,
    store_i8,
    store_u8x64,
    sum_f32,
    to_f32,
    to_f32x16,
    zero_f32,
)


class Job(IntEnum):
    """Fields of a job record (int64 each); addresses in bytes."""

    KERNEL = 0  # address of the C kernel
    W = 1  # row 0 of the weights
    ROW_BYTES = 2
    N_ROWS = 3
    N_COLS = 4
    X = 5  # activations of token 0: a record, or float32
    X_STRIDE = 6  # bytes from token to token
    N_TOKENS = 7
    OUT = 8  # float32; out[t, r] at OUT + t * OUT_STRIDE + 4 * r
    OUT_STRIDE = 9
    KERNEL2 = 10  # fused gate+up: the fields of `up` that differ from `gate`
    W2 = 11
    ROW_BYTES2 = 12
    X2 = 13
    X_STRIDE2 = 14
    OUT_KIND = 15  # fused gate+up: an `Activation`, how `down` wants its input
    OUT_ROW0 = 16  # subtracted from r when the output is addressed
    INDEX = 17  # matmul, matmul_f32: byte offsets of the tokens from X (int64 each), or 0
    INDEX2 = 18


class Activation(IntEnum):
    """How activations are stored."""

    FLOAT = 0  # float32 as computed
    Q8 = 1  # records of one int8 plane
    Q16 = 2  # records of two


JOB_FIELDS = 19
(
    _KERNEL, _W, _ROW_BYTES, _N_ROWS, _N_COLS, _X, _X_STRIDE, _N_TOKENS, _OUT, _OUT_STRIDE,
    _KERNEL2, _W2, _ROW_BYTES2, _X2, _X_STRIDE2, _OUT_KIND, _ROW0, _INDEX, _INDEX2,
) = (8 * int(f) for f in Job)  # fmt: skip


# open names of the templates, replaced by jit.c_kernel
SIZE = 256  # weights per block
BYTES = 0  # bytes per block


OFFSETS = True  # False: the type never writes o
PLANES = 1  # int8 planes of the activation records


def decode(p: int, q: int, s: int, o: int) -> None:
    """Open: replaced by the type's own."""


def decode_row(p: int, n_cols: int, out: int) -> None:
    """Open: `decode_quantised_row` or a float type's own."""


def decode_quantised_row(p: int, n_cols: int, out: int) -> None:
    """Dequantise a row to float32; one rounding in s * q and one in + o, like libggml."""
    q = alloca(256)
    s = alloca(64)
    o = alloca(64)
    for _ in range(n_cols // SIZE):
        decode(p, q, s, o)
        for g in range(SIZE // 16):
            scale = splat_f32(f32(s + 4 * g))
            offset = splat_f32(f32(o + 4 * g))
            if OFFSETS:
                store_f32(out, load_i8_as_f32(q + 16 * g) * scale + offset)
                store_f32(out + 32, load_i8_as_f32(q + 16 * g + 8) * scale + offset)
            else:
                store_f32(out, load_i8_as_f32(q + 16 * g) * scale)
                store_f32(out + 32, load_i8_as_f32(q + 16 * g + 8) * scale)
            out += 64
        p += BYTES


def dequantize(job: int, r0: int, r1: int) -> None:
    """Rows r0..r1 to float32: out (n_rows, n_cols), row r at OUT + (r - OUT_ROW0) * OUT_STRIDE."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    out, stride, row0 = i64(job + _OUT), i64(job + _OUT_STRIDE), i64(job + _ROW0)
    for r in range(r0, r1):
        decode_row(w + r * row_bytes, n, out + (r - row0) * stride)


def matvec(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records.

    The order of summation is part of the contract, for every product of this type keeps it: eight
    lanes of four columns each; groups of 32 columns go to two accumulators in turn; then lane by
    lane (first + second) + offsets, then the lanes.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    q = alloca(256)
    s = alloca(64)
    o = alloca(64)
    for t in range(i64(job + _N_TOKENS)):
        x = i64(job + _X) + t * i64(job + _X_STRIDE)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1):
            p = w + r * row_bytes
            y = x
            ys = x + PLANES * n
            sums = ys + n // 8
            acc = zero_f32()
            other = zero_f32()
            low = zero_f32()
            for _ in range(n // SIZE):
                prefetch(p + 2048)
                decode(p, q, s, o)
                for g in range(SIZE // 32):
                    k = 32 * (g // 4)
                    scale = spread_pair(load_f32(s + k) * load_f32x4_twice(ys + k // 2), g % 4)
                    acc, other = other, fma(to_f32(product(q + 32 * g, y, n)), scale, acc)
                    y += 32
                ys += SIZE // 8
                if OFFSETS:
                    low = add_offsets(low, o, sums, SIZE)
                    sums += SIZE // 4
                p += BYTES
            put_f32(out + 4 * r, sum_f32(acc + other + low))


MANY_ROWS = 4
MANY_COLS = 2048
MANY_TOKENS = 128
# With VNNI, decoded weights are kept 128 too large, as unsigned bytes: one instruction for the dot
# product, and what they exceed is the same for all rows.
TILE_ZERO = 128 if isa.ISA in ("avx512vnni", "avxvnni") else 0
_Q, _S, _O = MANY_COLS, MANY_COLS, MANY_COLS // 4  # bytes of a decoded row: q, scales x 8 lanes, o


def decode_tile(p: int, n_cols: int, q: int, s: int, o: int) -> None:
    """Open in `matmul`: n_cols weights at p -> q, one scale vector per 32 columns, offsets."""
    scale = alloca(64)
    for b in range(n_cols // SIZE):
        decode(p + b * BYTES, q + b * SIZE, scale, o + b * (SIZE // 4))
        for g in range(SIZE // 32):
            store_f32(s, spread_pair(load_f32(scale + 32 * (g // 4)), g % 4))
            s += 32
    if n_cols % 64:  # `matmul` goes on in steps of 64
        store_i8(q + n_cols, splat_i8(0))
        store_f32(s, zero_f32())
    if TILE_ZERO:
        for c in range(0, n_cols, 64):
            store_u8x64(q + c, load_u8x64(q + c) ^ TILE_ZERO)


def product(q: int, y: int, n: int) -> Any:
    """i32x8 of 32 weights at q . 32 activations at y; open because PLANES is."""
    v = load_i8(q)
    d = dot_i8(v, load_i8(y))
    if PLANES == 2:
        d = (d << 8) + dot_i8(v, load_i8(y + n))
    return d


@inline
def zero_dots(x: Any) -> Any:
    """What TILE_ZERO adds to the dot product of any 64 weights with x."""
    return dot_u8x64(splat_u8x64(TILE_ZERO), x)


def tile_dot(q: int, x: Any, x_zero: Any, y: Any, y_zero: Any) -> Any:
    """i32x16 of 64 decoded weights at q . activations; x, y: the planes; open because PLANES is."""
    if TILE_ZERO:
        u = load_u8x64(q)
        d = dot_u8x64(u, x) - x_zero
        if PLANES == 2:
            d = (d << 8) + (dot_u8x64(u, y) - y_zero)
        return d
    v = load_i8x64(q)
    d = dot_i8x64(v, x)
    if PLANES == 2:
        d = (d << 8) + dot_i8x64(v, y)
    return d


def add_offsets(low: Any, o: int, sums: int, n_cols: int) -> Any:
    """Low += offsets * sums of activations, of n_cols columns."""
    if SIZE % 128 == 0:
        for g in range(n_cols // 128):
            low = fma(load_f32(o + 32 * g), load_f32(sums + 32 * g), low)
    else:
        for g in range(n_cols // 32):
            low = fma(load_f32x2(o + 8 * g), load_f32x2(sums + 8 * g), low)
    return low


def matmul(job: int, r0: int, r1: int) -> None:
    """`matvec` for many tokens, bit for bit: 4 rows are decoded once for up to 128 tokens.

    Token t lies at X + INDEX[t], or at X + t * X_STRIDE where INDEX is 0. Sums are formed in the
    order of `matvec`, so a token's result does not depend on which others are computed with it.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    x, x_stride, n_tokens = i64(job + _X), i64(job + _X_STRIDE), i64(job + _N_TOKENS)
    index, stride = i64(job + _INDEX), i64(job + _OUT_STRIDE)
    q = alloca(8256)  # MANY_ROWS * _Q, and 32 columns more
    s = alloca(8256)
    o = alloca(2112)  # and one vector, for blocks with less than 8 offsets
    accs = alloca(65536)  # MANY_TOKENS * MANY_ROWS * (sums: 64, low: 32, free: 32 bytes)
    for top in range(r0, r1, MANY_ROWS):
        rows = min(MANY_ROWS, r1 - top)
        for t0 in range(0, n_tokens, MANY_TOKENS):
            count = min(MANY_TOKENS, n_tokens - t0)
            for i in range(count * MANY_ROWS * 4):
                store_f32(accs + 32 * i, zero_f32())
            for c0 in range(0, n, MANY_COLS):
                cols = min(MANY_COLS, n - c0)
                for r in range(MANY_ROWS):
                    row = w + (top + min(r, rows - 1)) * row_bytes + c0 // SIZE * BYTES
                    decode_tile(row, cols, q + r * _Q, s + r * _S, o + r * _O)
                for t in range(count):
                    y = x + (i64(index + 8 * (t0 + t)) if index else (t0 + t) * x_stride)
                    at = accs + t * MANY_ROWS * 128
                    a = load_f32x16(at)
                    b = load_f32x16(at + 64)
                    c = load_f32x16(at + 128)
                    d = load_f32x16(at + 192)
                    for g in range(0, cols, 64):
                        v = y + c0 + g
                        at_ys = y + PLANES * n + (c0 + g) // 8
                        ys = join_f32(splat_f32(f32(at_ys)), splat_f32(f32(at_ys + 4)))
                        x64 = load_i8x64(v)
                        y64 = load_i8x64(v + (PLANES - 1) * n)
                        xz = zero_dots(x64)
                        yz = zero_dots(y64)
                        k = q + g
                        j = s + g
                        a = fma_16(to_f32x16(tile_dot(k, x64, xz, y64, yz)), load_f32x16(j) * ys, a)
                        k += _Q
                        j += _S
                        b = fma_16(to_f32x16(tile_dot(k, x64, xz, y64, yz)), load_f32x16(j) * ys, b)
                        k += _Q
                        j += _S
                        c = fma_16(to_f32x16(tile_dot(k, x64, xz, y64, yz)), load_f32x16(j) * ys, c)
                        k += _Q
                        j += _S
                        d = fma_16(to_f32x16(tile_dot(k, x64, xz, y64, yz)), load_f32x16(j) * ys, d)
                    store_f32x16(at, a)
                    store_f32x16(at + 64, b)
                    store_f32x16(at + 128, c)
                    store_f32x16(at + 192, d)
                    if OFFSETS:
                        sums = y + PLANES * n + n // 8 + c0 // 4
                        for r in range(MANY_ROWS):
                            low = load_f32(at + 256 + 32 * r)
                            store_f32(at + 256 + 32 * r, add_offsets(low, o + r * _O, sums, cols))
            for t in range(count):
                out = i64(job + _OUT) + (t0 + t) * stride + 4 * (top - i64(job + _ROW0))
                at = accs + t * MANY_ROWS * 128
                for r in range(rows):
                    first = load_f32(at + 64 * r)
                    second = load_f32(at + 64 * r + 32)
                    low = load_f32(at + 256 + 32 * r)
                    put_f32(out + 4 * r, sum_f32(first + second + low))


TILE_ROWS = 8
TILE_COLS = 512


@inline
def _tile_3(w: int, x: int, y: int, z: int, n: int, out: int, out_stride: int, add: bool) -> None:
    """out[0..2, 0..3] (+)= 4 weight rows . tokens x, y, z; w: rows of TILE_COLS float32."""
    a = zero_f32(); b = zero_f32(); c = zero_f32(); d = zero_f32()  # fmt: skip
    e = zero_f32(); f = zero_f32(); g = zero_f32(); h = zero_f32()  # fmt: skip
    i = zero_f32(); j = zero_f32(); k = zero_f32(); l = zero_f32()  # fmt: skip
    for col in range(0, 4 * n, 32):
        x8 = load_f32(x + col)
        y8 = load_f32(y + col)
        z8 = load_f32(z + col)
        v = load_f32(w + col)
        a = fma(v, x8, a); b = fma(v, y8, b); c = fma(v, z8, c)  # fmt: skip
        v = load_f32(w + 4 * TILE_COLS + col)
        d = fma(v, x8, d); e = fma(v, y8, e); f = fma(v, z8, f)  # fmt: skip
        v = load_f32(w + 8 * TILE_COLS + col)
        g = fma(v, x8, g); h = fma(v, y8, h); i = fma(v, z8, i)  # fmt: skip
        v = load_f32(w + 12 * TILE_COLS + col)
        j = fma(v, x8, j); k = fma(v, y8, k); l = fma(v, z8, l)  # fmt: skip
    _put_4(out, a, d, g, j, add)
    _put_4(out + out_stride, b, e, h, k, add)
    _put_4(out + 2 * out_stride, c, f, i, l, add)


@inline
def _tile_1(w: int, x: int, n: int, out: int, add: bool) -> None:
    """As _tile_3 for one token; the same sums in the same order."""
    a = zero_f32(); b = zero_f32(); c = zero_f32(); d = zero_f32()  # fmt: skip
    for col in range(0, 4 * n, 32):
        x8 = load_f32(x + col)
        a = fma(load_f32(w + col), x8, a)
        b = fma(load_f32(w + 4 * TILE_COLS + col), x8, b)
        c = fma(load_f32(w + 8 * TILE_COLS + col), x8, c)
        d = fma(load_f32(w + 12 * TILE_COLS + col), x8, d)
    _put_4(out, a, b, c, d, add)


@inline
def _row_1(w: int, x: int, n: int, out: int, add: bool) -> None:
    """Out (+)= one weight row . one token."""
    a = zero_f32()
    for col in range(0, 4 * n, 32):
        a = fma(load_f32(w + col), load_f32(x + col), a)
    _put_1(out, a, add)


@inline
def _put_1(out: int, a: Any, add: bool) -> None:
    if add:
        put_f32(out, f32(out) + sum_f32(a))
    else:
        put_f32(out, sum_f32(a))


@inline
def _put_4(out: int, a: Any, b: Any, c: Any, d: Any, add: bool) -> None:
    _put_1(out, a, add)
    _put_1(out + 4, b, add)
    _put_1(out + 8, c, add)
    _put_1(out + 12, d, add)


def matmul_f32(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . x[t], x float32: a tile of rows is decoded once for all tokens.

    Token t lies at X + INDEX[t], or at X + t * X_STRIDE where INDEX is 0. Tiles of 8 rows x 512
    columns stay in L1. A result does not depend on which other tokens or rows are computed with it.
    """
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    x, x_stride, n_tokens = i64(job + _X), i64(job + _X_STRIDE), i64(job + _N_TOKENS)
    index, stride = i64(job + _INDEX), i64(job + _OUT_STRIDE)
    tile = alloca(16384)  # TILE_ROWS * TILE_COLS * 4
    for top in range(r0, r1, TILE_ROWS):
        rows = min(TILE_ROWS, r1 - top)
        quads = rows // 4 * 4
        out0 = i64(job + _OUT) + 4 * (top - i64(job + _ROW0))
        for c0 in range(0, n, TILE_COLS):
            cols = min(TILE_COLS, n - c0)
            for r in range(rows):
                start = w + (top + r) * row_bytes + (c0 // SIZE) * BYTES
                decode_row(start, cols, tile + r * 4 * TILE_COLS)
            add = c0 > 0
            y = x + 4 * c0
            t = 0
            while t < n_tokens:
                out = out0 + t * stride
                y0 = y + (i64(index + 8 * t) if index else t * x_stride)
                if t + 3 <= n_tokens:
                    y1 = y + (i64(index + 8 * t + 8) if index else (t + 1) * x_stride)
                    y2 = y + (i64(index + 8 * t + 16) if index else (t + 2) * x_stride)
                    for r in range(0, quads, 4):
                        _tile_3(
                            tile + r * 4 * TILE_COLS, y0, y1, y2, cols, out + 4 * r, stride, add
                        )
                    for r in range(quads, rows):
                        _row_1(tile + r * 4 * TILE_COLS, y0, cols, out + 4 * r, add)
                        _row_1(tile + r * 4 * TILE_COLS, y1, cols, out + stride + 4 * r, add)
                        _row_1(tile + r * 4 * TILE_COLS, y2, cols, out + 2 * stride + 4 * r, add)
                    t += 3
                else:
                    for r in range(0, quads, 4):
                        _tile_1(tile + r * 4 * TILE_COLS, y0, cols, out + 4 * r, add)
                    for r in range(quads, rows):
                        _row_1(tile + r * 4 * TILE_COLS, y0, cols, out + 4 * r, add)
                    t += 1
