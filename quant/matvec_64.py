"""Matrix-vector product straight from the block, 64 columns at a time, two rows together.

For blocks of 256 small unsigned weights. A type gives, instead of going through memory:

    weights_64(p, k)    u8x64: weights 64 k .. 64 k + 63 of the block at p plus ZERO, at most 64
    scales_16(p)        f32x16: the scales of its 16 groups of 16
    offsets_16(p)       f32x16: their offsets, if the type has any

The sums are those of `kernels.matvec`, bit for bit: ZERO is taken off in integers.
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
    OFFSETS,
    PLANES,
)
from quant.simd import (
    dot_u8x64,
    fma,
    fma_16,
    high_half,
    i64,
    load_f32,
    load_i8x64,
    low_half,
    prefetch,
    put_f32,
    quarter_0,
    quarter_1,
    quarter_2,
    quarter_3,
    splat_u8x64,
    sum_f32,
    to_f32x16,
    twice_each,
    zero_f32,
    zero_f32x16,
)

ZERO = 0  # what the stored weights exceed the real ones by


def weights_64(p: int, k: int) -> Any:
    """Open: the type's own."""


def scales_16(p: int) -> Any:
    """Open: the type's own."""


def offsets_16(p: int) -> Any:
    """Open: the type's own."""


def step_64(p: int, r: int, k: int, y: int, n: int) -> tuple[Any, Any]:
    """Dots of the rows at p and r with columns 64 k .. of the block; open because ZERO is."""
    w = weights_64(p, k)
    v = weights_64(r, k)
    x = load_i8x64(y + 64 * k)
    a = dot_u8x64(w, x)
    b = dot_u8x64(v, x)
    if ZERO:
        z = dot_u8x64(splat_u8x64(ZERO), x)
        a = a - z
        b = b - z
    if PLANES == 2:
        x = load_i8x64(y + n + 64 * k)
        a = (a << 8) + dot_u8x64(w, x)
        b = (b << 8) + dot_u8x64(v, x)
        if ZERO:
            z = dot_u8x64(splat_u8x64(ZERO), x)
            a = a - z
            b = b - z
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
            sums = ys + n // 8
            a = zero_f32x16()
            b = zero_f32x16()
            a_low = zero_f32()
            b_low = zero_f32()
            for _ in range(n // 256):
                # the same place of the next two rows: what lies 2 KB on is being read already
                for line in range(0, BYTES, 64):
                    prefetch(p + 2 * row_bytes + line)
                    prefetch(p + 3 * row_bytes + line)
                scale = twice_each(load_f32(ys))
                a_scale = scales_16(p) * scale
                b_scale = scales_16(p + step) * scale
                c, d = step_64(p, p + step, 0, y, n)
                a = fma_16(to_f32x16(c), quarter_0(a_scale), a)
                b = fma_16(to_f32x16(d), quarter_0(b_scale), b)
                c, d = step_64(p, p + step, 1, y, n)
                a = fma_16(to_f32x16(c), quarter_1(a_scale), a)
                b = fma_16(to_f32x16(d), quarter_1(b_scale), b)
                c, d = step_64(p, p + step, 2, y, n)
                a = fma_16(to_f32x16(c), quarter_2(a_scale), a)
                b = fma_16(to_f32x16(d), quarter_2(b_scale), b)
                c, d = step_64(p, p + step, 3, y, n)
                a = fma_16(to_f32x16(c), quarter_3(a_scale), a)
                b = fma_16(to_f32x16(d), quarter_3(b_scale), b)
                if OFFSETS:
                    o = offsets_16(p)
                    a_low = fma(low_half(o), load_f32(sums), a_low)
                    a_low = fma(high_half(o), load_f32(sums + 32), a_low)
                    o = offsets_16(p + step)
                    b_low = fma(low_half(o), load_f32(sums), b_low)
                    b_low = fma(high_half(o), load_f32(sums + 32), b_low)
                    sums += 64
                y += 256
                ys += 32
                p += BYTES
            put_f32(out + 4 * top + 4 * (step > 0), sum_f32(low_half(b) + high_half(b) + b_low))
            put_f32(out + 4 * top, sum_f32(low_half(a) + high_half(a) + a_low))
