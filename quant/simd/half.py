"""float16 <-> float32 in LLVM: the processor's conversion, or integer steps where it has none.

Without F16C, LLVM would call functions of a compiler's library that is not there. The steps give
the same values: widening is exact, narrowing rounds to the nearest, ties to even.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.compiler import isa

IN_HARDWARE = (
    not isa.X86 or "f16c" in isa.NEEDS.get(isa.NAME, ()) or "+f16c" in isa.target()[1].split(",")
)


def _like(x: Any, element: Any) -> Any:
    """The type of x with other elements."""
    if isinstance(x.type, ir.VectorType):
        return ir.VectorType(element, x.type.count)
    return element


def _all(kind: Any, value: Any) -> Any:
    """A constant, in every lane."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def widen(b: Any, x: Any) -> Any:
    """LLVM for float32 of a half, or of a vector of halves."""
    floats = _like(x, ir.FloatType())
    if IN_HARDWARE:
        return b.fpext(x, floats)
    ints = _like(x, ir.IntType(32))
    bits = b.zext(b.bitcast(x, _like(x, ir.IntType(16))), ints)
    sign = b.shl(b.and_(bits, _all(ints, 0x8000)), _all(ints, 16))
    size = b.shl(b.and_(bits, _all(ints, 0x7FFF)), _all(ints, 13))
    # the exponent counts from 15 instead of 127; denormal halves come out right, too
    moved = b.bitcast(b.fmul(b.bitcast(size, floats), _all(floats, 2.0**112)), ints)
    special = b.icmp_unsigned(">=", size, _all(ints, 0x0F800000))  # infinite or not a number
    value = b.select(special, b.or_(size, _all(ints, 0x7F800000)), moved)
    return b.bitcast(b.or_(value, sign), floats)


def narrow(b: Any, x: Any) -> Any:
    """LLVM for the nearest half of a float32, or of a vector of them."""
    halves = _like(x, ir.HalfType())
    if IN_HARDWARE:
        return b.fptrunc(x, halves)
    floats, ints = x.type, _like(x, ir.IntType(32))
    bits = b.bitcast(x, ints)
    sign = b.and_(b.lshr(bits, _all(ints, 16)), _all(ints, 0x8000))
    size = b.and_(bits, _all(ints, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, _all(ints, 13)), _all(ints, 1))
    # the exponent moved by 15 - 127, and half of the last place, or a bit less, added
    rounded = b.add(b.add(size, odd), _all(ints, (-112 << 23) + 0xFFF & 0xFFFFFFFF))
    normal = b.lshr(rounded, _all(ints, 13))
    # denormal: adding 0.5 rounds where the last place of a half is
    sum_ = b.bitcast(b.fadd(b.bitcast(size, floats), _all(floats, 0.5)), ints)
    small = b.sub(sum_, _all(ints, 0x3F000000))
    no_number = b.icmp_unsigned(">", size, _all(ints, 0x7F800000))
    large = b.select(no_number, _all(ints, 0x7E00), _all(ints, 0x7C00))
    value = b.select(b.icmp_unsigned("<", size, _all(ints, 0x38800000)), small, normal)
    value = b.select(b.icmp_unsigned(">=", size, _all(ints, 0x47800000)), large, value)
    words = b.trunc(b.or_(value, sign), _like(x, ir.IntType(16)))
    return b.bitcast(words, halves)
