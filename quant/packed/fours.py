"""Four rows in a byte: how the packed layouts of 2-bit weights keep their pairs of bits.

A vector is 64 rows x 4 columns: byte 4 r + c holds column c of the rows r (bits 0 and 1), 16 + r,
32 + r and 48 + r (bits 6 and 7). One vector of activations serves all four.

Three of the four fields need no shift for a product: their sums come out 4, 16 and 64 times too
large and are shifted once for a whole group of columns. (Without VNNI the sums have 16 bits, and
the upper fields are brought down first.)

Where a vector takes two registers, both halves of a section are multiplied before the next section:
memory is then asked for all the time, not only while the first half is in work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler.jit import inline
from quant.packed.kernels import AHEAD
from quant.simd.packed import (
    LANES,
    VNNI,
    add_products,
    four_columns,
    load_bytes,
    load_floats,
    load_halves,
    load_ints,
    store_bytes,
    store_floats,
    total,
    words_down,
)
from quant.simd.vectors import alloca, prefetch_far
from quant.tile.tile import transpose_floats

ROWS = 64
SECTION = 1024  # bytes of 64 columns


def pairs(vectors: np.ndarray) -> np.ndarray:
    """(n, 64) uint8 -> (64, 4 n) uint8 in 0 .. 3: the readable definition."""
    fields = vectors.reshape(-1, 16, 4) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None, None, None]
    return (fields & 3).transpose(0, 2, 1, 3).reshape(ROWS, -1)  # field, r, vector, c


@inline
def four_halves(p: int) -> tuple[Any, Any, Any, Any]:
    """The halves of the four planes as floats."""
    return load_halves(p), load_halves(p + 32), load_halves(p + 64), load_halves(p + 96)


@inline
def four_floats(p: int) -> tuple[Any, Any, Any, Any]:
    """The floats of the four planes, 64 bytes apart."""
    return load_floats(p), load_floats(p + 64), load_floats(p + 128), load_floats(p + 192)


@inline
def four_ints(p: int) -> tuple[Any, Any, Any, Any]:
    """Four words of the four planes' rows, 64 bytes apart."""
    return load_ints(p), load_ints(p + 64), load_ints(p + 128), load_ints(p + 192)


@inline
def store_four(p: int, x: Any) -> None:
    """The four planes' floats to where `four_floats` finds them."""
    store_floats(p, x[0])
    store_floats(p + 64, x[1])
    store_floats(p + 128, x[2])
    store_floats(p + 192, x[3])


@inline
def fetch_part(at: int, size: int, i: int) -> None:
    """Ask for part i of 4 of what lies AHEAD of `at`, into the second cache; size: all parts'."""
    for line in range((size // 4 * i + 63) // 64 * 64, size // 4 * (i + 1), 64):
        prefetch_far(at + AHEAD + line)


@inline
def add_fields(p: int, y: int, a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """Sums of the four rows, `times` too large, grow by the 4 columns at p and y."""
    v = load_bytes(p)
    x = four_columns(y)
    if VNNI:
        a = add_products(a, v & 3, x)
        b = add_products(b, v & 12, x)
        c = add_products(c, v & 48, x)
        d = add_products(d, v & 192, x)
    else:
        up = words_down(v, 4)
        a = add_products(a, v & 3, x)
        b = add_products(b, v & 12, x)
        c = add_products(c, up & 3, x)
        d = add_products(d, up & 12, x)
    return a, b, c, d


@inline
def field_dots(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """Sums of `add_fields` -> dots."""
    if VNNI:
        return total(a), total(b) >> 2, total(c) >> 4, total(d) >> 6
    return total(a), total(b) >> 2, total(c), total(d) >> 2


@inline
def pack_pairs(q: int, out: int, stride: int) -> None:
    """(64, 256) bytes in 0 .. 3 at q -> vectors; those of columns 64 k .. at out + k * stride."""
    rows = alloca(4096)  # 16 x 256
    for i in range(0, 4096, 4 * LANES):
        v = load_bytes(q + i) | load_bytes(q + 4096 + i) << 2
        v = v | load_bytes(q + 8192 + i) << 4 | load_bytes(q + 12288 + i) << 6
        store_bytes(rows + i, v)
    for k in range(4):
        transpose_floats(rows + 64 * k, 256, out + stride * k, 1, 0, 64)
