"""TQ1_0: matrix-vector product from the file's bytes, sixteen rows together (AVX-512 with VBMI).

A byte's five trits are looked up, not computed: one table of 256 bytes gives four of them in pairs
of bits, another the fifth. Masked in place, trit n of the first table stands at 4^n times its
value; a product's sum is shifted right once instead of every weight.

    vector k of 16 rows (row_lanes.py) and its columns:
        0 .. 7    bytes 4 k of the first 32   trit n -> 32 n + 4 k
        8 .. 11   of the next 16              160 + 16 n + 4 (k - 8)
        12        the last 4                  240 + 4 n
    groups of 32 columns:  0 .. 4 = trit n of vectors 0 .. 7;  5 = trits 0 and 1 of vectors 8 .. 11,
                           6 = their trits 2 and 3, 7 = their trit 4 and all of vector 12
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    PLANES,
    token_at,
)
from quant.matvec.row_lanes import (
    add_product,
    byte_table,
    in_order,
    last_half,
    middle_word,
    splat_f32_at,
    splat_i32_at,
    store_firsts,
    store_quads,
    words_of_16,
    zero_i32x16,
)
from quant.simd.vectors import (
    alloca,
    fma_16,
    i64,
    load_f32x16,
    prefetch_far,
    store_f32x16,
    to_f32x16,
    zero_f32x16,
)


def trits_of(byte: int) -> list[int]:
    """The five trits of a byte; see tq1_0.py."""
    return [3 * (byte * 3**n % 256) // 256 for n in range(5)]


first_four = byte_table(
    [sum(t << 2 * n for n, t in enumerate(trits_of(q)[:4])) for q in range(256)]
)
fifth = byte_table([trits_of(q)[4] for q in range(256)])


@inline
def add_trits(v: Any, w: Any, y: int, step: int, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Products of a vector's five trits with the activations at y, y + step ..; v, w: look-ups."""
    a = add_product(a, v & 3, y)
    b = add_product(b, v & 12, y + step)
    c = add_product(c, v & 48, y + 2 * step)
    d = add_product(d, v & 192, y + 3 * step)
    e = add_product(e, w, y + 4 * step)
    return a, b, c, d, e


@inline
def add_last(v: Any, y: int, acc: Any) -> Any:
    """Acc + products of the four trits of the last vector."""
    x = add_product(zero_i32x16(), v & 192, y + 12) >> 2
    x = add_product(x, v & 48, y + 8) >> 2
    x = add_product(x, v & 12, y + 4) >> 2
    return add_product(acc + x, v & 3, y)


@inline
def add_word(w: Any, y: int, step: int, planes: int, n: int, hi: Any, lo: Any) -> Any:
    """The sums of the planes (of one: lo is left alone) + products of a vector with them."""
    in_order()
    v = first_four(w)
    u = fifth(w)
    hi = add_trits(v, u, y, step, hi[0], hi[1], hi[2], hi[3], hi[4])
    if planes == 2:
        lo = add_trits(v, u, y + n, step, lo[0], lo[1], lo[2], lo[3], lo[4])
    return hi, lo


@inline
def add_words(p: Any, at: int, y: int, step: int, planes: int, n: int, hi: Any, lo: Any) -> Any:
    """`add_word` for the bytes at .. at + 15 of 16 rows; p: their quads (row_lanes.py)."""
    w = words_of_16(p[0] + at, p[1] + at, p[2] + at, p[3] + at, p[4])
    hi, lo = add_word(w[0], y, step, planes, n, hi, lo)
    hi, lo = add_word(w[1], y + 4, step, planes, n, hi, lo)
    hi, lo = add_word(w[2], y + 8, step, planes, n, hi, lo)
    hi, lo = add_word(w[3], y + 12, step, planes, n, hi, lo)
    return hi, lo


