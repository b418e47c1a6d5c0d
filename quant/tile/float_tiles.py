"""Register tiles of float32: what products of floats and attention are made of.

    dots    4 rows a . PART rows b -> 4 x PART sums (PART: 4 with 16 lanes, 2 with 8)
    mix     4 rows z += 4 x n coefficients . n rows v, a few vectors of columns at a time

Every sum of `dots` is formed in one vector, column c in lane c mod LANES, and then over the lanes
as simd_float.py says; `dot_rows_8` does eight rows . one vector in the same order. Row lengths are
multiples of 16 floats.
"""

from __future__ import annotations

from typing import Any

from quant.compiler.jit import inline
from quant.simd.floats import (
    LANES,
    PART,
    V_BYTES,
    WIDE,
    fma_v,
    fold_2,
    fold_4,
    fold_8,
    fold_16,
    load_v,
    pairs_of_quads,
    splat_v,
    store_v,
    zero_v,
)
from quant.simd.vectors import f32

DOTS_BYTES = 4 * PART * V_BYTES  # accumulators of one call of `dots`
MIX_COLS = LANES * (4 if WIDE else 2)  # columns that `mix` takes at a time


@inline
def _dots_4x4(
    a0: int, a1: int, a2: int, a3: int, b: int, db: int, n: int, at: int, begin: bool, end: bool
) -> Any:
    """See `dots`; 16 accumulators."""
    if begin:
        c00 = zero_v(); c01 = zero_v(); c02 = zero_v(); c03 = zero_v()  # fmt: skip
        c10 = zero_v(); c11 = zero_v(); c12 = zero_v(); c13 = zero_v()  # fmt: skip
        c20 = zero_v(); c21 = zero_v(); c22 = zero_v(); c23 = zero_v()  # fmt: skip
        c30 = zero_v(); c31 = zero_v(); c32 = zero_v(); c33 = zero_v()  # fmt: skip
    else:
        c00 = load_v(at); c01 = load_v(at + 64); c02 = load_v(at + 128)  # fmt: skip
        c03 = load_v(at + 192); c10 = load_v(at + 256); c11 = load_v(at + 320)  # fmt: skip
        c12 = load_v(at + 384); c13 = load_v(at + 448); c20 = load_v(at + 512)  # fmt: skip
        c21 = load_v(at + 576); c22 = load_v(at + 640); c23 = load_v(at + 704)  # fmt: skip
        c30 = load_v(at + 768); c31 = load_v(at + 832); c32 = load_v(at + 896)  # fmt: skip
        c33 = load_v(at + 960)
    for i in range(0, n, V_BYTES):
        x0 = load_v(a0 + i); x1 = load_v(a1 + i)  # fmt: skip
        x2 = load_v(a2 + i); x3 = load_v(a3 + i)  # fmt: skip
        v = load_v(b + i)
        c00 = fma_v(v, x0, c00); c10 = fma_v(v, x1, c10)  # fmt: skip
        c20 = fma_v(v, x2, c20); c30 = fma_v(v, x3, c30)  # fmt: skip
        v = load_v(b + db + i)
        c01 = fma_v(v, x0, c01); c11 = fma_v(v, x1, c11)  # fmt: skip
        c21 = fma_v(v, x2, c21); c31 = fma_v(v, x3, c31)  # fmt: skip
        v = load_v(b + 2 * db + i)
        c02 = fma_v(v, x0, c02); c12 = fma_v(v, x1, c12)  # fmt: skip
        c22 = fma_v(v, x2, c22); c32 = fma_v(v, x3, c32)  # fmt: skip
        v = load_v(b + 3 * db + i)
        c03 = fma_v(v, x0, c03); c13 = fma_v(v, x1, c13)  # fmt: skip
        c23 = fma_v(v, x2, c23); c33 = fma_v(v, x3, c33)  # fmt: skip
    if not end:
        store_v(at, c00); store_v(at + 64, c01); store_v(at + 128, c02)  # fmt: skip
        store_v(at + 192, c03); store_v(at + 256, c10); store_v(at + 320, c11)  # fmt: skip
        store_v(at + 384, c12); store_v(at + 448, c13); store_v(at + 512, c20)  # fmt: skip
        store_v(at + 576, c21); store_v(at + 640, c22); store_v(at + 704, c23)  # fmt: skip
        store_v(at + 768, c30); store_v(at + 832, c31); store_v(at + 896, c32)  # fmt: skip
        store_v(at + 960, c33)
    # quads of lanes = rows a 0 .. 3, in each of these four vectors, one per row b
    b0 = fold_8(fold_16(c00, c10), fold_16(c20, c30))
    b1 = fold_8(fold_16(c01, c11), fold_16(c21, c31))
    b2 = fold_8(fold_16(c02, c12), fold_16(c22, c32))
    b3 = fold_8(fold_16(c03, c13), fold_16(c23, c33))
    return fold_2(fold_4(b0, b1), fold_4(b2, b3))


