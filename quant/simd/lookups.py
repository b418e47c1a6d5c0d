"""Code-book look-ups and signs: what the IQ types' kernels share.

Tables are constants of the compiled kernel: `NAME = table("name", make)` in a type's module, and in
its kernels `NAME()` is the table's address. `make` runs only when a kernel is compiled.

Words are merged in registers, never through memory: a wide load right after narrow stores would
wait for all of them. Indices are made 16 at a time (i16x16) and looked up four at a time, as the
16-bit fields of an int64 (`quad_0` .. `quad_3`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.simd import half
from quant.simd.vectors import (
    F16,
    I8,
    I16,
    I32,
    I64,
    P,
    _op,
    _pointer,
    _widening_load,
    as_u8,
    constant,
    f32x8,
    i8x32,
    i16x16,
    i32x8,
    lookup16,
    splat_value,
    store_f32,
    to_f32,
    u8x32,
    u8x64,
)


def table(name: str, make: Callable[[], np.ndarray]) -> Any:
    """An intrinsic without arguments: the address of a constant with the bytes of `make()`."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        data = m.globals.get(f"quant.{name}")
        if data is None:
            content = bytearray(make().tobytes())
            kind = ir.ArrayType(I8, len(content))
            data = ir.GlobalVariable(m, kind, f"quant.{name}")
            data.initializer = ir.Constant(kind, content)
            data.linkage = "internal"
            data.global_constant = True
            data.align = 64
        return b.ptrtoint(data, I64)

    return _op(types.intp, (), generate)


# --- indices ------------------------------------------------------------------------------------


load_u8_as_i16 = _widening_load(I8, 16, i16x16, lambda b, x: b.zext(x, i16x16.llvm))


def _high_bits(element: Any, shifts: list[int], mask: int) -> Any:
    """Address -> i16x16: each number there len(shifts) times, shifted left (< 0: right), masked."""
    n = 16 // len(shifts)
    repeat = ir.Constant(ir.VectorType(I32, 16), [k // len(shifts) for k in range(16)])

    def generate(b: Any, m: Any, v: Any) -> Any:
        x = b.load(_pointer(b, v[0], ir.VectorType(element, n)), align=1)
        x = b.shuffle_vector(x, x, repeat)
        x = x if element is I16 else b.zext(x, i16x16.llvm)
        x = b.shl(x, constant(i16x16.llvm, [max(k, 0) for k in shifts] * n))
        x = b.lshr(x, constant(i16x16.llvm, [max(-k, 0) for k in shifts] * n))
        return b.and_(x, constant(i16x16.llvm, [mask] * 16))

    return _op(i16x16, (P,), generate)


high_bits_1 = _high_bits(I8, [8, 7, 6, 5, 4, 3, 2, 1], 0x100)  # IQ3_S
high_bits_2 = _high_bits(I8, [8, 6, 4, 2], 0x300)  # IQ2_S
high_bits_3 = _high_bits(I16, [8, 5, 2, -1], 0x700)  # IQ1_S
high_bits_4 = _high_bits(I16, [8, 4, 0, -4], 0x700)  # IQ1_M, below the shift bits


def _quad(k: int) -> Any:
    def generate(b: Any, m: Any, v: Any) -> Any:
        word = b.extract_element(b.bitcast(v[0], ir.VectorType(I64, 4)), ir.Constant(I32, k))
        # an empty instruction: LLVM would make one (slow) lane extraction per index of this word
        return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [word], side_effect=False)

    return _op(types.int64, (i16x16,), generate)


quad_0, quad_1, quad_2, quad_3 = (_quad(k) for k in range(4))  # lanes 4 k .. 4 k + 3


def _load_opaque(element: Any) -> Any:
    """An intrinsic: the number at an address, of which LLVM must not load the fields one by one.

    Loads are what look-ups wait for.
    """

    def generate(b: Any, m: Any, v: Any) -> Any:
        word = b.load(_pointer(b, v[0], element), align=1)
        word = b.asm(ir.FunctionType(element, [element]), "", "=r,0", [word], side_effect=False)
        return b.zext(word, I64) if element is I32 else word

    return _op(types.int64, (P,), generate)


load_quad, load_word = _load_opaque(I64), _load_opaque(I32)


def _load_nibbles(b: Any, m: Any, v: Any) -> Any:
    half = ir.VectorType(I32, 4)
    x = b.load(_pointer(b, v[0], half), align=1)
    x = b.shuffle_vector(x, x, ir.Constant(i32x8.llvm, [0, 1, 2, 3] * 2))
    x = b.lshr(x, constant(i32x8.llvm, [0] * 4 + [4] * 4))
    return b.and_(b.bitcast(x, u8x32.llvm), constant(u8x32.llvm, [15] * 32))


load_nibbles = _op(u8x32, (P,), _load_nibbles)  # 16 bytes -> low nibbles, then high nibbles


def _load_nibbles_64(b: Any, m: Any, v: Any) -> Any:
    eight = ir.VectorType(I64, 8)
    x = b.load(_pointer(b, v[0], ir.VectorType(I64, 4)), align=1)
    x = b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, 8), [0, 1, 0, 1, 2, 3, 2, 3]))
    x = b.lshr(x, constant(eight, [0, 0, 4, 4] * 2))
    return b.and_(b.bitcast(x, u8x64.llvm), constant(u8x64.llvm, [15] * 64))


