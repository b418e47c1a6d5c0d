"""Sixteen rows side by side: a 32-bit lane is a row, so that no sum goes across lanes.

Rows are taken in four quads of consecutive rows: lane 4 c + j holds row j of quad c. Bytes come
from the rows' own places in the file and are turned in registers: 16 bytes of 16 rows make four
vectors of 4 bytes per row. A product multiplies such a vector with four bytes of the activations,
which every lane gets; its sums are complete when the group's columns are through.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.simd import half
from quant.simd.vectors import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    f32x16,
    i32x16,
    splat_value,
    u8x64,
)

V16 = i32x16.llvm
V16F16 = ir.VectorType(F16, 16)
QUADS = (P,) * 5  # the first rows' addresses of four quads; bytes from row to row


def _row(b: Any, quads: Any, stride: Any, row: int) -> Any:
    """Address of the row in lane `row`."""
    return b.add(quads[row // 4], b.mul(stride, ir.Constant(I64, row % 4)))


def _join(b: Any, parts: list[Any]) -> Any:
    """Vectors side by side, by halves."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [
            b.shuffle_vector(parts[i], parts[i + 1], _lanes(list(range(2 * n))))
            for i in range(0, len(parts), 2)
        ]
    return parts[0]


def _words_of_16(b: Any, m: Any, v: Any) -> Any:
    """Quads, stride -> 4 x u8x64: vector k holds bytes 4 k .. 4 k + 3 of every row."""
    quads, stride = v[:4], v[4]
    part = ir.VectorType(I32, 4)
    x = []
    for j in range(4):
        rows = [_row(b, quads, stride, 4 * c + j) for c in range(4)]
        x.append(_join(b, [b.load(_pointer(b, at, part), align=1) for at in rows]))
    chunks = range(0, 16, 4)
    low = _lanes([c + i for c in chunks for i in (0, 16, 1, 17)])
    high = _lanes([c + i for c in chunks for i in (2, 18, 3, 19)])
    first = _lanes([c + i for c in chunks for i in (0, 1, 16, 17)])
    second = _lanes([c + i for c in chunks for i in (2, 3, 18, 19)])
    # rows 0 2 and 1 3 are interleaved first, so that they end in the order 0 1 2 3
    a, c = (b.shuffle_vector(x[0], x[1], lanes) for lanes in (low, high))
    d, e = (b.shuffle_vector(x[2], x[3], lanes) for lanes in (low, high))
    words = [
        b.shuffle_vector(s, t, lanes) for s, t in ((a, d), (c, e)) for lanes in (first, second)
    ]
    out = ir.Constant(ir.ArrayType(u8x64.llvm, 4), ir.Undefined)
    for k, word in enumerate(words):
        out = b.insert_value(out, b.bitcast(word, u8x64.llvm), k)
    return out


def _tails_of_8(first: list[int]) -> Any:
    """Quads, stride -> 8 bytes of 16 rows; the 16-bit words `first` of each, side by side."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        quads, stride = v[:4], v[4]
        halves = []
        for start in (0, 8):
            x = ir.Constant(ir.VectorType(ir.DoubleType(), 8), ir.Undefined)
            for i in range(8):  # doubles: LLVM then merges with vmovsd and vmovhps
                at = _row(b, quads, stride, start + i)
                word = b.load(_pointer(b, at, ir.DoubleType()), align=1)
                x = b.insert_element(x, word, ir.Constant(I32, i))
            halves.append(b.bitcast(x, ir.VectorType(I16, 32)))
        picked = [4 * row + k for row in range(16) for k in first]
        return b.shuffle_vector(halves[0], halves[1], _lanes(picked))

    return generate


def _last_half(b: Any, m: Any, v: Any) -> Any:
    bits = _tails_of_8([3])(b, m, v)
    return half.widen(b, b.bitcast(bits, V16F16))


def _middle_word(b: Any, m: Any, v: Any) -> Any:
    return b.bitcast(_tails_of_8([1, 2])(b, m, v), u8x64.llvm)


words_of_16 = _op(types.UniTuple(u8x64, 4), QUADS, _words_of_16)
last_half = _op(f32x16, QUADS, _last_half)  # bytes 6, 7 of the rows, read as halves
middle_word = _op(u8x64, QUADS, _middle_word)  # their bytes 2 .. 5


def _add_product(b: Any, m: Any, v: Any) -> Any:
    acc, weights, y = v
    word = splat_value(b, b.load(_pointer(b, y, I32), align=1), V16)
    values = [acc, b.bitcast(weights, V16), word]
    return isa._call(b, m, "llvm.x86.avx512.vpdpbusd.512", V16, values)


# acc + the products of a row's 4 bytes (unsigned) and 4 activations at an address
add_product = _op(i32x16, (i32x16, u8x64, P), _add_product)


def _splat_load(element: Any, vector: Any) -> Any:
    def generate(b: Any, m: Any, v: Any) -> Any:
        return splat_value(b, b.load(_pointer(b, v[0], element), align=1), vector.llvm)

    return _op(vector, (P,), generate)


splat_i32_at = _splat_load(I32, i32x16)
splat_f32_at = _splat_load(F32, f32x16)
zero_i32x16 = _op(i32x16, (), lambda b, m, v: ir.Constant(V16, [0] * 16))


def byte_table(values: list[int]) -> Any:
    """u8x64 -> values[byte], 256 of them, with two look-ups of 128 (needs VBMI)."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        kind = u8x64.llvm
        found = []
        for start in (0, 128):
            low, high = (
                ir.Constant(kind, [ir.Constant(I8, x) for x in values[k : k + 64]])
                for k in (start, start + 64)
            )
            args = [low, v[0], high]
            found.append(isa._call(b, m, "llvm.x86.avx512.vpermi2var.qi.512", kind, args))
        first_half = b.icmp_signed(">=", v[0], ir.Constant(kind, [0] * 64))
        return b.select(first_half, *found)

    return _op(u8x64, (u8x64,), generate)


def _store_lanes(n: int) -> Any:
    """The first n floats of each quad to an address of its own."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        for c in range(4):
            part = b.shuffle_vector(v[4], v[4], _lanes([4 * c + j for j in range(n)]))
            b.store(part, _pointer(b, v[c], part.type), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P, P, P, P, f32x16), generate)


store_quads = _store_lanes(4)
store_firsts = _store_lanes(1)


def _in_order(b: Any, m: Any, v: Any) -> Any:
    b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)
    return ir.Constant(I64, 0)


# No load or store moves across: keeps LLVM from doing everything at once, out of registers.
in_order = _op(types.int64, (), _in_order)