@inline
def _dots_4x2(
    a0: int, a1: int, a2: int, a3: int, b: int, db: int, n: int, at: int, begin: bool, end: bool
) -> Any:
    """See `dots`; 8 accumulators of 8 lanes."""
    if begin:
        c00 = zero_v(); c01 = zero_v(); c10 = zero_v(); c11 = zero_v()  # fmt: skip
        c20 = zero_v(); c21 = zero_v(); c30 = zero_v(); c31 = zero_v()  # fmt: skip
    else:
        c00 = load_v(at); c01 = load_v(at + 32); c10 = load_v(at + 64)  # fmt: skip
        c11 = load_v(at + 96); c20 = load_v(at + 128); c21 = load_v(at + 160)  # fmt: skip
        c30 = load_v(at + 192); c31 = load_v(at + 224)  # fmt: skip
    for i in range(0, n, V_BYTES):
        v = load_v(b + i); w = load_v(b + db + i)  # fmt: skip
        x = load_v(a0 + i)
        c00 = fma_v(v, x, c00); c01 = fma_v(w, x, c01)  # fmt: skip
        x = load_v(a1 + i)
        c10 = fma_v(v, x, c10); c11 = fma_v(w, x, c11)  # fmt: skip
        x = load_v(a2 + i)
        c20 = fma_v(v, x, c20); c21 = fma_v(w, x, c21)  # fmt: skip
        x = load_v(a3 + i)
        c30 = fma_v(v, x, c30); c31 = fma_v(w, x, c31)  # fmt: skip
    if not end:
        store_v(at, c00); store_v(at + 32, c01); store_v(at + 64, c10)  # fmt: skip
        store_v(at + 96, c11); store_v(at + 128, c20); store_v(at + 160, c21)  # fmt: skip
        store_v(at + 192, c30); store_v(at + 224, c31)  # fmt: skip
    # quads of lanes = rows a 0 and 2, or 1 and 3
    even = fold_4(fold_8(c00, c20), fold_8(c01, c21))
    odd = fold_4(fold_8(c10, c30), fold_8(c11, c31))
    return fold_2(even, odd)


# dots(a0, a1, a2, a3, b, db, n, at, begin, end): rows a at four addresses . PART rows b, db bytes
# apart, over n bytes. -> V, whose k-th quarter is a_k . (rows b). A row may come in pieces: at
# keeps the accumulators (DOTS_BYTES) from one to the next; begin, end: the first, the last piece.
dots = _dots_4x4 if WIDE else _dots_4x2


@inline
def _fold_rows_8_wide(
    r0: Any, r1: Any, r2: Any, r3: Any, r4: Any, r5: Any, r6: Any, r7: Any
) -> Any:
    """Eight vectors -> their sums over lanes, in lanes 0-7."""
    even = fold_8(fold_16(r0, r2), fold_16(r4, r6))
    odd = fold_8(fold_16(r1, r3), fold_16(r5, r7))
    pairs = fold_4(even, odd)
    return pairs_of_quads(fold_2(pairs, pairs))


@inline
def _fold_rows_8_narrow(
    r0: Any, r1: Any, r2: Any, r3: Any, r4: Any, r5: Any, r6: Any, r7: Any
) -> Any:
    """As above, with 8 lanes."""
    low = fold_4(fold_8(r0, r4), fold_8(r1, r5))
    return fold_2(low, fold_4(fold_8(r2, r6), fold_8(r3, r7)))


fold_rows_8 = _fold_rows_8_wide if WIDE else _fold_rows_8_narrow


@inline
def _mix_4(z: int, dz: int, p: int, dp: int, v: int, dv: int, n: int) -> None:
    """One vector of columns of four rows z."""
    a = load_v(z); b = load_v(z + dz); c = load_v(z + 2 * dz); d = load_v(z + 3 * dz)  # fmt: skip
    for s in range(n):
        x = load_v(v + s * dv)
        a = fma_v(x, splat_v(f32(p + 4 * s)), a)
        b = fma_v(x, splat_v(f32(p + dp + 4 * s)), b)
        c = fma_v(x, splat_v(f32(p + 2 * dp + 4 * s)), c)
        d = fma_v(x, splat_v(f32(p + 3 * dp + 4 * s)), d)
    store_v(z, a); store_v(z + dz, b); store_v(z + 2 * dz, c); store_v(z + 3 * dz, d)  # fmt: skip


