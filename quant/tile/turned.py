"""Bytes of 16 rows in the file, turned in registers: a 32-bit lane is a row. For types' `fill_16`.

turn_N(rows, at, dst)       N bytes of each row, `at` bytes behind the 16 addresses at `rows` ->
N / 4 vectors of their words, 64 bytes apart at dst
between(src)                words that begin in the middle of those at src
row_words(rows, at)         one word of each row
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler.jit import inline
from quant.simd.vectors import (
    I32,
    I64,
    P,
    _lanes,
    _op,
    _plus,
    _pointer,
    call,
    i32x16,
    load_u8x64,
    store_f32x16,
    store_u8x64,
    to_f32x16,
    u8x64,
)
from quant.tile.tile import _fours, _row_loads, _transpose

V16 = ir.VectorType(I32, 16)


def _joined(b: Any, x: Any, y: Any) -> Any:
    return b.shuffle_vector(x, y, _lanes([*range(2 * x.type.count)]))


def _quarters(b: Any, rows: Any, at: Any) -> list[Any]:
    """Four vectors of words: 16 bytes of each row."""
    x = _row_loads(b, rows, at, ir.VectorType(I32, 4))
    fours = [
        _joined(b, _joined(b, x[i], x[4 + i]), _joined(b, x[8 + i], x[12 + i])) for i in range(4)
    ]
    return _fours(b, fours)


@cache
def turn(n_bytes: int) -> Any:
    """The intrinsic turn_N above; a multiple of 16 bytes."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        rows, at, dst = v
        for start in range(0, n_bytes, 64):
            places = [_plus(b, at, start + 16 * i) for i in range(min(4, (n_bytes - start) // 16))]
            if len(places) == 4:
                words = _transpose(b, _row_loads(b, rows, places[0], V16))
            else:
                words = [x for place in places for x in _quarters(b, rows, place)]
            for i, x in enumerate(words):
                b.store(x, _pointer(b, _plus(b, dst, 16 * start + 64 * i), V16), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 3, generate)


def _between(b: Any, m: Any, v: Any) -> Any:
    low, high = (b.load(_pointer(b, _plus(b, v[0], i), V16), align=1) for i in (0, 64))
    sixteen = ir.Constant(V16, [16] * 16)
    return b.bitcast(call(b, m, "llvm.fshl.v16i32", V16, [high, low, sixteen]), u8x64.llvm)


def _row_words(b: Any, m: Any, v: Any) -> Any:
    x = ir.Constant(V16, ir.Undefined)
    for i, word in enumerate(_row_loads(b, v[0], v[1], I32)):
        x = b.insert_element(x, word, ir.Constant(I32, i))
    return x


between = _op(u8x64, (P,), _between)
row_words = _op(i32x16, (P, P), _row_words)


@inline
def put_nibbles(x: Any, more: int, w: int) -> None:
    """Words of 16 weights of a group, then of 16 others -> their vectors, `more` added."""
    store_u8x64(w, (x & 15) + more)
    store_u8x64(w + 512, (x >> 4) + more)


@inline
def put_bytes(x: Any, d: Any, to: int, stride: int) -> None:
    """The four bytes of each word (i32x16), unsigned, times d (f32x16) as floats."""
    for j in range(4):
        store_f32x16(to + j * stride, to_f32x16(x >> 8 * j & 255) * d)


@inline
def add_bytes(src: int, more: int, dst: int) -> None:
    """64 bytes, `more` added."""
    store_u8x64(dst, load_u8x64(src) + more)
