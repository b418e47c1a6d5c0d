"""Matrix-vector product of blocks of 256, a block at a time: x86 whose dot products have 16 bits.

A type gives

    weights_32(p, z, k)    u8x32: weights 32 k .. 32 k + 31 of the block at p plus ZERO; k is a
                           constant. Some may stand shifted left in their bytes, see `shifts`
    shifts(d)              i32x8 of sums -> what they are with the weights at the bottom
    scales(p, z)           f32x8, the scales of its groups of 32; of 16: two f32x8, by turns
                           (simd_pairs.py)
    offsets(p, z)          their offsets, if the type has any; of groups of 16 in order
    prepare(p, z)          what a type wants to know of the block beforehand, NOTES bytes at z
    turned(p, z, k, y)     activations y with the signs of group k, if weights_32 are magnitudes
    order(x, c, n, u)      what it wants to know of the 256 activations from column c on, ORDERED
                           bytes at u; made once for all rows
    finish(z, u, d, at)    i32x8 of sums -> what they are of the real weights; at: the sums of the
                           activations. Of groups of 16: finish_both(z, u, d, e), both halves

A row is prepared as a whole before it is multiplied: bytes that have just been stored as a vector
are slow to load one by one.
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
from quant.simd.pairs import (
    by_turns_i32,
    in_order,
    load_f32x4_by_turns,
    pair_products,
)
from quant.simd.vectors import (
    alloca,
    fma,
    i64,
    join_f32,
    load_f32,
    load_i8,
    load_i32,
    prefetch_far,
    put_f32,
    store_i32,
    to_f32,
    tree_sum_8,
    tree_sum_16,
    zero_f32,
)

AHEAD = 4096  # bytes
COLS = 8192  # that are prepared together
NOTES: int = OPEN  # bytes that `prepare` writes for a block, at most 192
ORDERED: int = OPEN  # and `order`, at most 128
ZERO: int = OPEN
CROWDED: bool = OPEN  # groups of 16 with offsets


def weights_32(p: int, z: int, k: int) -> Any:
    """Open: the type's own."""


def scales(p: int, z: int) -> Any:
    """Open: the type's own."""


def offsets(p: int, z: int) -> Any:
    """Open: the type's own."""


def prepare(p: int, z: int) -> None:
    """Open: the type's own."""


@inline
def turned(p: int, z: int, k: int, y: Any) -> Any:
    """Open: the type's own."""
    return y


def add_lanes(x: Any, y: Any) -> Any:
    """Open: see simd_pairs.reductions."""


def add_pairs(x: Any, y: Any) -> Any:
    """Open: see simd_pairs.reductions."""


def halves(x: Any) -> Any:
    """Open: see simd_pairs.reductions."""


def groups(x: Any, y: Any) -> Any:
    """Open: see simd_pairs.reductions."""


@inline
def shifts(d: Any) -> Any:
    """Open: i32x8 of sums, of weights that stand shifted -> what they are at the bottom."""
    return d


def finish(z: int, u: int, d: Any, at: int) -> Any:
    """Open: takes ZERO off."""
    return d - load_i32(at) * ZERO if ZERO else d


def order(x: int, c: int, n: int, u: int) -> None:
    """Open: sums of groups of 16 by turns, ZERO times."""
    isum = x + PLANES * n + n // 8 * 5 + c // 4
    store_i32(u, by_turns_i32(load_i32(isum)) * ZERO)
    store_i32(u + 32, by_turns_i32(load_i32(isum + 32)) * ZERO)


def finish_both(z: int, u: int, d: Any, e: Any) -> tuple[Any, Any]:
    """Open: takes ZERO off."""
    if ZERO:
        d = d - load_i32(u)
        e = e - load_i32(u + 32)
    return d, e


def products(p: int, z: int, k: int, y: int, n: int) -> Any:
    """Pairs of group k, of the first plane and of the second (or the first again); open."""
    w = weights_32(p, z, k)
    first = pair_products(w, turned(p, z, k, load_i8(y + 32 * k)))
    second = first
    if PLANES == 2:
        second = pair_products(w, turned(p, z, k, load_i8(y + n + 32 * k)))
    return first, second


