"""SIMD values of `matvec_pairs`: products as 16-bit sums of two, and the sums of whole groups.

x86's `pmaddubsw` multiplies unsigned with signed bytes and adds neighbouring products in 16 bits.
Eight such vectors, each the 32 columns of a group, become one vector with a lane per group by
adding interleaved vectors: 32-bit lanes of two, then 64-bit lanes of two, then halves. Every such
addition doubles the numbers; as many as fit are made in 16 bits, the others after widening.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler.jit import bind, inline
from quant.simd.lookups import _spread
from quant.simd.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    _widening_load,
    call,
    constant,
    f32x8,
    i8x32,
    i16x16,
    i32x8,
    load_f32,
    splat_value,
    u8x32,
)

MOST_PAIR = 2 * 127  # what a weight of 1 makes at most of a pair of activations


def doublings(most: int) -> int:
    """How often sums of pairs of weights up to `most` may be doubled in 16 bits, at most 3."""
    fitting = [n for n in range(4) if (most * MOST_PAIR) << n <= 32767]
    if not fitting:
        raise ValueError(f"weights up to {most}: a pair of products does not fit in 16 bits")
    return fitting[-1]


def _pair_products(b: Any, m: Any, v: Any) -> Any:
    return call(b, m, "llvm.x86.avx2.pmadd.ub.sw", i16x16.llvm, list(v))


def _widen(b: Any, m: Any, x: Any) -> Any:
    """16-bit lanes -> 32-bit lanes, neighbours added."""
    if x.type == i32x8.llvm:
        return x
    return call(b, m, "llvm.x86.avx2.pmadd.wd", i32x8.llvm, [x, constant(i16x16.llvm, [1] * 16)])


def _add_interleaved(b: Any, x: Any, y: Any, element: Any) -> Any:
    """Lanes of `element` of x and y by turns, inside either half, the upper ones added."""
    n = 256 // element.width
    vector = ir.VectorType(element, n)
    half = n // 2
    low = [k + side for k in [*range(half // 2), *range(half, half + half // 2)] for side in (0, n)]
    high = [k + half // 2 for k in low]
    a, c = b.bitcast(x, vector), b.bitcast(y, vector)
    return b.add(
        b.bitcast(b.shuffle_vector(a, c, _lanes(low)), x.type),
        b.bitcast(b.shuffle_vector(a, c, _lanes(high)), x.type),
    )


def _add_halves(b: Any, x: Any, y: Any) -> Any:
    """[ lower half of x + upper half of x | the same of y ]."""
    vector = ir.VectorType(I64, 4)
    a, c = b.bitcast(x, vector), b.bitcast(y, vector)
    return b.add(
        b.bitcast(b.shuffle_vector(a, c, _lanes([0, 1, 4, 5])), x.type),
        b.bitcast(b.shuffle_vector(a, c, _lanes([2, 3, 6, 7])), x.type),
    )


@cache
def reductions(in_16_bits: int) -> dict[str, Any]:
    """The steps from 8 vectors of pairs to sums of groups; so many of them in 16 bits.

    add_lanes(x, y), add_pairs(x, y): two of four vectors that become one with, in either half, a
    lane for each: sums of 16 columns. halves(x): these as i32x8. groups(x, y): two such, of groups
    0 .. 3 and 4 .. 7 -> i32x8, a lane for each group of 32.
    """
    kinds = [i16x16 if step <= in_16_bits else i32x8 for step in range(4)]

    def adder(step: int, add: Any) -> Any:
        def generate(b: Any, m: Any, v: Any) -> Any:
            x, y = v
            if kinds[step] is i32x8:
                x, y = _widen(b, m, x), _widen(b, m, y)
            return add(b, x, y)

        return _op(kinds[step], (kinds[step - 1],) * 2, generate)

    def groups(b: Any, m: Any, v: Any) -> Any:
        x, y = v
        if kinds[3] is i32x8:
            x, y = _widen(b, m, x), _widen(b, m, y)
        return _widen(b, m, _add_halves(b, x, y))

    return {
        "add_lanes": adder(1, lambda b, x, y: _add_interleaved(b, x, y, I32)),
        "add_pairs": adder(2, lambda b, x, y: _add_interleaved(b, x, y, I64)),
        "halves": _op(i32x8, (kinds[2],), lambda b, m, v: _widen(b, m, v[0])),
        "groups": _op(i32x8, (kinds[2],) * 2, groups),
    }


# unsigned weights . activations: sums of neighbours; 2 * 127 times the largest weight must fit
pair_products = _op(i16x16, (u8x32, i8x32), _pair_products)


# --- groups of 16: their lanes are even groups, then odd ones ("by turns") ----------------------

BY_TURNS = [0, 2, 4, 6, 1, 3, 5, 7]


def _order(x: Any, b: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, x, _lanes(lanes))


by_turns_i32 = _op(i32x8, (i32x8,), lambda b, m, v: _order(v[0], b, BY_TURNS))
in_order = _op(  # from by turns to 0 .. 7
    f32x8, (f32x8,), lambda b, m, v: _order(v[0], b, [BY_TURNS.index(k) for k in range(8)])
)
load_f32x4_by_turns = _widening_load(  # the scales of 4 groups of 32: a b c d a b c d
    F32, 4, f32x8, lambda b, x: b.shuffle_vector(x, x, _lanes([0, 1, 2, 3] * 2))
)


def load_one_f32(at: int) -> Any:
    """`scales` of a type whose `prepare` has left them at z + at."""
    return inline(bind(_one_f32, f"one_f32_{at}", AT=at))


def load_two_f32(at: int) -> Any:
    """The same of groups of 16."""
    return inline(bind(_two_f32, f"two_f32_{at}", AT=at))


AT = 0


def _one_f32(p: int, z: int) -> Any:
    return load_f32(z + AT)


def _two_f32(p: int, z: int) -> tuple[Any, Any]:
    return load_f32(z + AT), load_f32(z + AT + 32)


def _sums_of_8(b: Any, m: Any, v: Any) -> Any:
    """128 bytes -> 16-bit sums of 8 each, the low one of a lane first."""
    ones = constant(u8x32.llvm, [1] * 32)
    fours = []
    for k in range(4):
        at = b.add(v[0], ir.Constant(I64, 32 * k))
        y = b.load(_pointer(b, at, i8x32.llvm), align=1)
        fours.append(_widen(b, m, _pair_products(b, m, [ones, y])))
    x, y = (b.shuffle_vector(fours[k], fours[k + 1], _lanes([*range(16)])) for k in (0, 2))
    both = b.shuffle_vector(x, y, _lanes([*range(32)]))
    eights = b.add(
        b.shuffle_vector(both, both, _lanes([2 * k for k in range(16)])),
        b.shuffle_vector(both, both, _lanes([2 * k + 1 for k in range(16)])),
    )
    return b.bitcast(b.trunc(eights, i16x16.llvm), i32x8.llvm)


sums_of_8 = _op(i32x8, (P,), _sums_of_8)
dot_i16 = _op(  # products of signed 16-bit lanes, neighbours added
    i32x8,
    (i16x16, i16x16),
    lambda b, m, v: call(b, m, "llvm.x86.avx2.pmadd.wd", i32x8.llvm, list(v)),
)
minus_7_or_9 = _op(  # 16-bit lanes of 0 or 2 -> -7 or -9
    i16x16,
    (i32x8,),
    lambda b, m, v: b.sub(constant(i16x16.llvm, [-7] * 16), b.bitcast(v[0], i16x16.llvm)),
)


# --- signs --------------------------------------------------------------------------------------


def _turn(b: Any, m: Any, v: Any) -> Any:
    """Byte k of v[0] negative where bit k % 8 of the byte k // 8 at the address v[1] is set."""
    y, address = v
    word = splat_value(b, b.load(_pointer(b, address, I32), align=1), i32x8.llvm)
    spread = _spread(b, b.bitcast(word, u8x32.llvm))
    bits = [1 << k % 8 for k in range(32)]
    # bit + (128 - bit) has the top bit; bit 7 stands there already, and 0 would erase y
    rest = [128 - bit if bit < 128 else 1 for bit in bits]
    marked = b.add(b.and_(spread, constant(u8x32.llvm, bits)), constant(u8x32.llvm, rest))
    return call(b, m, "llvm.x86.avx2.psign.b", i8x32.llvm, [y, marked])


