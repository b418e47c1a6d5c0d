"""Matrix-vector product with the code book in registers: AVX-512 VBMI, GFNI and VNNI.

One instruction looks up 64 bytes in 128, so a book of bytes needs no memory and no scalar index.
The words of a book are cut into bytes: a word of 8 weights into two of four 2-bit fields, a word of
4 weights into two of two 3-bit fields. A second look-up, in 64 bytes, turns a field into a weight:

    64 indices -> 64 bytes of fields -> field j of each: weights 4 k + j, k = 0 .. 63

Two rows are computed at a time, "by turns": 8 words of the first, 8 of the second, 8 of the first
and so on. `interleave` then gives the fields of one row in order, byte k holding weights 4 k .. 4 k
+ 3, so that a 32-bit lane of a dot product is a group of 16 columns. Once per call, activations
are brought into the same order, a step of 256 columns after the other:

    planes x [ bytes 0 4 8 ... | 1 5 9 ... | 2 6 10 ... | 3 7 11 ... ]   4 x 64 bytes
    scale of every lane: 16 x f32 | sum of every lane: 16 x int32

A type gives

    dots(p, r, y)       two i32x16: GROUP 16: the groups' dots of the blocks at p and at r with the
                        step at y; GROUP 32: those of both rows, two of each by turns, and anything
    scales(p, r)        their scales, the same way
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quant.jit import inline
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
    PLANES,
    put_results,
)
from quant.lookups import table
from quant.simd import (
    alloca,
    fma_16,
    i64,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i32x16,
    load_u8x64,
    prefetch,
    splat_f32x16,
    splat_u8x64,
    store_f32x16,
    to_f32x16,
    twice_each,
    zero_f32x16,
)
from quant.simd_vbmi import (
    above,
    add_dots,
    any_bit,
    choose,
    interleave_first,
    interleave_second,
    load_pairs_f32,
    load_pairs_i32,
    look_up_64,
    look_up_128,
    negate_if,
    rows_apart,
    shift_words,
    store_by_fours,
    store_i32x16,
    sum_pairs,
    top_bit,
    two_by_turns,
    zero_i32x16,
)
from quant.unpack import byte_constant

COLS = 32768  # whose activations are kept in order; wider rows do it again for every two rows
ORDERED = 640  # bytes of a step of them, at most


def dots(p: int, r: int, y: int) -> Any:
    """Open: the type's own."""


def scales(p: int, r: int) -> Any:
    """Open: the type's own."""


