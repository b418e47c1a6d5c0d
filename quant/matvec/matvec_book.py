"""Matrix-vector product with the code book in registers: AVX-512 VBMI, GFNI and VNNI.

Two rows are computed at a time, "by turns": 8 words of the first, 8 of the second, 8 of the first
and so on. Their look-ups (books.py) give bytes of fields; `interleave` then makes those of one row,
byte k for weights 4 k .. 4 k + 3, and a second look-up, in 64 bytes, makes a field a weight. Field
j of all bytes, j = 0 .. 3, is one vector of weights, and a 32-bit lane of a dot product of such
vectors is a group of 16 columns. Once per call, the activations are brought into the same order, a
step of 256 columns after the other:

    planes x [ bytes 0 4 8 ... | 1 5 9 ... | 2 6 10 ... | 3 7 11 ... ]   4 x 64 bytes
    scale of every lane: 16 x f32
    sum of every lane: 16 x int32;  SIGNED: 64 bytes of signs, by turns as the words

The instruction multiplies unsigned with signed bytes. SIGNED types turn the signs of the weights by
those of the activations, and the activations are stored without sign: of two planes, |256 hi + lo|
= 256 high + low, high and low unsigned. Else the weights are unsigned.

A type gives

    dots(p, r, y)       two i32x16: GROUP 16: the groups' dots of the blocks at p and at r with the
                        step at y; GROUP 32: those of both rows, two of each by turns, and anything
    scales(p, r)        their scales, the same way
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
    PLANES,
    put_results,
    token_at,
)
from quant.simd.vbmi import (
    add_dots,
    choose,
    equals,
    interleave_first,
    interleave_second,
    load_pairs_f32,
    load_pairs_i32,
    look_up_64,
    mask_bits,
    rows_apart,
    shift_words,
    store_by_fours,
    store_i32x16,
    sum_pairs,
    top_bit,
    two_by_turns,
    zero_i32x16,
)
from quant.simd.vectors import (
    alloca,
    fma_16,
    i64,
    load_f32,
    load_f32x16,
    load_i32x16,
    load_u8x64,
    prefetch,
    put_i64,
    splat_f32x16,
    splat_u8x64,
    store_f32x16,
    store_u8x64,
    to_f32x16,
    twice_each,
    zero_f32x16,
)
from quant.types.books import IQ2_WEIGHTS, halves_of_trits

COLS = 32768  # whose activations are kept in order; wider rows do it again for every two rows
SIGNED: bool = OPEN


def dots(p: int, r: int, y: int) -> Any:
    """Open: the type's own."""


def scales(p: int, r: int) -> Any:
    """Open: the type's own."""