turn = _op(i8x32, (i8x32, P), _turn)
turn_like = _op(  # y with the signs of the other: 0 where that is 0
    i8x32, (i8x32, i8x32), lambda b, m, v: call(b, m, "llvm.x86.avx2.psign.b", i8x32.llvm, list(v))
)
magnitudes = _op(
    u8x32,
    (i8x32,),
    lambda b, m, v: call(b, m, "llvm.abs.v32i8", u8x32.llvm, [v[0], ir.Constant(ir.IntType(1), 0)]),
)
# --- bytes: what intrinsics of types are made of --------------------------------------------------


def load_bytes(b: Any, address: Any, n: int, at: int = 0) -> Any:
    """N bytes at address + at."""
    where = b.add(address, ir.Constant(I64, at))
    return b.load(_pointer(b, where, ir.VectorType(I8, n)), align=1)


def spread_bytes(b: Any, x: Any) -> Any:
    """N bytes, as often as they go into 32."""
    return b.shuffle_vector(x, x, _lanes([k % x.type.count for k in range(32)]))


def join_halves_of(b: Any, x: Any, y: Any) -> Any:
    """The lower half of x and the upper half of y."""
    return b.shuffle_vector(x, y, _lanes([*range(16), *range(48, 64)]))


def times(b: Any, m: Any, v: Any, factors: list[int]) -> tuple[Any, Any]:
    """16-bit lanes: the lower bytes of v[0], and of v[1], times a factor for each lane.

    Of bytes, (x, x): its even ones and its odd ones.
    """
    even = constant(i8x32.llvm, [f for x in factors for f in (x, 0)])
    odd = even if v[0] is not v[1] else constant(i8x32.llvm, [f for x in factors for f in (0, x)])
    first, second = (_pair_products(b, m, pair) for pair in ((v[0], even), (v[1], odd)))
    return b.bitcast(first, u8x32.llvm), b.bitcast(second, u8x32.llvm)