def order_activations(x: int, c: int, cols: int, n: int, out: int) -> None:
    """Columns c .. c + cols - 1 of the record at x; open because PLANES and GROUP are."""
    ys = x + PLANES * n + c // 8
    for i in range(0, cols, 256):
        store_by_fours(x + c + i, out)
        if PLANES == 2:
            store_by_fours(x + n + c + i, out + 256)
        if GROUP == 16:
            store_f32x16(out + 256 * PLANES, twice_each(load_f32(ys)))
            sums = load_i32x16(ys + n // 8 * 5 + (c + i) // 8)
            store_i32x16(out + 256 * PLANES + 64, sums)
        else:
            store_f32x16(out + 256 * PLANES, load_pairs_f32(ys))
            store_i32x16(out + 256 * PLANES + 64, load_pairs_i32(ys + n // 2))
        ys += 32
        out += 256 * PLANES + 128


def matvec_book(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    ordered = alloca(81920)  # COLS / 256 * ORDERED
    for t in range(i64(job + _N_TOKENS)):
        x = i64(job + _X) + t * i64(job + _X_STRIDE)
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

# byte k of fields j stands for weight 4 (k % 2) + j of a word of 8, whose signs are one byte
SIGN_0, SIGN_1, SIGN_2, SIGN_3 = (byte_constant([1 << j, 16 << j] * 32) for j in range(4))


def dot_4(w0: Any, w1: Any, w2: Any, w3: Any, y: int) -> Any:
    """Groups of 16: weights 0 4 8 ..., 1 5 9 ..., ... (unsigned) . a step at y; open for PLANES."""
    d = add_dots(zero_i32x16(), w0, load_i8x64(y))
    d = add_dots(d, w1, load_i8x64(y + 64))
    d = add_dots(d, w2, load_i8x64(y + 128))
    d = add_dots(d, w3, load_i8x64(y + 192))
    if PLANES == 2:
        e = add_dots(zero_i32x16(), w0, load_i8x64(y + 256))
        e = add_dots(e, w1, load_i8x64(y + 320))
        e = add_dots(e, w2, load_i8x64(y + 384))
        e = add_dots(e, w3, load_i8x64(y + 448))
        d = (d << 8) + e
    return d


def signed_dot_4(w0: Any, w1: Any, w2: Any, w3: Any, signs: Any, y: int) -> Any:
    """The same with a sign bit per weight: bits 4 (k % 2) + j of byte k are for w_j."""
    n0 = any_bit(signs, SIGN_0())
    n1 = any_bit(signs, SIGN_1())
    n2 = any_bit(signs, SIGN_2())
    n3 = any_bit(signs, SIGN_3())
    d = add_dots(zero_i32x16(), w0, negate_if(n0, load_i8x64(y)))
    d = add_dots(d, w1, negate_if(n1, load_i8x64(y + 64)))
    d = add_dots(d, w2, negate_if(n2, load_i8x64(y + 128)))
    d = add_dots(d, w3, negate_if(n3, load_i8x64(y + 192)))
    if PLANES == 2:
        e = add_dots(zero_i32x16(), w0, negate_if(n0, load_i8x64(y + 256)))
        e = add_dots(e, w1, negate_if(n1, load_i8x64(y + 320)))
        e = add_dots(e, w2, negate_if(n2, load_i8x64(y + 384)))
        e = add_dots(e, w3, negate_if(n3, load_i8x64(y + 448)))
        d = (d << 8) + e
    return d


# --- look-ups in more than 128 bytes: every part, then the right one ------------------------------


@inline
def part(i: Any, at: int, k: int) -> Any:
    """Byte i % 128 of part k of the table at `at`."""
    return look_up_128(i, load_u8x64(at + 128 * k), load_u8x64(at + 128 * k + 64))


@inline
def look_up_256(i: Any, at: int, k7: Any) -> Any:
    """k7, k8, ...: where bits 7, 8, ... of the index are set."""
    return choose(k7, part(i, at, 1), part(i, at, 0))


@inline
def look_up_512(i: Any, at: int, k7: Any, k8: Any) -> Any:
    """See look_up_256."""
    return choose(k8, look_up_256(i, at + 256, k7), look_up_256(i, at, k7))


@inline
def look_up_1024(i: Any, at: int, k7: Any, k8: Any, k9: Any) -> Any:
    """See look_up_256."""
    return choose(k9, look_up_512(i, at + 512, k7, k8), look_up_512(i, at, k7, k8))


@inline
def halves_of_trits(i: Any, high: Any, book: int) -> tuple[Any, Any]:
    """Words of the book of 2048: index bits 0-7, bits 8-10 (in the low bits of `high`).

    The words are in order of their second halves, which change at most once, to the next, within 16
    words: a table of 128 has the half before, the half after, and the last word of the first.
    """
    k10 = any_bit(high, splat_u8x64(4))
    k9 = any_bit(high, splat_u8x64(2))
    k8 = any_bit(high, splat_u8x64(1))
    k7 = top_bit(i)
    lower = look_up_1024(i, book, k7, k8, k9)
    first = choose(k10, look_up_1024(i, book + 1024, k7, k8, k9), lower)
    j = high << 4 | i >> 4
    changed = above(i & 15, part(j, book, 18))
    second = choose(changed, part(j, book, 17), part(j, book, 16))
    return first, second


# --- books as bytes of fields ---------------------------------------------------------------------


def field_bytes(book: np.ndarray, values: tuple[int, ...], bits: int) -> np.ndarray:
    """(words, length) -> (2, words) uint8: the first and the second half of each word as fields."""
    numbers = np.searchsorted(values, book)
    fields = numbers.reshape(len(book), 2, -1) << bits * np.arange(book.shape[1] // 2)
    return np.ascontiguousarray(fields.sum(axis=2).T, np.uint8)


def weight_table(name: str, values: tuple[int, ...], bits: int) -> Any:
    """Address of 6 // bits tables of 64: what each field of an index stands for."""

    def make() -> np.ndarray:
        fields = np.arange(64) >> bits * np.arange(6 // bits)[:, None] & (1 << bits) - 1
        return np.append(values, 0)[np.minimum(fields, len(values))].astype(np.uint8)

    return table(name, make)


def book_table(
    name: str, make: Callable[[], np.ndarray], values: tuple[int, ...], bits: int
) -> Any:
    """Address of the two halves of a book as bytes of fields."""
    return table(name, lambda: field_bytes(make(), values, bits))


IQ2_VALUES = (8, 25, 43)
IQ2_WEIGHTS = weight_table("iq2_weights", IQ2_VALUES, 2)


def signed_dot_of_8s(fields: Any, signs: Any, y: int) -> Any:
    """One row of the IQ2 types: byte k of `fields` = weights 4 k .. 4 k + 3; open for PLANES."""
    at = IQ2_WEIGHTS()
    third = load_u8x64(at + 128)
    return signed_dot_4(
        look_up_64(fields, load_u8x64(at)),
        look_up_64(fields, load_u8x64(at + 64)),
        look_up_64(fields, third),
        look_up_64(shift_words(fields, 2), third),
        signs,
        y,
    )


def signed_dots_of_8s(first: Any, second: Any, signs: Any, y: int) -> tuple[Any, Any]:
    """Two rows by turns: the halves of 64 words and their signs."""
    fields = interleave_first(first, second)
    d = signed_dot_of_8s(fields, interleave_first(signs, signs), y)
    fields = interleave_second(first, second)
    e = signed_dot_of_8s(fields, interleave_second(signs, signs), y)
    return d, e


def signed_dot_of_4s(first: Any, second: Any, signs: Any, y: int, weights: int) -> Any:
    """One row of the IQ3 types: the halves of 64 words, two fields of 3 bits each; open too."""
    low = load_u8x64(weights)
    high = load_u8x64(weights + 64)
    return signed_dot_4(
        look_up_64(first, low),
        look_up_64(first, high),
        look_up_64(second, low),
        look_up_64(second, high),
        signs,
        y,
    )


def iq1_fields(book: np.ndarray) -> np.ndarray:
    """What `halves_of_trits` looks up: 2048 first halves, then three tables of 128."""
    first, second = field_bytes(book, (-1, 0, 1), 2)
    second = second.reshape(128, 16)
    last = (second == second[:, :1]).sum(axis=1) - 1
    return np.concatenate([first, second[:, 0], second[:, 15], last.astype(np.uint8)])


def dot_of_8s(fields: Any, y: int, weights: int) -> Any:
    """One row of unsigned weights: byte k of `fields` = weights 4 k .. 4 k + 3; open for PLANES."""
    third = load_u8x64(weights + 128)
    return dot_4(
        look_up_64(fields, load_u8x64(weights)),
        look_up_64(fields, load_u8x64(weights + 64)),
        look_up_64(fields, third),
        look_up_64(shift_words(fields, 2), third),
        y,
    )


def shifted_dot_of_8s(fields: Any, flip: Any, y: int, weights: int) -> Any:
    """The same; the weights of byte k are changed by `flip` (exclusive or) first."""
    third = load_u8x64(weights + 128)
    return dot_4(
        look_up_64(fields, load_u8x64(weights)) ^ flip,
        look_up_64(fields, load_u8x64(weights + 64)) ^ flip,
        look_up_64(fields, third) ^ flip,
        look_up_64(shift_words(fields, 2), third) ^ flip,
        y,
    )


def dots_of_row(p: int, y: int) -> Any:
    """Open: a type of words of 4 gives this instead of `dots`: groups of 16 of one row."""


def dots_of_two_rows(p: int, r: int, y: int) -> tuple[Any, Any]:
    """`dots` of a type of words of 4."""
    d = dots_of_row(p, y)
    e = dots_of_row(r, y)
    return sum_pairs(d, e), e


def dots_of_trits(i: Any, high: Any, y: int, book: int, weights: int) -> tuple[Any, Any]:
    """Two rows by turns of words of the book of 2048."""
    first, second = halves_of_trits(i, high, book)
    d = dot_of_8s(interleave_first(first, second), y, weights)
    e = dot_of_8s(interleave_second(first, second), y, weights)
    return d, e


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
    "order_activations": order_activations,
    "dot_4": dot_4,
    "signed_dot_4": signed_dot_4,
    "signed_dot_of_8s": signed_dot_of_8s,
    "signed_dots_of_8s": signed_dots_of_8s,
    "signed_dot_of_4s": signed_dot_of_4s,
    "dot_of_8s": dot_of_8s,
    "shifted_dot_of_8s": shifted_dot_of_8s,
    "dots_of_trits": dots_of_trits,
    "dots_of_row": dots_of_row,
    "dots": dots_of_two_rows,
}