@inline
def add_group(hi: Any, lo: Any, planes: int, g: int, d: Any, ys: int, n: int, acc: int) -> None:
    """Group g of a block: its sums times the scales, into the sums of the rows at acc.

    Trits are 1 too large: the sum of the activations is taken off.
    """
    if planes == 2:
        hi = (hi << 8) + lo
    dot = to_f32x16(hi - splat_i32_at(ys + n // 2 + 4 * g))
    at = acc + 64 * g
    store_f32x16(at, fma_16(dot, d * splat_f32_at(ys + 4 * g), load_f32x16(at)))


@inline
def nothing() -> Any:
    """Five sums of no product."""
    return zero_i32x16(), zero_i32x16(), zero_i32x16(), zero_i32x16(), zero_i32x16()


@inline
def tree_of_8(acc: int) -> Any:
    """Halves of the eight groups' sums added until one is left."""
    a = load_f32x16(acc) + load_f32x16(acc + 256)
    b = load_f32x16(acc + 64) + load_f32x16(acc + 320)
    c = load_f32x16(acc + 128) + load_f32x16(acc + 384)
    d = load_f32x16(acc + 192) + load_f32x16(acc + 448)
    return (a + c) + (b + d)


def matvec_16_rows(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    acc = alloca(512)  # 8 groups x 16 rows
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for top in range(r0, r1, 16):
            # quads overlap where rows are few; less than a quad: a row fills a quad
            rows = min(16, r1 - top)
            stride = row_bytes if rows >= 4 else 0
            wide, last = (4, top + rows - 4) if rows >= 4 else (1, top + rows - 1)
            q1, q2, q3 = min(top + wide, last), min(top + 2 * wide, last), min(top + 3 * wide, last)
            p = w + top * row_bytes
            ahead = p + 16 * row_bytes  # the next rows, in the order of memory
            to1, to2, to3 = (q1 - top) * row_bytes, (q2 - top) * row_bytes, (q3 - top) * row_bytes
            y = x
            ys = x + PLANES * n
            for g in range(8):
                store_f32x16(acc + 64 * g, zero_f32x16())
            for _ in range(n // 256):
                for line in range(0, 16 * 54, 64):
                    prefetch_far(ahead + line)
                ahead += 16 * 54
                at = p, p + to1, p + to2, p + to3, stride
                end = p + 46, p + to1 + 46, p + to2 + 46, p + to3 + 46, stride
                d = last_half(*end)
                hi, lo = add_words(at, 0, y, 32, PLANES, n, nothing(), nothing())
                hi, lo = add_words(at, 16, y + 16, 32, PLANES, n, hi, lo)
                add_group(hi[0], lo[0], PLANES, 0, d, ys, n, acc)
                add_group(hi[1] >> 2, lo[1] >> 2, PLANES, 1, d, ys, n, acc)
                add_group(hi[2] >> 4, lo[2] >> 4, PLANES, 2, d, ys, n, acc)
                add_group(hi[3] >> 6, lo[3] >> 6, PLANES, 3, d, ys, n, acc)
                add_group(hi[4], lo[4], PLANES, 4, d, ys, n, acc)
                hi, lo = add_words(at, 32, y + 160, 16, PLANES, n, nothing(), nothing())
                a, b = hi[0] + (hi[1] >> 2), lo[0] + (lo[1] >> 2)
                add_group(a, b, PLANES, 5, d, ys, n, acc)
                a, b = (hi[2] >> 4) + (hi[3] >> 6), (lo[2] >> 4) + (lo[3] >> 6)
                add_group(a, b, PLANES, 6, d, ys, n, acc)
                v = first_four(middle_word(*end))
                a, b = add_last(v, y + 240, hi[4]), lo[4]
                if PLANES == 2:
                    b = add_last(v, y + n + 240, b)
                add_group(a, b, PLANES, 7, d, ys, n, acc)
                p += 54
                y += 256
                ys += 32
            total = tree_of_8(acc)
            if rows >= 4:
                store_quads(out + 4 * top, out + 4 * q1, out + 4 * q2, out + 4 * q3, total)
            else:
                store_firsts(out + 4 * top, out + 4 * q1, out + 4 * q2, out + 4 * q3, total)
