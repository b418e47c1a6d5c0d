"""Matrix-vector product straight from the block, 64 columns at a time, two blocks together.

For blocks of 256 small unsigned weights. A type gives, instead of going through memory:

    weights_64(p, k)    u8x64: weights 64 k .. 64 k + 63 of the block at p plus ZERO, at most 64
    scales_16(p)        f32x16: the scales of its 16 groups of 16
    offsets_16(p)       f32x16: their offsets, if the type has any

With VNNI a type may give two hooks more, and save shifting every vector:

    in_place(p, k)      weights_64, but a field of bits is left where it stands in its byte
    shifts(d)           i32x16 of sums -> what they are with the fields at the bottom

ZERO is taken off in integers. Two rows at a time would share the loads of activations, but read two
streams: from memory that took a third longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.compiler.jit import OPEN, inline
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
    token_at,
)
from quant.simd.vectors import (
    add_dot_u8x64,
    dot_u8x64,
    evens,
    fma,
    fma_16,
    high_half,
    i64,
    join_f32,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i32x16,
    low_half,
    prefetch_far,
    put_f32,
    sums_16,
    sums_32,
    to_f32x16,
    tree_sum_8,
    tree_sum_16,
    twice_each,
    zero_f32,
    zero_f32x16,
)

# bytes: one row after the other is one stream, which processors read ahead themselves; asking for
# what lies 2 to 4 KB ahead, as they do, takes up to twice as long as asking for nothing; 8 KB is
# faster than 6 where each core has a way to memory of its own, slower where two share one (Zen 4)
AHEAD = 6144
ZERO: int = OPEN  # what the stored weights exceed the real ones by


def weights_64(p: int, k: int) -> Any:
    """Open: the type's own."""


def scales_16(p: int) -> Any:
    """Open: the type's own."""


def offsets_16(p: int) -> Any:
    """Open: the type's own."""


@inline
def undo_shifts(d: Any) -> Any:
    """Open: the type's `shifts`."""
    return d


def dots_64(p: int, k: int, y: int, n: int) -> Any:
    """Dots of columns 64 k .. of the block at p; y: the block's activations. Open: PLANES is."""
    w = weights_64(p, k)
    d = dot_u8x64(w, load_i8x64(y + 64 * k))
    if PLANES == 2:
        d = add_dot_u8x64(d << 8, w, load_i8x64(y + n + 64 * k))
    return d


def add_16(d: Any, p: int, scale: Any, isums: int, sums: int, b: Any, low: Any) -> Any:
    """A block's 16 sums d -> (b, low) with them; scale: of the activations. Open, as what follows.

    isums, sums: addresses of the activations' sums by 16 columns.
    """
    if ZERO:
        d = d - load_i32x16(isums) * ZERO
    b = fma_16(to_f32x16(d), scales_16(p) * scale, b)
    if OFFSETS:
        low = fma_16(offsets_16(p), load_f32x16(sums), low)
    return b, low


def add_two_32(d: Any, p: int, q: int, two: bool, ys: int, n: int, a: Any, low: Any) -> Any:
    """The 8 sums each of the blocks at p and q -> (a, low) with them; two: with those of q."""
    if ZERO:
        d = d - load_i32x16(ys + n // 2) * ZERO
    scale = join_f32(evens(scales_16(p)), evens(scales_16(q))) * load_f32x16(ys)
    v = to_f32x16(d)
    a = fma(low_half(v), low_half(scale), a)
    if two:
        a = fma(high_half(v), high_half(scale), a)
    if OFFSETS:
        low = fma(evens(offsets_16(p)), load_f32(ys + n // 8), low)
        if two:
            low = fma(evens(offsets_16(q)), load_f32(ys + n // 8 + 32), low)
    return a, low


def matvec_64(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records; two blocks at a time."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1):
            p = w + r * row_bytes
            y = x
            ys = x + PLANES * n
            a = zero_f32()  # GROUP 32
            low = zero_f32()
            b = zero_f32x16()  # GROUP 16
            low_b = zero_f32x16()
            for c in range(0, n, 512):
                two = c + 256 < n  # else the last block again, for nothing
                q = p + BYTES if two else p
                z = y + 256 if two else y
                for line in range(0, 2 * BYTES, 64):
                    prefetch_far(p + AHEAD + line)
                d0 = dots_64(p, 0, y, n)
                d1 = dots_64(p, 1, y, n)
                d2 = dots_64(p, 2, y, n)
                d3 = dots_64(p, 3, y, n)
                e0 = dots_64(q, 0, z, n)
                e1 = dots_64(q, 1, z, n)
                e2 = dots_64(q, 2, z, n)
                e3 = dots_64(q, 3, z, n)
                if GROUP == 16:
                    d = undo_shifts(sums_16(d0, d1, d2, d3))
                    e = undo_shifts(sums_16(e0, e1, e2, e3))
                    isum = ys + n // 8 * 5 + c // 8
                    sums = ys + n // 4 + c // 8
                    b, low_b = add_16(d, p, twice_each(load_f32(ys)), isum, sums, b, low_b)
                    if two:
                        scale = twice_each(load_f32(ys + 32))
                        b, low_b = add_16(e, q, scale, isum + 64, sums + 64, b, low_b)
                else:
                    d = undo_shifts(sums_32(d0, d1, d2, d3, e0, e1, e2, e3))
                    a, low = add_two_32(d, p, q, two, ys, n, a, low)
                y += 512
                ys += 64
                p += 2 * BYTES
            put_f32(out + 4 * r, tree_sum_16(b + low_b) if GROUP == 16 else tree_sum_8(a + low))


# what has open names itself, in the order in which it is bound
OPEN_HELPERS: dict[str, Callable[..., Any]] = {
    "dots_64": dots_64,
    "add_16": add_16,
    "add_two_32": add_two_32,
}