def _lookup16_64(b: Any, m: Any, v: Any) -> Any:
    table = b.load(_pointer(b, v[0], ir.VectorType(I8, 16)), align=1)
    table = b.shuffle_vector(table, table, ir.Constant(ir.VectorType(I32, 64), [*range(16)] * 4))
    return isa.shuffle_bytes_64(b, m, table, v[1])


load_nibbles_64 = _op(u8x64, (P,), _load_nibbles_64)  # the same of 16 bytes and of the next 16
lookup16_64 = _op(u8x64, (P, u8x64), _lookup16_64)  # 64 indices 0..15 into a table of 16 bytes

# --- words --------------------------------------------------------------------------------------


def _words(element: Any, n: int) -> Any:
    """N addresses -> the table words there, side by side in an i8x32."""
    vector = ir.VectorType(element, n)

    def generate(b: Any, m: Any, v: Any) -> Any:
        out = ir.Constant(vector, ir.Undefined)
        for k, address in enumerate(v):
            word = b.load(_pointer(b, address, element), align=element_bytes)
            out = b.insert_element(out, word, ir.Constant(I32, k))
        return b.bitcast(out, i8x32.llvm)

    element_bytes = 32 // n
    return _op(i8x32, (P,) * n, generate)


words_8x4 = _words(ir.DoubleType(), 4)  # floats: LLVM then merges with vmovsd and vmovhps
words_4x8 = _words(I32, 8)


@inline
def look_up_8x4(book: int, i: int) -> Any:
    """Four words of 8 bytes; their numbers are the 16-bit fields of i."""
    return words_8x4(
        book + 8 * (i & 0xFFFF),
        book + 8 * (i >> 16 & 0xFFFF),
        book + 8 * (i >> 32 & 0xFFFF),
        book + 8 * (i >> 48 & 0xFFFF),
    )


@inline
def look_up_4_bytes(book: int, p: int) -> Any:
    """Four words of 8 bytes; their numbers are the bytes at p."""
    i = load_word(p)
    return words_8x4(
        book + 8 * (i & 255),
        book + 8 * (i >> 8 & 255),
        book + 8 * (i >> 16 & 255),
        book + 8 * (i >> 24),
    )


@inline
def look_up_8_bytes(book: int, p: int) -> Any:
    """Eight words of 4 bytes; their numbers are the bytes at p."""
    i = load_word(p)
    j = load_word(p + 4)
    return words_4x8(
        book + 4 * (i & 255),
        book + 4 * (i >> 8 & 255),
        book + 4 * (i >> 16 & 255),
        book + 4 * (i >> 24),
        book + 4 * (j & 255),
        book + 4 * (j >> 8 & 255),
        book + 4 * (j >> 16 & 255),
        book + 4 * (j >> 24),
    )


@inline
def look_up_4x8(book: int, i: int, j: int) -> Any:
    """Eight words of 4 bytes; their numbers are the 16-bit fields of i, then of j."""
    return words_4x8(
        book + 4 * (i & 0xFFFF),
        book + 4 * (i >> 16 & 0xFFFF),
        book + 4 * (i >> 32 & 0xFFFF),
        book + 4 * (i >> 48 & 0xFFFF),
        book + 4 * (j & 0xFFFF),
        book + 4 * (j >> 16 & 0xFFFF),
        book + 4 * (j >> 32 & 0xFFFF),
        book + 4 * (j >> 48 & 0xFFFF),
    )


# --- one thing per 8 weights: 32 bytes for a block, 4 at a time -------------------------------


def _rotate(b: Any, m: Any, v: Any) -> Any:
    return b.shuffle_vector(
        v[0], v[0], ir.Constant(ir.VectorType(I32, 32), [*range(4, 32), 0, 1, 2, 3])
    )