@inline
def _mix_4x4(z: int, dz: int, p: int, dp: int, v: int, dv: int, n: int) -> None:
    """See `mix`; four vectors of columns of four rows z."""
    y = z + dz; x = z + 2 * dz; w = z + 3 * dz  # fmt: skip
    q = p + dp; r = p + 2 * dp; t = p + 3 * dp  # fmt: skip
    c00 = load_v(z); c01 = load_v(z + 64); c02 = load_v(z + 128); c03 = load_v(z + 192)  # fmt: skip
    c10 = load_v(y); c11 = load_v(y + 64); c12 = load_v(y + 128); c13 = load_v(y + 192)  # fmt: skip
    c20 = load_v(x); c21 = load_v(x + 64); c22 = load_v(x + 128); c23 = load_v(x + 192)  # fmt: skip
    c30 = load_v(w); c31 = load_v(w + 64); c32 = load_v(w + 128); c33 = load_v(w + 192)  # fmt: skip
    for s in range(n):
        v0 = load_v(v); v1 = load_v(v + 64); v2 = load_v(v + 128); v3 = load_v(v + 192)  # fmt: skip
        e = splat_v(f32(p + 4 * s))
        c00 = fma_v(v0, e, c00); c01 = fma_v(v1, e, c01)  # fmt: skip
        c02 = fma_v(v2, e, c02); c03 = fma_v(v3, e, c03)  # fmt: skip
        e = splat_v(f32(q + 4 * s))
        c10 = fma_v(v0, e, c10); c11 = fma_v(v1, e, c11)  # fmt: skip
        c12 = fma_v(v2, e, c12); c13 = fma_v(v3, e, c13)  # fmt: skip
        e = splat_v(f32(r + 4 * s))
        c20 = fma_v(v0, e, c20); c21 = fma_v(v1, e, c21)  # fmt: skip
        c22 = fma_v(v2, e, c22); c23 = fma_v(v3, e, c23)  # fmt: skip
        e = splat_v(f32(t + 4 * s))
        c30 = fma_v(v0, e, c30); c31 = fma_v(v1, e, c31)  # fmt: skip
        c32 = fma_v(v2, e, c32); c33 = fma_v(v3, e, c33)  # fmt: skip
        v += dv
    store_v(z, c00); store_v(z + 64, c01); store_v(z + 128, c02); store_v(z + 192, c03)  # fmt: skip
    store_v(y, c10); store_v(y + 64, c11); store_v(y + 128, c12); store_v(y + 192, c13)  # fmt: skip
    store_v(x, c20); store_v(x + 64, c21); store_v(x + 128, c22); store_v(x + 192, c23)  # fmt: skip
    store_v(w, c30); store_v(w + 64, c31); store_v(w + 128, c32); store_v(w + 192, c33)  # fmt: skip


@inline
def _mix_4x2(z: int, dz: int, p: int, dp: int, v: int, dv: int, n: int) -> None:
    """See `mix`; two vectors of columns of four rows z."""
    y = z + dz; x = z + 2 * dz; w = z + 3 * dz  # fmt: skip
    q = p + dp; r = p + 2 * dp; t = p + 3 * dp  # fmt: skip
    c00 = load_v(z); c01 = load_v(z + 32); c10 = load_v(y); c11 = load_v(y + 32)  # fmt: skip
    c20 = load_v(x); c21 = load_v(x + 32); c30 = load_v(w); c31 = load_v(w + 32)  # fmt: skip
    for s in range(n):
        v0 = load_v(v); v1 = load_v(v + 32)  # fmt: skip
        e = splat_v(f32(p + 4 * s))
        c00 = fma_v(v0, e, c00); c01 = fma_v(v1, e, c01)  # fmt: skip
        e = splat_v(f32(q + 4 * s))
        c10 = fma_v(v0, e, c10); c11 = fma_v(v1, e, c11)  # fmt: skip
        e = splat_v(f32(r + 4 * s))
        c20 = fma_v(v0, e, c20); c21 = fma_v(v1, e, c21)  # fmt: skip
        e = splat_v(f32(t + 4 * s))
        c30 = fma_v(v0, e, c30); c31 = fma_v(v1, e, c31)  # fmt: skip
        v += dv
    store_v(z, c00); store_v(z + 32, c01); store_v(y, c10); store_v(y + 32, c11)  # fmt: skip
    store_v(x, c20); store_v(x + 32, c21); store_v(w, c30); store_v(w + 32, c31)  # fmt: skip


# mix(z, dz, p, dp, v, dv, n): MIX_COLS columns of z[k] += sum over s < n of p[k, s] * v[s], for
# four rows k; dz, dp, dv: bytes from row to row. The sums go over s in order.
mix = _mix_4x4 if WIDE else _mix_4x2
mix_one_vector = _mix_4