def high_bytes(b: Any, x: Any, y: Any) -> Any:
    """The upper bytes of 16-bit lanes: those of x as even bytes, of y as odd ones."""
    words = b.lshr(b.bitcast(x, i16x16.llvm), constant(i16x16.llvm, [8] * 16))
    return b.shuffle_vector(
        b.bitcast(words, u8x32.llvm), y, _lanes([k + 32 * (k % 2) for k in range(32)])
    )


def _down(b: Any, m: Any, v: Any) -> Any:
    by = splat_value(b, b.trunc(v[1], I16), i16x16.llvm)
    return b.bitcast(b.lshr(b.bitcast(v[0], i16x16.llvm), by), u8x32.llvm)


# shifted by a constant inside 16 bits: what comes from the other byte is the caller's to mask
words_down = _op(u8x32, (u8x32, types.int64), _down)


def _up(b: Any, m: Any, v: Any) -> Any:
    by = splat_value(b, b.trunc(v[1], I16), i16x16.llvm)
    return b.bitcast(b.shl(b.bitcast(v[0], i16x16.llvm), by), u8x32.llvm)


words_up = _op(u8x32, (u8x32, types.int64), _up)


# --- small numbers --------------------------------------------------------------------------------

every_other_down = _op(  # lanes 1, 3, 5, 7 shifted right by 2
    i32x8, (i32x8,), lambda b, m, v: b.ashr(v[0], constant(i32x8.llvm, [0, 2] * 4))
)
TWO_BY_TURNS = [*BY_TURNS, *(k + 8 for k in BY_TURNS)]


def _two_vectors(b: Any, x: Any, widen: Any) -> Any:
    """16 bytes -> two vectors of floats."""
    out = ir.Constant(ir.ArrayType(f32x8.llvm, 2), ir.Undefined)
    for k in range(2):
        part = b.shuffle_vector(x, x, _lanes([*range(8 * k, 8 * k + 8)]))
        out = b.insert_value(out, b.sitofp(widen(part, i32x8.llvm), f32x8.llvm), k)
    return out


def sixteen_nibbles(shift: int, order: list[int]) -> Any:
    """An intrinsic: 16 bytes at an address -> bits shift .. shift + 3 of each, as floats."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        kind = ir.VectorType(I8, 16)
        x = b.load(_pointer(b, v[0], kind), align=1)
        x = b.and_(b.lshr(x, constant(kind, [shift] * 16)), constant(kind, [15] * 16))
        return _two_vectors(b, b.shuffle_vector(x, x, _lanes(order)), b.zext)

    return _op(types.UniTuple(f32x8, 2), (P,), generate)


def _sixteen_signed(b: Any, m: Any, v: Any) -> Any:
    pair = ir.Constant(ir.VectorType(I64, 2), ir.Undefined)
    for k in range(2):
        pair = b.insert_element(pair, v[k], ir.Constant(I32, k))
    x = b.bitcast(pair, ir.VectorType(I8, 16))
    return _two_vectors(b, b.shuffle_vector(x, x, _lanes(TWO_BY_TURNS)), b.sext)


# two int64 of 8 signed bytes each -> floats, by turns
signed_bytes_by_turns = _op(types.UniTuple(f32x8, 2), (types.int64,) * 2, _sixteen_signed)