def _spread(b: Any, x: Any) -> Any:
    return b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, 32), [k // 8 for k in range(32)]))


def _negate_where(b: Any, m: Any, v: Any) -> Any:
    zero = constant(i8x32.llvm, [0] * 32)
    masks = constant(i8x32.llvm, [1 << k % 8 for k in range(32)])
    negative = b.icmp_signed("!=", b.and_(_spread(b, v[1]), masks), zero)
    if isa.ISA.startswith("avx512"):
        return b.select(negative, b.sub(zero, v[0]), v[0])
    flip = b.sext(negative, i8x32.llvm)
    return b.sub(b.xor(v[0], flip), flip)


next_four = _op(u8x32, (u8x32,), _rotate)  # bytes 4, 5, ... 31, 0, 1, 2, 3
spread_four = _op(i8x32, (u8x32,), lambda b, m, v: _spread(b, v[0]))  # byte k = x[k // 8]
negate_where = _op(
    i8x32, (i8x32, u8x32), _negate_where
)  # byte k where bit k % 8 of x[k // 8] is set
SIGN_PARITY = table(
    "parity", lambda: np.array([0x80 * (k.bit_count() & 1) for k in range(16)], np.uint8)
)


@inline
def with_parity(seven: Any) -> Any:
    """u8x32 of 7-bit values -> bit 7 = parity of the other bits (an even number of signs)."""
    return seven | as_u8(lookup16(SIGN_PARITY(), (seven ^ (seven >> 4)) & 15))


def _load_odd(element: Any, ret: Any) -> Any:
    n = ret.llvm.count
    wide = ir.VectorType(element, 2 * n)
    odd = ir.Constant(ir.VectorType(I32, n), [2 * k + 1 for k in range(n)])

    def generate(b: Any, m: Any, v: Any) -> Any:
        x = b.load(_pointer(b, v[0], wide), align=1)
        return b.shuffle_vector(x, x, odd)

    return _op(ret, (P,), generate)


load_odd_u8 = _load_odd(I8, u8x32)  # bytes 1, 3, ... 63
load_odd_i32 = _load_odd(I32, i32x8)  # 32-bit words 1, 3, ... 15
load_u16_as_i32 = _widening_load(I16, 8, i32x8, lambda b, x: b.zext(x, i32x8.llvm))
as_bytes = _op(u8x32, (i32x8,), lambda b, m, v: b.bitcast(v[0], u8x32.llvm))  # the same bits
i16_as_bytes = _op(u8x32, (i16x16,), lambda b, m, v: b.bitcast(v[0], u8x32.llvm))


@inline
def signs_of_7(x: Any) -> Any:
    """i32x8 of words with four 7-bit fields -> u8x32 of sign bytes."""
    return with_parity(
        as_bytes((x & 0x7F) | (x << 1 & 0x7F00) | (x << 2 & 0x7F0000) | (x << 3 & 0x7F000000))
    )


# --- scales ---------------------------------------------------------------------------------------


def _doubled(first: int) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, 8), [first + k // 2 for k in range(8)])
    return _op(f32x8, (f32x8,), lambda b, m, v: b.shuffle_vector(v[0], v[0], lanes))


_low_doubled, _high_doubled = _doubled(0), _doubled(4)


@inline
def store_f32_twice(s: int, x: Any) -> None:
    """16 floats: each lane of x twice, for scales that stand for 32 weights."""
    store_f32(s, _low_doubled(x))
    store_f32(s + 32, _high_doubled(x))


f16_from_bits = _op(  # low 16 bits read as a half
    types.float32, (types.int64,), lambda b, m, v: half.widen(b, b.bitcast(b.trunc(v[0], I16), F16))
)


def fields(shifts: list[int], mask: int) -> Any:
    """4 bytes -> i32x8: lane k = the word's bits from shifts[k] on, under the mask."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        word = splat_value(b, b.load(_pointer(b, v[0], I32), align=1), i32x8.llvm)
        return b.and_(b.lshr(word, constant(i32x8.llvm, shifts)), constant(i32x8.llvm, [mask] * 8))

    return _op(i32x8, (P,), generate)


fields_4 = fields([4 * k for k in range(8)], 15)  # 8 nibbles, low one first
fields_2 = fields([2 * k for k in range(8)], 3)  # the first two bytes in pairs of bits
fields_3 = fields([16 * (k // 4) + 3 * (k % 4) for k in range(8)], 7)  # 12 bits of each half


@inline
def odd_steps(d: Any, n: Any) -> Any:
    """D * (2 n + 1) for 8 scale numbers n (i32x8).

    libggml writes d * (0.5 + n) / 4 and the like; where only powers of two differ, so do the
    results (d comes from a half: nothing is subnormal), and d may hold the power of two.
    """
    return to_f32(n + n + 1) * d
