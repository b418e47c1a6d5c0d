"""64 bytes at a time with AVX-512 VBMI, GFNI and VNNI: what `isa.VBMI` stands for.

`mask64` is one bit per byte (a mask register). Everything else works on the types of simd.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.simd.vectors import (
    I1,
    I8,
    I16,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    _vector_type,
    _widening_load,
    call,
    constant,
    f32x16,
    i32x16,
    splat_value,
    u8x64,
)

mask64 = _vector_type("mask64", I1, 64)
_V64I8, _V16I32, _V8I64 = u8x64.llvm, i32x16.llvm, ir.VectorType(I64, 8)
_ZERO = constant(_V64I8, [0] * 64)


# --- masks ----------------------------------------------------------------------------------------


def _not(b: Any, mask: Any) -> Any:
    return b.xor(mask, ir.Constant(mask64.llvm, [1] * 64))


def _has_bit_by_test(b: Any, m: Any, v: Any) -> Any:
    bit = b.shl(ir.Constant(I8, 1), b.trunc(v[1], I8))
    return b.icmp_unsigned("!=", b.and_(v[0], splat_value(b, bit, _V64I8)), _ZERO)


def _has_bit_by_top_bit(b: Any, m: Any, v: Any) -> Any:
    """The bit is shifted to the top, which another port takes into a mask than tests do.

    The empty inline assembly keeps LLVM from making a test of it, and from doing it for every use.
    """
    words = ir.VectorType(I16, 32)
    up = b.sub(ir.Constant(I16, 7), b.trunc(v[1], I16))
    x = b.bitcast(b.shl(b.bitcast(v[0], words), splat_value(b, up, words)), _V64I8)
    x = b.asm(ir.FunctionType(_V64I8, [_V64I8]), "", "=v,0", [x], side_effect=False)
    bits = b.bitcast(b.icmp_signed("<", x, _ZERO), I64)
    bits = b.asm(ir.FunctionType(I64, [I64]), "", "=k,0", [bits], side_effect=False)
    return b.bitcast(bits, mask64.llvm)


def _equals(b: Any, m: Any, v: Any) -> Any:
    return b.icmp_unsigned("==", v[0], splat_value(b, b.trunc(v[1], I8), _V64I8))


has_bit_by_test = _op(mask64, (u8x64, types.int64), _has_bit_by_test)
has_bit_by_top_bit = _op(mask64, (u8x64, types.int64), _has_bit_by_top_bit)
# bytes in which this bit is set; 0: the lowest
has_bit = has_bit_by_top_bit if isa.SLOW_SHUFFLES else has_bit_by_test
top_bit = _op(mask64, (u8x64,), lambda b, m, v: b.icmp_signed("<", v[0], _ZERO))
equals = _op(mask64, (u8x64, types.int64), _equals)
above = _op(mask64, (u8x64, u8x64), lambda b, m, v: b.icmp_unsigned(">", v[0], v[1]))
both = _op(mask64, (mask64, mask64), lambda b, m, v: b.and_(v[0], v[1]))
only = _op(mask64, (mask64, mask64), lambda b, m, v: b.and_(v[0], _not(b, v[1])))
load_mask = _op(  # 8 bytes, lowest bit first
    mask64,
    (P,),
    lambda b, m, v: b.bitcast(b.load(_pointer(b, v[0], I64), align=1), mask64.llvm),
)
choose = _op(u8x64, (mask64, u8x64, u8x64), lambda b, m, v: b.select(v[0], v[1], v[2]))
mask_bits = _op(types.int64, (mask64,), lambda b, m, v: b.bitcast(v[0], I64))


# --- look-ups and bit fields ----------------------------------------------------------------------


def _look_up_128(b: Any, m: Any, v: Any) -> Any:
    """table[i] for the low 7 bits of 64 indices i; 128 bytes in two vectors."""
    i, low, high = v
    return call(b, m, "llvm.x86.avx512.vpermi2var.qi.512", _V64I8, [low, i, high])


def _look_up_64(b: Any, m: Any, v: Any) -> Any:
    """table[i] for the low 6 bits of 64 indices i."""
    return call(b, m, "llvm.x86.avx512.permvar.qi.512", _V64I8, [v[1], v[0]])


look_up_128 = _op(u8x64, (u8x64, u8x64, u8x64), _look_up_128)
look_up_64 = _op(u8x64, (u8x64, u8x64), _look_up_64)


def bit_fields(shifts: list[int]) -> Any:
    """Byte k of each 8 bytes = the eight bits from bit shifts[k] of these 64 on."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        places = constant(_V64I8, shifts * 8)
        return call(b, m, "llvm.x86.avx512.pmultishift.qb.512", _V64I8, [places, v[0]])

    return _op(u8x64, (u8x64,), generate)


