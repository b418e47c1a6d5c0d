"""Code books as bytes: tables for look-ups of 64 bytes at a time (AVX-512 VBMI).

One instruction looks up 64 bytes in 128, so a book of bytes needs no memory and no scalar index
(where shuffles are slow, two look-ups in 64 bytes are faster).
The words of a book are cut into two bytes of fields, each the number of a magnitude:

    words of 8     | bits 0-1: weight 0 (4) | 2-3: weight 1 (5) | 4-5: 2 (6) | 6-7: 3 (7) |
    words of 4     | bits 0-2: weight 0 (2) | 3-4: room for signs | 5-7: weight 1 (3) |

A look-up in 64 bytes, by the low 6 bits, turns a field into a weight (`weight_table`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.simd.lookups import table
from quant.simd.vbmi import (
    above,
    both,
    choose,
    has_bit,
    look_up_64,
    look_up_128,
    only,
)
from quant.simd.vectors import load_u8x64

# --- look-ups in more than 64 bytes: every part, then the right one -------------------------------
#
# i: 64 indices, of which the low 8 bits are here; k6, k7, ...: which of them have bit 6, 7, ... set
# (k6: for look-ups by halves alone).


@inline
def part_at_once(i: Any, at: int, k: int, k6: Any) -> Any:
    """Byte i % 128 of part k of the table at `at`."""
    return look_up_128(i, load_u8x64(at + 128 * k), load_u8x64(at + 128 * k + 64))


@inline
def part_by_halves(i: Any, at: int, k: int, k6: Any) -> Any:
    """The same, where one look-up in 128 bytes takes longer than two in 64."""
    low = look_up_64(i, load_u8x64(at + 128 * k))
    return choose(k6, look_up_64(i, load_u8x64(at + 128 * k + 64)), low)


@inline
def look_up_256_at_once(i: Any, at: int, k6: Any, k7: Any) -> Any:
    """Byte i of the table at `at`."""
    return choose(k7, part_at_once(i, at, 1, k6), part_at_once(i, at, 0, k6))


@inline
def look_up_256_by_halves(i: Any, at: int, k6: Any, k7: Any) -> Any:
    """The same; a look-up that leaves the other bytes alone is still one instruction."""
    x = look_up_64(i, load_u8x64(at))
    x = choose(only(k6, k7), look_up_64(i, load_u8x64(at + 64)), x)
    x = choose(only(k7, k6), look_up_64(i, load_u8x64(at + 128)), x)
    return choose(both(k7, k6), look_up_64(i, load_u8x64(at + 192)), x)


part = part_by_halves if isa.SLOW_SHUFFLES else part_at_once
look_up_256 = look_up_256_by_halves if isa.SLOW_SHUFFLES else look_up_256_at_once


@inline
def look_up_512(i: Any, at: int, k6: Any, k7: Any, k8: Any) -> Any:
    """Byte i of the table at `at`."""
    return choose(k8, look_up_256(i, at + 256, k6, k7), look_up_256(i, at, k6, k7))


@inline
def look_up_1024(i: Any, at: int, k6: Any, k7: Any, k8: Any, k9: Any) -> Any:
    """Byte i of the table at `at`."""
    return choose(k9, look_up_512(i, at + 512, k6, k7, k8), look_up_512(i, at, k6, k7, k8))


@inline
def halves_of_trits(i: Any, high: Any, book: int) -> tuple[Any, Any]:
    """Words of the book of 2048: index bits 0-7, bits 8-10 (in the low bits of `high`).

    The words are in order of their second halves, which change at most once, to the next, within 16
    words: a table of 128 has the half before, the half after, and the last word of the first.
    """
    k10, k9, k8 = has_bit(high, 2), has_bit(high, 1), has_bit(high, 0)
    k7, k6 = has_bit(i, 7), has_bit(i, 6)
    lower = look_up_1024(i, book, k6, k7, k8, k9)
    first = choose(k10, look_up_1024(i, book + 1024, k6, k7, k8, k9), lower)
    j = high << 4 | i >> 4
    changed = above(i & 15, part(j, book, 18, k10))
    second = choose(changed, part(j, book, 17, k10), part(j, book, 16, k10))
    return first, second


# --- tables ---------------------------------------------------------------------------------------


def field_bytes(book: np.ndarray) -> np.ndarray:
    """(words, 8 or 4) -> (2, words) uint8: the first and the second half of each word as fields."""
    numbers = np.searchsorted(np.unique(book), book).reshape(len(book), 2, -1)
    shifts = np.array([0, 2, 4, 6] if book.shape[1] == 8 else [0, 5])
    return np.ascontiguousarray((numbers << shifts).sum(axis=2).T, np.uint8)


def book_table(name: str, make: Callable[[], np.ndarray]) -> Any:
    """Address of the first halves of all words, then of the second."""
    return table(name, lambda: field_bytes(make()))


def trit_table(name: str, make: Callable[[], np.ndarray]) -> Any:
    """What `halves_of_trits` looks up: the first halves, then three tables of 128."""

    def rows() -> np.ndarray:
        first, second = field_bytes(make())
        second = second.reshape(128, 16)
        last = (second == second[:, :1]).sum(axis=1) - 1
        return np.concatenate([first, second[:, 0], second[:, 15], last.astype(np.uint8)])

    return table(name, rows)


Weight = Callable[[np.ndarray], np.ndarray]


def weight_table(name: str, *weights: Weight) -> Any:
    """Address of one table of 64 bytes for each function of an index 0 .. 63."""
    return table(name, lambda: np.array([w(np.arange(64)) for w in weights]).astype(np.int8))


def magnitude(values: tuple[int, ...], shift: int, sign: int) -> Weight:
    """The value whose number begins at bit `shift`, negative where bit `sign` is set."""
    bits = 2 if len(values) == 3 else 3
    filled = np.array([*values, 0] if bits == 2 else values)
    return lambda i: filled[i >> shift & (1 << bits) - 1] * (1 - 2 * (i >> sign & 1))


IQ2_VALUES = (8, 25, 43)
IQ2_WEIGHTS = weight_table("iq2_weights", magnitude(IQ2_VALUES, 0, 4), magnitude(IQ2_VALUES, 2, 5))


def weight_table_3(name: str, values: tuple[int, ...]) -> Any:
    """Weights of words of 4: the first field and sign as they stand, the second shifted by 2."""
    return weight_table(name, magnitude(values, 0, 3), magnitude(values, 3, 2))