def order_activations(x: int, c: int, cols: int, n: int, out: int) -> None:
    """Columns c .. c + cols - 1 of the record at x; open because PLANES, GROUP and SIGNED are."""
    ys = x + PLANES * n + c // 8
    sizes = alloca(512)
    for i in range(0, cols, 256):
        if SIGNED:
            without_signs(x + c + i, n, sizes, out + 256 * PLANES + 64)
            store_by_fours(sizes, out)
            if PLANES == 2:
                store_by_fours(sizes + 256, out + 256)
        else:
            store_by_fours(x + c + i, out)
            if PLANES == 2:
                store_by_fours(x + n + c + i, out + 256)
            if GROUP == 16:
                sums = load_i32x16(ys + n // 8 * 5 + (c + i) // 8)
            else:
                sums = load_pairs_i32(ys + n // 2)
            store_i32x16(out + 256 * PLANES + 64, sums)
        if GROUP == 16:
            store_f32x16(out + 256 * PLANES, twice_each(load_f32(ys)))
        else:
            store_f32x16(out + 256 * PLANES, load_pairs_f32(ys))
        ys += 32
        out += 256 * PLANES + 128


def without_signs(y: int, n: int, sizes: int, signs: int) -> None:
    """256 columns at y -> their magnitudes, plane by plane, and signs; open because PLANES is."""
    zero = splat_u8x64(0)
    for k in range(4):
        high = load_u8x64(y + 64 * k)
        if PLANES == 2:  # the two bytes of a 16-bit number, and its negative
            low = load_u8x64(y + n + 64 * k)
            high = choose(top_bit(low), high - splat_u8x64(1), high)
            negative = top_bit(high)
            carry = choose(equals(low, 0), splat_u8x64(1), zero)
            store_u8x64(sizes + 256 + 64 * k, choose(negative, zero - low, low))
            opposite = (high ^ splat_u8x64(255)) + carry
        else:
            negative = top_bit(high)
            opposite = zero - high
        store_u8x64(sizes + 64 * k, choose(negative, opposite, high))
        put_i64(signs + 16 * k, mask_bits(negative))
        put_i64(signs + 16 * k + 8, mask_bits(negative))


def matvec_book(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    ordered = alloca(81920)  # COLS / 256 * ORDERED
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for top in range(r0, r1, 2):
            step = row_bytes if top + 1 < r1 else 0  # the last row of an odd number: twice
            p = w + top * row_bytes
            a = zero_f32x16()
            b = zero_f32x16()
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                if top == r0 or n > COLS:
                    order_activations(x, c0, cols, n, ordered)
                y = ordered
                for _ in range(0, cols, 256):
                    # the same place of the next two rows: what lies 2 KB on is being read already
                    for line in range(0, BYTES, 64):
                        prefetch(p + 2 * row_bytes + line)
                        prefetch(p + 3 * row_bytes + line)
                    d, e = dots(p, p + step, y)
                    s, u = scales(p, p + step)
                    ys = load_f32x16(y + 256 * PLANES)
                    a = fma_16(to_f32x16(d), s * ys, a)
                    if GROUP == 16:
                        b = fma_16(to_f32x16(e), u * ys, b)
                    y += 256 * PLANES + 128
                    p += BYTES
            if GROUP == 32:
                a = rows_apart(a)
            put_results(out + 4 * top, step > 0, a, b, a, b)


# --- dots of one row ------------------------------------------------------------------------------


def dot_4(w0: Any, w1: Any, w2: Any, w3: Any, y: int) -> Any:
    """Groups of 16: weights 0 4 8 ..., 1 5 9 ..., ... . one plane of a step; open for SIGNED."""
    d = zero_i32x16()
    if SIGNED:
        d = add_dots(d, load_u8x64(y), w0)
        d = add_dots(d, load_u8x64(y + 64), w1)
        d = add_dots(d, load_u8x64(y + 128), w2)
        d = add_dots(d, load_u8x64(y + 192), w3)
    else:
        d = add_dots(d, w0, load_u8x64(y))
        d = add_dots(d, w1, load_u8x64(y + 64))
        d = add_dots(d, w2, load_u8x64(y + 128))
        d = add_dots(d, w3, load_u8x64(y + 192))
    return d


def dot_step(w0: Any, w1: Any, w2: Any, w3: Any, y: int) -> Any:
    """All planes; open because PLANES is."""
    d = dot_4(w0, w1, w2, w3, y)
    if PLANES == 2:
        d = (d << 8) + dot_4(w0, w1, w2, w3, y + 256)
    return d


def dot_of_trits(fields: Any, y: int, weights: int) -> Any:
    """One row of IQ1_S; byte k of `fields`: four fields of 2 bits. Open as all that follow."""
    third = load_u8x64(weights + 128)
    return dot_step(
        look_up_64(fields, load_u8x64(weights)),
        look_up_64(fields, load_u8x64(weights + 64)),
        look_up_64(fields, third),
        look_up_64(shift_words(fields, 2), third),
        y,
    )


def dots_of_trits(i: Any, high: Any, y: int, book: int, weights: int) -> tuple[Any, Any]:
    """Two rows by turns of IQ1_S."""
    first, second = halves_of_trits(i, high, book)
    d = dot_of_trits(interleave_first(first, second), y, weights)
    e = dot_of_trits(interleave_second(first, second), y, weights)
    return d, e


def shifted_dot_of_trits(fields: Any, shift: Any, y: int, weights: int) -> Any:
    """One row of IQ1_M; shift: in bit 4, for all four weights of a byte."""
    a = fields & 15 | shift & 0xF0
    b = fields >> 4 | shift & 0xF0
    low = load_u8x64(weights)
    high = load_u8x64(weights + 64)
    return dot_step(
        look_up_64(a, low), look_up_64(a, high), look_up_64(b, low), look_up_64(b, high), y
    )


def signed_dot_of_8s(fields: Any, signs: Any, y: int) -> Any:
    """One row of the IQ2 types; byte k: four fields of 2 bits, and their sign bits 0 .. 3."""
    a = fields & 15 | signs << 4
    b = fields >> 4 | signs << 2 & 0xF0
    low = load_u8x64(IQ2_WEIGHTS())
    high = load_u8x64(IQ2_WEIGHTS() + 64)
    return dot_step(
        look_up_64(a, low), look_up_64(a, high), look_up_64(b, low), look_up_64(b, high), y
    )


def signed_dots_of_8s(first: Any, second: Any, signs: Any, y: int) -> tuple[Any, Any]:
    """Two rows by turns: the halves of 64 words, and a byte of signs for each word."""
    signs = signs ^ load_u8x64(y + 256 * PLANES + 64)
    fields = interleave_first(first, second)
    d = signed_dot_of_8s(fields, interleave_first(signs, signs >> 4), y)
    fields = interleave_second(first, second)
    e = signed_dot_of_8s(fields, interleave_second(signs, signs >> 4), y)
    return d, e


def signed_dot_of_4s(first: Any, second: Any, signs: Any, y: int, weights: int) -> Any:
    """One row of the IQ3 types: the halves of 64 words, two fields of 3 bits, their signs."""
    a = first | signs << 3 & 0x18
    b = second | signs << 1 & 0x18
    low = load_u8x64(weights)
    high = load_u8x64(weights + 64)
    return dot_step(
        look_up_64(a, low),
        look_up_64(shift_words(a, 2), high),
        look_up_64(b, low),
        look_up_64(shift_words(b, 2), high),
        y,
    )


def halves(p: int) -> Any:
    """Open: the halves of the 64 words of a row's block, of the IQ3 types."""


def signs_by_turns(p: int, r: int) -> Any:
    """Open: the signs of the IQ3 types."""


def weights() -> Any:
    """Open: the weights of the IQ3 types."""


def dots_of_4s(p: int, r: int, y: int) -> tuple[Any, Any]:
    """`dots` of the IQ3 types."""
    signs = signs_by_turns(p, r) ^ load_u8x64(y + 256 * PLANES + 64)
    first, second = halves(p)
    d = signed_dot_of_4s(first, second, interleave_first(signs, signs >> 4), y, weights())
    first, second = halves(r)
    e = signed_dot_of_4s(first, second, interleave_second(signs, signs >> 4), y, weights())
    return sum_pairs(d, e), e


# --- scales ---------------------------------------------------------------------------------------


@inline
def odd_steps_16(d: Any, n: Any) -> Any:
    """d * (2 n + 1) for 16 scale numbers n (i32x16) of one row; see lookups.odd_steps."""
    return to_f32x16(n + n + 1) * splat_f32x16(d)


@inline
def odd_steps_by_turns(d: Any, e: Any, n: Any) -> Any:
    """The same of two rows, two of each by turns."""
    return to_f32x16(n + n + 1) * two_by_turns(d, e)


# what has open names itself, in the order in which it is bound
OPEN_HELPERS: dict[str, Callable[..., Any]] = {
    "without_signs": without_signs,
    "order_activations": order_activations,
    "dot_4": dot_4,
    "dot_step": dot_step,
    "dot_of_trits": dot_of_trits,
    "dots_of_trits": dots_of_trits,
    "shifted_dot_of_trits": shifted_dot_of_trits,
    "signed_dot_of_8s": signed_dot_of_8s,
    "signed_dots_of_8s": signed_dots_of_8s,
    "signed_dot_of_4s": signed_dot_of_4s,
}
