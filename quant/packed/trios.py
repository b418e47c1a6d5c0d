"""Three rows in five bits: how the packed ternary layouts keep their trits.

The trits t0, t1, t2 (-1, 0, 1) of three rows at one column make c = 9 t0 + 3 t1 + t2. Kept are
u = |c| (0 .. 13) in a nibble and the sign of c in a bit. A strip is 48 rows x 32 columns:

    | 4 x 64 bytes of nibbles | 64 bytes of signs |        320 bytes

    byte 4 r + c belongs to rows r, 16 + r, 32 + r (t0, t1, t2);  r < 16, c < 4
    nibbles, vector k: low ones column 8 k + c, high ones column 8 k + 4 + c
    signs: bit f set where c of column 4 f + c is negative

For a product the sign goes to the activation y, once for all three rows. What remains are unsigned
numbers, two of them found in tables of 16 bytes:

    C = sum of u * y'    E = sum of round(u / 3) * y'    T0 = sum of round(u / 9) * y'
    round(u / 3) = |3 t0 + t1|, round(u / 9) = |t0|, so   T1 = E - 3 T0,   T2 = C - 3 E

These are whole numbers below 2^24: exact in float32 as in int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler.jit import inline
from quant.simd.lookups import table
from quant.simd.packed import (
    BLENDS,
    LANES,
    add_products,
    as_bytes,
    as_signed,
    fma,
    ints_as_bytes,
    load_bytes,
    look_up,
    minus_or_one,
    minus_or_zero,
    minus_threes,
    negate_where,
    signed_columns,
    store_bytes,
    three_in_turn,
    to_floats,
    total,
    zero_bytes,
    zero_sums,
)
from quant.simd.vectors import alloca
from quant.tile.panels import storage
from quant.tile.tile import transpose_floats
from quant.types import iq1_s

STRIP = 320  # bytes
ROWS = 48

_U = np.arange(16)
_DIGITS = [(_U + 4) // 9, (_U + 1) // 3 - 3 * ((_U + 4) // 9), _U - 3 * ((_U + 1) // 3)]
THIRDS = table("trio_thirds", lambda: ((_U + 1) // 3).astype(np.int8))
NINTHS = table("trio_ninths", lambda: ((_U + 4) // 9).astype(np.int8))
# the digits of u, for each of the three rows: as they are, and as tiles want 8 t + shift of IQ1
DIGITS = table("trio_digits", lambda: np.array(_DIGITS, np.int8))
SHIFTED = storage(iq1_s.QUANT.weights)
EIGHTS = table("trio_eights", lambda: 8 // SHIFTED.step * np.array(_DIGITS, np.int8))
# what is added to the latter besides the shift; where halves are stored, it has a shift of 1
SHIFT_ZERO = (SHIFTED.zero + SHIFTED.step - 1) // SHIFTED.step


def trits(strips: np.ndarray) -> np.ndarray:
    """(n, 320) uint8 -> (48, 32 n) int8 in -1 .. 1: the readable definition of strips."""
    columns = strips.reshape(-1, 5, 16, 4)  # strip, vector, r, c
    nibbles = np.stack([columns[:, :4] & 15, columns[:, :4] >> 4], axis=2)
    u = nibbles.reshape(-1, 8, 16, 4)  # f, r, c
    negative = columns[:, 4:] >> np.arange(8, dtype=np.uint8)[:, None, None] & 1
    by_row = [np.array(d)[u] * (1 - 2 * negative.astype(int)) for d in _DIGITS]
    return np.stack(by_row).transpose(0, 3, 1, 2, 4).reshape(48, -1).astype(np.int8)


@inline
def negate_columns(y: int, minus: int) -> None:
    """The 256 activations at y, negative, at `minus`, where `signed_columns` reads them."""
    if BLENDS:
        for i in range(0, 256, 4 * LANES):
            store_bytes(minus + i, zero_bytes() - load_bytes(y + i))


@inline
def add_pair(
    p: int, signs: Any, k: int, y: int, minus: int, c: Any, e: Any, t: Any
) -> tuple[Any, Any, Any]:
    """C, E and T0 of the 8 columns 8 k .. of a strip; k is a constant."""
    both = load_bytes(p + 64 * k)
    u = both & 15
    x = signed_columns(y + 8 * k, minus + 8 * k, signs, 2 * k)
    c = add_products(c, u, x)
    e = add_products(e, look_up(THIRDS(), u), x)
    t = add_products(t, look_up(NINTHS(), u), x)
    u = both >> 4
    x = signed_columns(y + 8 * k + 4, minus + 8 * k + 4, signs, 2 * k + 1)
    c = add_products(c, u, x)
    e = add_products(e, look_up(THIRDS(), u), x)
    t = add_products(t, look_up(NINTHS(), u), x)
    return three_in_turn(c, e, t)


@inline
def row_dots(c: Any, e: Any, t: Any) -> tuple[Any, Any, Any]:
    """Sums C, E, T0 -> T0, T1, T2 as floats."""
    dot0 = to_floats(total(t))
    third = to_floats(total(e))
    return dot0, fma(dot0, minus_threes(), third), fma(third, minus_threes(), to_floats(total(c)))


@inline
def strip_dots(p: int, y: int, minus: int) -> tuple[Any, Any, Any]:
    """Dots of the 32 activations at y with rows r, 16 + r and 32 + r of the strip at p."""
    signs = load_bytes(p + 256)
    c, e, t = add_pair(p, signs, 0, y, minus, zero_sums(), zero_sums(), zero_sums())
    c, e, t = add_pair(p, signs, 1, y, minus, c, e, t)
    c, e, t = add_pair(p, signs, 2, y, minus, c, e, t)
    c, e, t = add_pair(p, signs, 3, y, minus, c, e, t)
    return row_dots(c, e, t)


@inline
def half_strip_dots(p: int, signs: Any, k: int, y: int, minus: int) -> tuple[Any, Any, Any]:
    """The same for the 16 columns 8 k .. only; k is 0 or 2, y the activations of the strip."""
    c, e, t = add_pair(p, signs, k, y, minus, zero_sums(), zero_sums(), zero_sums())
    c, e, t = add_pair(p, signs, k + 1, y, minus, c, e, t)
    return row_dots(c, e, t)


@inline
def pack_trios(trits: int, out: int) -> None:
    """(48, 256) int8 in -1 .. 1 at `trits` -> 8 strips at out."""
    numbers = alloca(4096)  # c, 16 x 256
    columns = alloca(4096)  # the same as 64 vectors of 4 columns
    for i in range(0, 4096, 4 * LANES):
        t0 = as_signed(load_bytes(trits + i))
        t1 = as_signed(load_bytes(trits + 4096 + i))
        t2 = as_signed(load_bytes(trits + 8192 + i))
        t1 = t1 + (t0 + t0 + t0)
        store_bytes(numbers + i, as_bytes(t2 + (t1 + t1 + t1)))
    for k in range(4):
        transpose_floats(numbers + 64 * k, 256, columns + 1024 * k, 1, 0, 64)
    for strip in range(8):
        for rows in range(0, 64, 4 * LANES):
            signs = zero_bytes()
            for k in range(4):
                at = columns + 512 * strip + 128 * k + rows
                first = as_signed(load_bytes(at))
                second = as_signed(load_bytes(at + 64))
                a = first >> 7
                b = second >> 7
                signs = signs | as_bytes(a) & (1 << 2 * k) | as_bytes(b) & (2 << 2 * k)
                low = as_bytes((first ^ a) - a)
                high = as_bytes((second ^ b) - b)
                store_bytes(out + STRIP * strip + 64 * k + rows, low | high << 4)
            store_bytes(out + STRIP * strip + 256 + rows, signs)


@inline
def fill_columns(strip: int, k: int, signs: Any, digits: int, more: Any, at: int) -> None:
    """One plane's columns 8 k .. 8 k + 7 of a strip as weights of a tile, two vectors from `at` on.

    digits: the plane's row of DIGITS or EIGHTS; more: what is added to these. strip: at the half of
    the rows in work; k is a constant.
    """
    both = load_bytes(strip + 64 * k)
    low = as_signed(look_up(digits, both & 15))
    high = as_signed(look_up(digits, both >> 4))
    store_bytes(at, as_bytes(negate_where(low, signs, 2 * k)) + more)
    store_bytes(at + 128, as_bytes(negate_where(high, signs, 2 * k + 1)) + more)


@inline
def shift_of(x: Any, bit: int) -> Any:
    """What `fill_columns` adds to 8 t: the shift, -1 where the bit of x is set, else 1, and ZERO.

    Where a tile stores halves, SHIFT_ZERO has 1 / 2 of the shift: what is missing is -1 or 0.
    """
    shift = minus_or_one(x >> bit) if SHIFTED.step == 1 else minus_or_zero(x >> bit)
    return ints_as_bytes(shift) + SHIFT_ZERO


@inline
def trits_of_shifted(q: int) -> None:
    """(48, 256) int8: 8 t + shift -> t, in place."""
    for i in range(0, 256 * ROWS, 4 * LANES):
        store_bytes(q + i, as_bytes(as_signed(load_bytes(q + i) + 4) >> 3))