def _affine(rows: list[int]) -> Any:
    """Bit k of a byte = the parity of its bits under the mask rows[k]."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        matrix = constant(_V64I8, rows[::-1] * 8)  # the instruction wants the row of bit 7 first
        zero = ir.Constant(I8, 0)
        return call(b, m, "llvm.x86.vgf2p8affineqb.512", _V64I8, [v[0], matrix, zero])

    return _op(u8x64, (u8x64,), generate)


parity_over_low_7 = _affine([1 << k for k in range(7)] + [0x7F])  # bit 7 := parity of bits 0-6
parity_over_high_7 = _affine([2 << k for k in range(7)] + [0xFE])  # bits 1-7, then their parity


# --- two rows side by side ------------------------------------------------------------------------


def _pick_pairs(element: Any, order: list[int], widen: Any = None) -> Any:
    """Two addresses: from each len(order) / 2 elements, taken together in this order."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        half = ir.VectorType(element, len(order) // 2)
        x, y = (b.load(_pointer(b, at, half), align=1) for at in v)
        z = b.shuffle_vector(x, y, _lanes(order))
        return b.bitcast(b.zext(z, widen) if widen else z, _V64I8)

    return _op(u8x64, (P, P), generate)


_TURNS = [0, 4, 1, 5, 2, 6, 3, 7]  # first, second, first, ... of four each
load_8_by_turns = _pick_pairs(I64, _TURNS)  # 32 bytes of each row, 8 by 8
load_4_by_turns = _pick_pairs(I32, _TURNS, _V8I64)  # 16 of each, 4 by 4, each with 4 zeros
load_2_by_turns = _pick_pairs(I16, _TURNS, _V8I64)  # 8 of each, 2 by 2, each with 6 zeros


def _pick_by_turns(first: int) -> Any:
    def generate(b: Any, m: Any, v: Any) -> Any:
        order = [4 * q + first + k for q in range(4) for k in (0, 2, 16, 18)]
        x, y = (b.load(_pointer(b, at, _V16I32), align=1) for at in v)
        return b.bitcast(b.shuffle_vector(x, y, _lanes(order)), _V64I8)

    return _op(u8x64, (P, P), generate)


# of the 16 words of 32 bits at two addresses the even (odd) ones, two of each by turns
evens_by_turns, odds_by_turns = _pick_by_turns(0), _pick_by_turns(1)


def _pick_bytes(first: int) -> Any:
    def generate(b: Any, m: Any, v: Any) -> Any:
        order = [
            16 * q + 2 * k + first + 64 * r for q in range(4) for r in range(2) for k in range(8)
        ]
        x, y = (b.load(_pointer(b, at, _V64I8), align=1) for at in v)
        return b.shuffle_vector(x, y, _lanes(order))

    return _op(u8x64, (P, P), generate)


# the same of 64 bytes, 8 of each by turns
even_bytes_by_turns, odd_bytes_by_turns = _pick_bytes(0), _pick_bytes(1)


def _interleave(first: int) -> Any:
    """Of two vectors of rows by turns, one row: bytes 2 k and 2 k + 1 are its bytes k of both."""
    order = [16 * q + first + k + 64 * n for q in range(4) for k in range(8) for n in range(2)]
    return lambda b, m, v: b.shuffle_vector(v[0], v[1], _lanes(order))


interleave_first = _op(u8x64, (u8x64, u8x64), _interleave(0))
interleave_second = _op(u8x64, (u8x64, u8x64), _interleave(8))


# --- fields of scales: 16 lanes of 32 bits --------------------------------------------------------


