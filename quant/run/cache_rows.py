"""Rows of the latent cache: [ c: latent | k_rope: rope ] of one token, in one of three forms.

    F32, F16   latent + rope floats or halves
    Q8_0       | c as int8 | k_rope as int8 | d of c: halves | d of k_rope: halves |

Both parts are multiples of 16 elements. In Q8_0 each has groups of its own, of 32 elements that
share a d (the last may have 16): value = d * q, 576 values in 612 bytes. As in ggml, d is the
largest |x| / 127 as a half, but q = x / d is taken with that half, rounded to the nearest, ties to
even: it is within d / 2 of x on every processor. Halves too small for that are rounded up (LEAST).
Where a value is infinite or not a number, d is not a number, and with it the group; where d exceeds
a half, it is infinite.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from quant.compiler.jit import inline, kernel
from quant.simd.floats import LANES, load_f16_v, load_i8_v, load_v, splat_v, store_v
from quant.simd.vectors import (
    abs_f32,
    f16,
    load_f32,
    max_f32,
    maximum_f32,
    min_f32,
    put_f16,
    round_f32,
    splat_f32,
    store_f16,
    store_f32,
    store_i8x8,
    sum_f32,
    zero_f32,
)

GROUP = 32  # elements that share a d
LEAST = 2.0**-25  # half of the smallest half; larger ones do not feel it


class RowKind(IntEnum):
    """The form of a row."""

    F32 = 0
    F16 = 1
    Q8_0 = 2


_F32, _F16 = int(RowKind.F32), int(RowKind.F16)


def row_bytes(kind: RowKind, latent: int, rope: int) -> int:
    """Bytes of a row of latent + rope elements, both multiples of 16."""
    if kind == RowKind.Q8_0:
        return latent + rope + 2 * (-(-latent // GROUP) + -(-rope // GROUP))
    return (latent + rope) * (4 if kind == RowKind.F32 else 2)


@inline
def store_row(kind: int, row: int, latent: int, rope: int, at: int) -> None:
    """Latent + rope float32 at `row` -> one cache row."""
    width = latent + rope
    if kind == _F32:
        for i in range(0, width, 8):
            store_f32(at + 4 * i, load_f32(row + 4 * i))
    elif kind == _F16:
        for i in range(0, width, 8):
            store_f16(at + 2 * i, load_f32(row + 4 * i))
    else:
        d = at + width
        for i in range(0, latent, GROUP):
            _store_group(row + 4 * i, min(GROUP, latent - i), at + i, d)
            d += 2
        for i in range(latent, width, GROUP):
            _store_group(row + 4 * i, min(GROUP, width - i), at + i, d)
            d += 2


@inline
def _store_group(x: int, n: int, q: int, d: int) -> None:
    """n float32, 16 or 32 -> n int8, and their d."""
    best = zero_f32()
    rest = zero_f32()
    for i in range(0, n, 8):
        v = load_f32(x + 4 * i)
        best = max_f32(abs_f32(v), best)
        rest = rest + (v - v)  # 0, or not a number
    step = maximum_f32(best) / np.float32(127) + np.float32(LEAST)
    put_f16(d, step + sum_f32(rest))
    step = f16(d)
    inverse = splat_f32(np.float32(1) / step if step > np.float32(0) else np.float32(0))
    most = splat_f32(np.float32(127))
    least = splat_f32(np.float32(-127))
    for i in range(0, n, 8):
        v = round_f32(load_f32(x + 4 * i) * inverse)
        store_i8x8(q + i, min_f32(max_f32(v, least), most))


@inline
def widen_rows(
    kind: int, at: int, row_bytes: int, n: int, latent: int, rope: int, out: int
) -> None:
    """n cache rows, row_bytes apart -> (n, latent + rope) float32."""
    width = latent + rope
    for _ in range(n):
        if kind == _F32:
            for i in range(0, width, LANES):
                store_v(out + 4 * i, load_v(at + 4 * i))
        elif kind == _F16:
            for i in range(0, width, LANES):
                store_v(out + 4 * i, load_f16_v(at + 2 * i))
        else:
            d = at + width
            _widen_part(at, d, latent, out)
            _widen_part(at + latent, d + (latent + 31) // GROUP * 2, rope, out + 4 * latent)
        at += row_bytes
        out += 4 * width


@inline
def _widen_part(q: int, d: int, n: int, out: int) -> None:
    """n int8, a multiple of 16, and their d -> n float32."""
    whole = n // GROUP * GROUP
    for c in range(0, whole, GROUP):
        step = splat_v(f16(d + c // 16))
        for i in range(c, c + GROUP, LANES):
            store_v(out + 4 * i, load_i8_v(q + i) * step)
    if whole < n:
        step = splat_v(f16(d + whole // 16))
        for i in range(whole, n, LANES):
            store_v(out + 4 * i, load_i8_v(q + i) * step)


@kernel()
def _store_rows(
    kind: int, rows: int, n: int, latent: int, rope: int, at: int, row_bytes: int
) -> None:
    """(n, latent + rope) float32 at `rows` -> n cache rows, row_bytes apart."""
    for i in range(n):
        store_row(kind, rows + 4 * (latent + rope) * i, latent, rope, at + row_bytes * i)


def encode(kind: RowKind, rows: np.ndarray, latent: int) -> np.ndarray:
    """(n, latent + rope) float32 -> (n, row_bytes) uint8."""
    rows = np.ascontiguousarray(rows, np.float32)
    rope = rows.shape[1] - latent
    out = np.empty((len(rows), row_bytes(kind, latent, rope)), np.uint8)
    _store_rows(int(kind), rows.ctypes.data, len(rows), latent, rope, out.ctypes.data, out.shape[1])
    return out


def decode(kind: RowKind, data: np.ndarray, latent: int, rope: int) -> np.ndarray:
    """(n, row_bytes) uint8 -> (n, latent + rope) float32, as `widen_rows`; for reading along."""
    data = np.ascontiguousarray(data)
    width = latent + rope
    if kind != RowKind.Q8_0:
        return data.view(np.float32 if kind == RowKind.F32 else np.float16).astype(np.float32)
    d = data[:, width:].copy().view(np.float16).astype(np.float32)
    n = -(-latent // GROUP)
    parts = np.repeat(d[:, :n], GROUP, 1)[:, :latent], np.repeat(d[:, n:], GROUP, 1)[:, :rope]
    values: np.ndarray = data[:, :width].view(np.int8) * np.concatenate(parts, 1)
    return values
