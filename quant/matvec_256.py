"""Matrix-vector product for blocks of 256 weights whose decode writes scales by whole vectors.

The sums of `kernels.matvec`, bit for bit, in fewer instructions: scales are multiplied eight at a
time, and two rows go together, so that one's chain of additions hides behind the other's. Not for
types with offsets, nor for types that write scales one by one: a wide load right after narrow
stores waits for all of them.
"""

from __future__ import annotations

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
    PLANES,
    decode,
    product,
)
from quant.lookups import first_pair, next_pair
from quant.simd import (
    alloca,
    fma,
    i64,
    load_f32,
    load_f32x4_twice,
    prefetch,
    put_f32,
    sum_f32,
    to_f32,
    zero_f32,
)


def matvec_256(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as Q8 or Q16 records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    q = alloca(512)
    s = alloca(128)
    for t in range(i64(job + _N_TOKENS)):
        x = i64(job + _X) + t * i64(job + _X_STRIDE)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1, 2):
            step = row_bytes if r + 1 < r1 else 0  # the last row of an odd number: twice
            p = w + r * row_bytes
            y = x
            ys = x + PLANES * n
            a = zero_f32()
            b = zero_f32()
            a_other = zero_f32()
            b_other = zero_f32()
            for _ in range(n // 256):
                for line in range(0, BYTES, 64):
                    prefetch(p + 2 * row_bytes + line)
                    prefetch(p + 3 * row_bytes + line)
                decode(p, q, s, 0)
                decode(p + step, q + 256, s + 64, 0)
                for h in range(2):
                    scale_y = load_f32x4_twice(ys + 16 * h)
                    scale_a = load_f32(s + 32 * h) * scale_y
                    scale_b = load_f32(s + 64 + 32 * h) * scale_y
                    for g in range(4):
                        c = 128 * h + 32 * g
                        d = to_f32(product(q + c, y + c, n))
                        a, a_other = a_other, fma(d, first_pair(scale_a), a)
                        d = to_f32(product(q + 256 + c, y + c, n))
                        b, b_other = b_other, fma(d, first_pair(scale_b), b)
                        scale_a = next_pair(scale_a)
                        scale_b = next_pair(scale_b)
                y += 256
                ys += 32
                p += BYTES
            put_f32(out + 4 * r + 4 * (step > 0), sum_f32(b + b_other))
            put_f32(out + 4 * r, sum_f32(a + a_other))
