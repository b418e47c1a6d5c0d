"""Bits to bytes and small scale numbers to floats: what the block types' kernels share."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.simd import half
from quant.simd.vectors import (
    F16,
    I1,
    I8,
    I16,
    I32,
    P,
    _op,
    _pointer,
    _widening_load,
    constant,
    f32x8,
    i8x32,
    i32x8,
    splat_value,
    u8x32,
    u8x64,
)


def byte_constant(values: list[int]) -> Any:
    """An intrinsic without arguments: these bytes as u8x32 or u8x64."""
    vector = u8x32 if len(values) == 32 else u8x64
    return _op(vector, (), lambda b, m, v: constant(vector.llvm, values))


def _shuffle(lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(I32, 32), lanes)
    return lambda b, m, v: b.shuffle_vector(v[0], v[-1], mask)


def _bit_mask(b: Any, m: Any, v: Any) -> Any:
    bits = b.bitcast(b.load(_pointer(b, v[0], I32), align=1), ir.VectorType(I1, 32))
    return b.sext(bits, u8x32.llvm)


def _load_word_8_times(b: Any, m: Any, v: Any) -> Any:
    word = b.load(_pointer(b, v[0], I32), align=1)
    return b.bitcast(splat_value(b, word, i32x8.llvm), u8x32.llvm)


def move_halves(low: int, high: int, mask: int) -> Any:
    """An intrinsic: u8x64, its halves shifted left (< 0: right) in their bytes, masked."""
    words = ir.VectorType(I16, 32)
    left = [max(low, 0)] * 16 + [max(high, 0)] * 16
    right = [max(-low, 0)] * 16 + [max(-high, 0)] * 16

    def generate(b: Any, m: Any, v: Any) -> Any:
        x = b.bitcast(v[0], words)
        x = b.shl(x, constant(words, left)) if any(left) else x
        x = b.lshr(x, constant(words, right)) if any(right) else x
        return b.and_(b.bitcast(x, u8x64.llvm), constant(u8x64.llvm, [mask] * 64))

    return _op(u8x64, (u8x64,), generate)


def _trits(b: Any, m: Any, v: Any) -> Any:
    above = [b.icmp_unsigned(">", v[0], constant(u8x32.llvm, [n] * 32)) for n in (85, 170)]
    first, second = (b.zext(x, i8x32.llvm) for x in above)
    return b.add(b.add(first, second), constant(i8x32.llvm, [-1] * 32))


def _first_trits(b: Any, m: Any, v: Any) -> Any:
    above = [b.icmp_unsigned(">", v[0], constant(u8x64.llvm, [n] * 64)) for n in (85, 170)]
    first, second = (b.zext(x, u8x64.llvm) for x in above)
    return b.add(first, second)


def _halves(b: Any, m: Any, v: Any) -> Any:
    bits = b.trunc(v[0], ir.VectorType(I16, 8))
    return half.widen(b, b.bitcast(bits, ir.VectorType(F16, 8)))


bit_mask = _op(u8x32, (P,), _bit_mask)  # 4 bytes, lowest bit first -> 0 or 255 per bit
load_u8x4_8_times = _op(u8x32, (P,), _load_word_8_times)
join_halves = _op(u8x32, (u8x32, u8x32), _shuffle([*range(16), *range(48, 64)]))  # a low, b high
swap_middle = _op(
    u8x32, (u8x32,), _shuffle([*range(8), *range(16, 24), *range(8, 16), *range(24, 32)])
)
trits = _op(i8x32, (u8x32,), _trits)  # byte / 256 in base 3: its first digit, less 1
first_trits = _op(u8x64, (u8x64,), _first_trits)  # the same, not less 1
load_u8_as_i32 = _widening_load(I8, 8, i32x8, lambda b, x: b.zext(x, i32x8.llvm))
halves_from_bits = _op(f32x8, (i32x8,), _halves)  # the low 16 bits of each lane read as a half