def _wide_fields(
    element: Any, order: list[int], shifts: list[int], mask: int, rows: int = 1
) -> Any:
    """One or two addresses: elements there in this order, shifted right and masked."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        half = ir.VectorType(element, (max(order) + 1) // len(v))
        x = [b.load(_pointer(b, at, half), align=1) for at in v]
        z = b.zext(b.shuffle_vector(x[0], x[-1], _lanes(order)), _V16I32)
        return b.and_(b.lshr(z, constant(_V16I32, shifts)), constant(_V16I32, [mask] * 16))

    return _op(i32x16, (P,) * rows, generate)


_TWO_BY_TURNS = [2 * q + k + 8 * r for q in range(4) for r in range(2) for k in range(2)]
load_nibbles_16 = _wide_fields(I8, [k // 2 for k in range(16)], [0, 4] * 8, 15)  # of 8 bytes
load_3_bits_16 = _wide_fields(  # of four times 12 bits in 16
    I16, [k // 4 for k in range(16)], [0, 3, 6, 9] * 4, 7
)
load_nibbles_by_turns = _wide_fields(  # of 4 bytes of each row, two by turns
    I8, [q + 4 * r for q in range(4) for r in (0, 0, 1, 1)], [0, 4] * 8, 15, rows=2
)
load_u16_by_turns = _wide_fields(I16, _TWO_BY_TURNS, [0] * 16, 0xFFFF, rows=2)  # 8 of each row


# --- lanes ----------------------------------------------------------------------------------------


def _add_dots(b: Any, m: Any, v: Any) -> Any:
    values = [v[0], *(b.bitcast(x, _V16I32) for x in v[1:])]
    return call(b, m, "llvm.x86.avx512.vpdpbusd.512", _V16I32, values)


def _sum_pairs(b: Any, m: Any, v: Any) -> Any:
    order = [4 * q + k for q in range(4) for k in (0, 2, 16, 18)]
    even, odd = (b.shuffle_vector(*v, _lanes([k + i for k in order])) for i in (0, 1))
    return b.add(even, odd)


def _two_by_turns(b: Any, m: Any, v: Any) -> Any:
    x, y = (splat_value(b, s, f32x16.llvm) for s in v)
    return b.shuffle_vector(x, y, _lanes([k + 16 * (k // 2 % 2) for k in range(16)]))


def _shuffled(order: list[int]) -> Any:
    return lambda b, m, v: b.shuffle_vector(v[0], v[0], _lanes(order))


zero_i32x16 = _op(i32x16, (), lambda b, m, v: ir.Constant(_V16I32, [0] * 16))
add_dots = _op(i32x16, (i32x16, u8x64, u8x64), _add_dots)  # + four products per lane, u8 x s8
sum_pairs = _op(i32x16, (i32x16, i32x16), _sum_pairs)  # of two rows, then two of each by turns
two_by_turns = _op(f32x16, (types.float32, types.float32), _two_by_turns)  # a a b b a a b b ...
rows_apart = _op(  # two of each by turns -> lanes 0-7 of the first, 8-15 of the second
    f32x16, (f32x16,), _shuffled([4 * (k % 8 // 2) + k % 2 + k // 8 * 2 for k in range(16)])
)
as_i32x16 = _op(i32x16, (u8x64,), lambda b, m, v: b.bitcast(v[0], _V16I32))
shift_right = _op(  # 32-bit lanes
    i32x16,
    (i32x16, types.int64),
    lambda b, m, v: b.lshr(v[0], splat_value(b, b.trunc(v[1], I32), _V16I32)),
)


def _shift_words(b: Any, m: Any, v: Any) -> Any:
    words = ir.VectorType(I16, 32)
    by = splat_value(b, b.trunc(v[1], I16), words)
    return b.bitcast(b.lshr(b.bitcast(v[0], words), by), _V64I8)


shift_words = _op(u8x64, (u8x64, types.int64), _shift_words)  # 16-bit lanes: neighbours leak in


# --- activations ----------------------------------------------------------------------------------


def _store_by_fours(b: Any, m: Any, v: Any) -> Any:
    """256 bytes at v[0] -> v[1]: bytes 0 4 8 ... 252, then 1 5 ..., 2 6 ..., 3 7 ... ."""
    load = lambda k: b.load(  # noqa: E731
        _pointer(b, b.add(v[0], ir.Constant(I64, 64 * k)), _V64I8), align=1
    )
    rows = [load(k) for k in range(4)]
    for first in (0, 2):  # two of the four results at a time
        order = [first + i + 4 * k for i in range(2) for k in range(32)]
        x, y = (b.shuffle_vector(*rows[k : k + 2], _lanes(order)) for k in (0, 2))
        for i in range(2):
            lanes = [32 * i + k + 64 * n for n in range(2) for k in range(32)]
            at = b.add(v[1], ir.Constant(I64, 64 * (first + i)))
            b.store(b.shuffle_vector(x, y, _lanes(lanes)), _pointer(b, at, _V64I8), align=1)
    return ir.Constant(I64, 0)


store_by_fours = _op(types.int64, (P, P), _store_by_fours)
_PAIRS = [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]
load_pairs_f32 = _widening_load(  # 8 numbers: 0 1 0 1 2 3 2 3 ...
    ir.FloatType(), 8, f32x16, lambda b, x: b.shuffle_vector(x, x, _lanes(_PAIRS))
)
load_pairs_i32 = _widening_load(I32, 8, i32x16, lambda b, x: b.shuffle_vector(x, x, _lanes(_PAIRS)))
store_i32x16 = _op(
    types.int64,
    (P, i32x16),
    lambda b, m, v: (
        b.store(v[1], _pointer(b, v[0], _V16I32), align=1),
        ir.Constant(I64, 0),
    )[1],
)
