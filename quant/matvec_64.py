"""Matrix-vector product straight from the block, 64 columns at a time, two rows together.

For blocks of 256 small unsigned weights. A type gives, instead of going through memory:

    weights_64(p, k)    u8x64: weights 64 k .. 64 k + 63 of the block at p plus ZERO, at most 64
    scales_16(p)        f32x16: the scales of its 16 groups of 16
    offsets_16(p)       f32x16: their offsets, if the type has any

ZERO is taken off in integers.
"""

from __future__ import annotations

from typing import Any

from quant.kernels import (
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
    put_results,
)
from quant.simd import (
    dot_u8x64,
    evens,
    fma_16,
    i64,
    join_f32,
    load_f32,
    load_f32x8_twice,
    load_f32x16,
    load_i8x64,
    load_i32x8_twice,
    load_i32x16,
    prefetch,
    sums_16,
    sums_32,
    to_f32x16,
    twice_each,
    zero_f32x16,
)

ZERO = 0  # what the stored weights exceed the real ones by


def weights_64(p: int, k: int) -> Any:
    """Open: the type's own."""


def scales_16(p: int) -> Any:
    """Open: the type's own."""


def offsets_16(p: int) -> Any:
    """Open: the type's own."""


def dots_64(p: int, r: int, k: int, y: int, n: int) -> tuple[Any, Any]:
    """Dots of the rows at p and r with columns 64 k .. of the block; open because PLANES is."""
    w = weights_64(p, k)
    v = weights_64(r, k)
    x = load_i8x64(y + 64 * k)
    a = dot_u8x64(w, x)
    b = dot_u8x64(v, x)
    if PLANES == 2:
        x = load_i8x64(y + n + 64 * k)
        a = (a << 8) + dot_u8x64(w, x)
        b = (b << 8) + dot_u8x64(v, x)
    return a, b


def matvec_64(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    for t in range(i64(job + _N_TOKENS)):
        x = i64(job + _X) + t * i64(job + _X_STRIDE)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for top in range(r0, r1, 2):
            step = row_bytes if top + 1 < r1 else 0  # the last row of an odd number: twice
            p = w + top * row_bytes
            y = x
            ys = x + PLANES * n
            a = zero_f32x16()  # GROUP 32: lanes 0-7 for the first row, 8-15 for the second
            b = zero_f32x16()
            low_a = zero_f32x16()
            low_b = zero_f32x16()
            for c in range(0, n, 256):
                # the same place of the next two rows: what lies 2 KB on is being read already
                for line in range(0, BYTES, 64):
                    prefetch(p + 2 * row_bytes + line)
                    prefetch(p + 3 * row_bytes + line)
                d0, e0 = dots_64(p, p + step, 0, y, n)
                d1, e1 = dots_64(p, p + step, 1, y, n)
                d2, e2 = dots_64(p, p + step, 2, y, n)
                d3, e3 = dots_64(p, p + step, 3, y, n)
                if GROUP == 16:
                    scale = twice_each(load_f32(ys))
                    d = sums_16(d0, d1, d2, d3)
                    e = sums_16(e0, e1, e2, e3)
                    if ZERO:
                        zero = load_i32x16(ys + n // 8 * 5 + c // 8) * ZERO
                        d = d - zero
                        e = e - zero
                    a = fma_16(to_f32x16(d), scales_16(p) * scale, a)
                    b = fma_16(to_f32x16(e), scales_16(p + step) * scale, b)
                    if OFFSETS:
                        sums = load_f32x16(ys + n // 4 + c // 8)
                        low_a = fma_16(offsets_16(p), sums, low_a)
                        low_b = fma_16(offsets_16(p + step), sums, low_b)
                else:
                    scale = join_f32(evens(scales_16(p)), evens(scales_16(p + step)))
                    d = sums_32(d0, d1, d2, d3, e0, e1, e2, e3)
                    if ZERO:
                        d = d - load_i32x8_twice(ys + n // 2) * ZERO
                    a = fma_16(to_f32x16(d), scale * load_f32x8_twice(ys), a)
                    if OFFSETS:
                        offset = join_f32(evens(offsets_16(p)), evens(offsets_16(p + step)))
                        low_a = fma_16(offset, load_f32x8_twice(ys + n // 8), low_a)
                y += 256
                ys += 32
                p += BYTES
            put_results(out + 4 * top, step > 0, a, b, low_a, low_b)