def four_groups(p: int, z: int, k: int, y: int, n: int) -> Any:
    """Groups k .. k + 3: a lane of each in either half, by planes; open."""
    a, a2 = products(p, z, k, y, n)
    b, b2 = products(p, z, k + 1, y, n)
    ab, ab2 = add_lanes(a, b), add_lanes(a2, b2)
    c, c2 = products(p, z, k + 2, y, n)
    d, d2 = products(p, z, k + 3, y, n)
    cd, cd2 = add_lanes(c, d), add_lanes(c2, d2)
    return add_pairs(ab, cd), add_pairs(ab2, cd2)


def add_block(
    p: int, z: int, o: int, base: int, c: int, n: int, d: Any, d2: Any, e: Any, e2: Any, sums: Any
) -> Any:
    """The sums a, b, low, low_b + a block's; c: its first column, base: the scales of the record.

    d, e: `four_groups` of its first and second four. Open.
    """
    a, b, low, low_b = sums
    ys = base + c // 8
    if GROUP == 16:
        u = halves(d)
        v = halves(e)
        if PLANES == 2:
            u = (u << 8) + halves(d2)
            v = (v << 8) + halves(e2)
        u, v = finish_both(z, o, shifts(u), shifts(v))
        s, s2 = scales(p, z)
        a = fma(to_f32(u), s * load_f32x4_by_turns(ys), a)
        b = fma(to_f32(v), s2 * load_f32x4_by_turns(ys + 16), b)
        if OFFSETS:
            sum_ = base + n // 4 + c // 4
            m, m2 = offsets(p, z)
            low = fma(m, load_f32(sum_), low)
            low_b = fma(m2, load_f32(sum_ + 32), low_b)
    else:
        u = groups(d, e)
        if PLANES == 2:
            u = (u << 8) + groups(d2, e2)
        u = finish(z, o, shifts(u), ys + n // 2)
        a = fma(to_f32(u), scales(p, z) * load_f32(ys), a)
        if OFFSETS:
            low = fma(offsets(p, z), load_f32(ys + n // 8), low)
    return a, b, low, low_b


def matvec_pairs(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    notes = alloca(6144)  # COLS / 256 * 192
    ordered = alloca(4096)  # COLS / 256 * 128
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        base = x + PLANES * n
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1):
            p = w + r * row_bytes
            sums = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                if ORDERED and (r == r0 or n > COLS):
                    for i in range(cols // 256):
                        order(x, c0 + 256 * i, n, ordered + i * ORDERED)
                if NOTES:
                    for i in range(cols // 256):
                        for line in range(0, BYTES, 64):
                            prefetch_far(p + i * BYTES + AHEAD + line)
                        prepare(p + i * BYTES, notes + i * NOTES)
                z = notes
                o = ordered
                # a block's sums are finished beside the next one's products: less to wait for,
                # but four sums of the row and these are too many for the registers
                d, d2 = four_groups(p, z, 0, x + c0, n)
                e, e2 = four_groups(p, z, 4, x + c0, n)
                for c in range(c0 + 256, c0 + cols, 256):
                    if not NOTES:
                        for line in range(0, BYTES, 64):
                            prefetch_far(p + AHEAD + line)
                    if CROWDED:
                        sums = add_block(p, z, o, base, c - 256, n, d, d2, e, e2, sums)
                    f, f2 = four_groups(p + BYTES, z + NOTES, 0, x + c, n)
                    g, g2 = four_groups(p + BYTES, z + NOTES, 4, x + c, n)
                    if not CROWDED:
                        sums = add_block(p, z, o, base, c - 256, n, d, d2, e, e2, sums)
                    d, d2, e, e2 = f, f2, g, g2
                    p += BYTES
                    z += NOTES
                    o += ORDERED
                sums = add_block(p, z, o, base, c0 + cols - 256, n, d, d2, e, e2, sums)
                p += BYTES
            a, b, low, low_b = sums
            if GROUP == 16:
                total = join_f32(in_order(a), in_order(b)) + join_f32(low, low_b)
                put_f32(out + 4 * r, tree_sum_16(total))
            else:
                put_f32(out + 4 * r, tree_sum_8(a + low))


# what has open names itself, in the order in which it is bound
OPEN_HELPERS: dict[str, Callable[..., Any]] = {
    "finish": finish,
    "order": order,
    "finish_both": finish_both,
    "products": products,
    "four_groups": four_groups,
    "add_block": add_block,
}
