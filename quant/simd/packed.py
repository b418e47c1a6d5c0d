"""SIMD values of the packed kernels, where a 32-bit lane is a row.

A packed vector has 16 lanes of 4 bytes: byte 4 r + c belongs to row r, column 4 k + c. With AVX-512
it is one register; elsewhere kernels go over it in two halves of 8 rows, so LANES is 16 or 8 and
a kernel says

    for rows in range(0, 64, 4 * LANES):        # byte offset of the half in every vector

Bytes, Ints and Floats below are LANES rows. A dot product grows in Sums, and `total` makes Ints of
it: with VNNI these are the 32-bit sums themselves; without, the two products of neighbouring
columns are summed in 16 bits first, which the caller must know to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from quant.compiler import isa
from quant.simd import half
from quant.simd import vectors as simd
from quant.simd.vectors import F16, F32, I8, I16, I32, P, _op, _pointer, _store, call, splat_value

WIDE = isa.ISA.startswith("avx512")
VNNI = isa.VNNI
GENERIC = isa.ISA == "generic"
AVX2 = isa.ISA == "avx2"
LANES = 16 if WIDE else 8
HALVES = 16 // LANES  # of a packed vector
BLENDS = not (WIDE or VNNI)  # signs choose between activations and their negatives in memory

Bytes = simd.u8x64 if WIDE else simd.u8x32
Signed = simd.i8x64 if WIDE else simd.i8x32
Ints = simd.i32x16 if WIDE else simd.i32x8
Floats = simd.f32x16 if WIDE else simd.f32x8
BYTES, INTS, FLOATS = Bytes.llvm, Ints.llvm, Floats.llvm
WORDS = ir.VectorType(I16, 2 * LANES)
_Pairs = simd._vector_type("pair_sums", I16, 2 * LANES)
Sums = Ints if VNNI or GENERIC else _Pairs


def _splat(element: Any, ret: Any) -> Any:
    """Address -> the element there in every lane."""
    vector = ir.VectorType(element, LANES)

    def generate(b: Any, m: Any, v: Any) -> Any:
        x = b.load(_pointer(b, v[0], element), align=1)
        return b.bitcast(splat_value(b, x, vector), ret.llvm)

    return _op(ret, (P,), generate)


def _put(element: Any) -> Any:
    return _op(
        types.int64, (P, types.int64), lambda b, m, v: _store(b, b.trunc(v[1], element), v[0])
    )


load_bytes, load_ints, load_floats = (simd._load_vector(v) for v in (Bytes, Ints, Floats))
store_bytes, store_floats = (
    _op(types.int64, (P, v), lambda b, m, v: _store(b, v[1], v[0])) for v in (Bytes, Floats)
)
four_columns = _splat(I32, Signed)  # the activations of 4 columns, for every row
splat_int, splat_float = _splat(I32, Ints), _splat(F32, Floats)
load_halves = simd._widening_load(F16, LANES, Floats, half.widen)
to_floats = _op(Floats, (Ints,), lambda b, m, v: b.sitofp(v[0], FLOATS))
as_signed = _op(Signed, (Bytes,), lambda b, m, v: v[0])  # the same bits
as_bytes = _op(Bytes, (Signed,), lambda b, m, v: v[0])
ints_as_bytes = _op(Bytes, (Ints,), lambda b, m, v: b.bitcast(v[0], BYTES))
bytes_as_ints = _op(Ints, (Bytes,), lambda b, m, v: b.bitcast(v[0], INTS))
zero_bytes = _op(Bytes, (), lambda b, m, v: ir.Constant(BYTES, [0] * BYTES.count))
eights = _op(Floats, (), lambda b, m, v: ir.Constant(FLOATS, [8.0] * LANES))
minus_threes = _op(Floats, (), lambda b, m, v: ir.Constant(FLOATS, [-3.0] * LANES))
fma = simd.fma_16 if WIDE else simd.fma
put_u8, put_u16 = _put(I8), _put(I16)


def _opaque(b: Any, m: Any, v: Any) -> Any:
    if not AVX2:
        return v[0]
    return b.asm(ir.FunctionType(v[0].type, [v[0].type]), "", "=r,0", list(v), side_effect=False)


# The same address. LLVM cannot see that: it would keep every sum with it in a register.
opaque = _op(types.int64, (types.int64,), _opaque)


# --- dot products -------------------------------------------------------------------------------


def _add_products(b: Any, m: Any, v: Any) -> Any:
    total, unsigned, signed = v
    if GENERIC:
        return b.add(total, isa.dot_i8(b, m, (unsigned, signed)))
    if not VNNI:
        name = "llvm.x86.avx512.pmaddubs.w.512" if WIDE else "llvm.x86.avx2.pmadd.ub.sw"
        return b.add(total, call(b, m, name, WORDS, [unsigned, signed]))
    if not WIDE:
        return isa.dpbusd(b, m, total, unsigned, signed)
    values = [total, b.bitcast(unsigned, INTS), b.bitcast(signed, INTS)]
    return call(b, m, "llvm.x86.avx512.vpdpbusd.512", INTS, values)


def _total(b: Any, m: Any, v: Any) -> Any:
    if Sums is Ints:
        return v[0]
    name = "llvm.x86.avx512.pmaddw.d.512" if WIDE else "llvm.x86.avx2.pmadd.wd"
    return call(b, m, name, INTS, [v[0], ir.Constant(WORDS, [1] * WORDS.count)])


def _without_upper(b: Any, m: Any, v: Any) -> Any:
    """v[0] - 16 v[1]; of 16 bits, whatever overflowed on the way, if the result does not."""
    four = ir.Constant(Sums.llvm, [4] * Sums.llvm.count)
    return b.sub(v[0], b.shl(v[1], four))


zero_sums = _op(Sums, (), lambda b, m, v: ir.Constant(Sums.llvm, [0] * Sums.llvm.count))
# Sums + products of unsigned weights (127 at most where there is no VNNI) and activations
add_products = _op(Sums, (Sums, Bytes, Signed), _add_products)
total = _op(Ints, (Sums,), _total)
without_upper = _op(Sums, (Sums, Sums), _without_upper)


def _in_turn(n: int) -> Any:
    """N Sums -> the same, complete before anything that follows is loaded.

    LLVM would load everything first and, out of registers, store what it has not yet used.
    """

    def generate(b: Any, m: Any, v: Any) -> Any:
        if not AVX2:
            return cgutils.pack_array(b, v)
        kind = ir.LiteralStructType([Sums.llvm] * n)
        constraints = [*["=x"] * n, *map(str, range(n)), "~{memory}"]
        out = b.asm(ir.FunctionType(kind, [Sums.llvm] * n), "", ",".join(constraints), v, True)
        return cgutils.pack_array(b, [b.extract_value(out, i) for i in range(n)])

    return _op(types.UniTuple(Sums, n), (Sums,) * n, generate)


three_in_turn, four_in_turn = _in_turn(3), _in_turn(4)


# --- bytes --------------------------------------------------------------------------------------


def _shift_words(shift: Callable[[Any, Any, Any], Any]) -> Any:
    """Shift by a constant inside 16 bits: cheap; what crosses into the other byte is the caller's.

    (x86 has no shifts of bytes.)
    """

    def generate(b: Any, m: Any, v: Any) -> Any:
        by = splat_value(b, b.trunc(v[1], I16), WORDS)
        return b.bitcast(shift(b, b.bitcast(v[0], WORDS), by), BYTES)

    return _op(Bytes, (Bytes, types.int64), generate)


def _negate_where(b: Any, m: Any, v: Any) -> Any:
    """v[0], negative in the bytes where bit v[2] (a constant) of v[1] is set."""
    x, signs, k = v
    zero = ir.Constant(BYTES, [0] * BYTES.count)
    if WIDE:
        bit = splat_value(b, b.shl(ir.Constant(I8, 1), b.trunc(k, I8)), BYTES)
        return b.select(b.icmp_signed("!=", b.and_(signs, bit), zero), b.sub(zero, x), x)
    up = splat_value(b, b.sub(ir.Constant(I16, 7), b.trunc(k, I16)), WORDS)
    top = b.bitcast(b.shl(b.bitcast(signs, WORDS), up), BYTES)
    return b.select(b.icmp_signed("<", top, zero), b.sub(zero, x), x)


def _signed_columns(b: Any, m: Any, v: Any) -> Any:
    """Four columns at v[0] for every row, those at v[1] where bit v[3] (a constant) of v[2] is set.

    A blend of two broadcasts is one instruction where a change of sign is three.
    """
    y, minus, signs, k = v
    x, other = (
        b.bitcast(splat_value(b, b.load(_pointer(b, at, I32), align=1), INTS), BYTES)
        for at in (y, minus)
    )
    if not BLENDS:
        return _negate_where(b, m, [x, signs, k])
    up = splat_value(b, b.sub(ir.Constant(I16, 7), b.trunc(k, I16)), WORDS)
    top = b.bitcast(b.shl(b.bitcast(signs, WORDS), up), BYTES)
    return b.select(b.icmp_signed("<", top, ir.Constant(BYTES, [0] * BYTES.count)), other, x)


def _look_up(b: Any, m: Any, v: Any) -> Any:
    address, index = v
    sixteen = b.load(_pointer(b, address, ir.VectorType(I8, 16)), align=16)
    lanes = ir.Constant(ir.VectorType(I32, BYTES.count), [*range(16)] * (BYTES.count // 16))
    table = b.shuffle_vector(sixteen, sixteen, lanes)
    if WIDE:
        return call(b, m, "llvm.x86.avx512.pshuf.b.512", BYTES, [table, index])
    return isa.shuffle_bytes(b, m, table, index)


def _choose_bits(b: Any, m: Any, v: Any) -> Any:
    """Bits of v[0] where the constant byte v[2] has ones, those of v[1] elsewhere."""
    mask = splat_value(b, b.trunc(v[2], I8), BYTES)
    ones = ir.Constant(BYTES, [-1] * BYTES.count)
    return b.or_(b.and_(v[0], mask), b.and_(v[1], b.xor(mask, ones)))


words_up = _shift_words(lambda b, x, by: b.shl(x, by))
words_down = _shift_words(lambda b, x, by: b.lshr(x, by))
negate_where = _op(Signed, (Signed, Bytes, types.int64), _negate_where)
signed_columns = _op(Signed, (P, P, Bytes, types.int64), _signed_columns)
look_up = _op(Bytes, (P, Bytes), _look_up)  # a 16-byte table (16-byte aligned), indices 0..15
choose_bits = _op(Bytes, (Bytes, Bytes, types.int64), _choose_bits)


# --- small numbers to floats ----------------------------------------------------------------------


def _permute(b: Any, m: Any, table: Any, index: Any) -> Any:
    """table[lane's lowest bits]: 4 bits of 16 lanes, 3 of 8."""
    name = "llvm.x86.avx512.permvar.sf.512" if WIDE else "llvm.x86.avx2.permps"
    return call(b, m, name, FLOATS, [table, index])


def _masked(b: Any, x: Any, mask: int) -> Any:
    return b.and_(x, ir.Constant(INTS, [mask] * LANES))


def _odd_number(b: Any, m: Any, v: Any) -> Any:
    if GENERIC:
        twice = b.shl(_masked(b, v[0], 7), ir.Constant(INTS, [1] * LANES))
        return b.sitofp(b.or_(twice, ir.Constant(INTS, [1] * LANES)), FLOATS)
    table = ir.Constant(FLOATS, [2.0 * (k % 8) + 1 for k in range(LANES)])
    return _permute(b, m, table, v[0])


def _nibble(b: Any, m: Any, v: Any) -> Any:
    if WIDE:
        return _permute(b, m, ir.Constant(FLOATS, [float(k) for k in range(16)]), v[0])
    return b.sitofp(_masked(b, v[0], 15), FLOATS)


def _top_byte(b: Any, m: Any, v: Any) -> Any:
    x, i = v[0], b.trunc(v[1], I32)
    if not AVX2:
        up = b.sub(ir.Constant(I32, 24), b.shl(i, ir.Constant(I32, 3)))
        return _masked(b, b.shl(x, splat_value(b, up, INTS)), -(1 << 24))
    lanes = [4 * (lane % 4) << 24 | 0x808080 for lane in range(8)]
    by = splat_value(b, b.shl(i, ir.Constant(I32, 24)), INTS)
    index = b.add(simd.constant(INTS, lanes), by)
    return b.bitcast(isa.shuffle_bytes(b, m, b.bitcast(x, BYTES), b.bitcast(index, BYTES)), INTS)


def _sign_of_bit_3(b: Any, m: Any, v: Any) -> Any:
    x, value = v
    if WIDE:
        lanes = ir.Constant(ir.VectorType(I32, 16), [*range(8), *range(16, 24)])
        return _permute(b, m, b.shuffle_vector(value, b.fneg(value), lanes), x)
    top = b.shl(x, ir.Constant(INTS, [28] * LANES))
    if not VNNI:
        negative = b.icmp_signed("<", top, ir.Constant(INTS, [0] * LANES))
        return b.select(negative, b.fneg(value), value)
    sign = b.and_(top, ir.Constant(INTS, [-(1 << 31)] * LANES))
    return b.bitcast(b.xor(b.bitcast(value, INTS), sign), FLOATS)


def _one_of_4(b: Any, m: Any, v: Any) -> Any:
    address, index = v
    four = b.load(_pointer(b, address, ir.VectorType(F32, 4)), align=16)

    def spread(lanes: list[int]) -> Any:
        return b.shuffle_vector(four, four, ir.Constant(ir.VectorType(I32, LANES), lanes))

    if not GENERIC:
        return _permute(b, m, spread([0, 1, 2, 3] * (LANES // 4)), index)
    zero = ir.Constant(INTS, [0] * LANES)
    first, second = (b.icmp_signed("!=", _masked(b, index, k), zero) for k in (1, 2))
    x = [spread([k] * LANES) for k in range(4)]
    return b.select(second, b.select(first, x[3], x[2]), b.select(first, x[1], x[0]))


def _halves_from(b: Any, m: Any, v: Any) -> Any:
    bits = b.trunc(v[0], ir.VectorType(I16, LANES))
    return half.widen(b, b.bitcast(bits, ir.VectorType(F16, LANES)))


def _minus_or_zero(b: Any, m: Any, v: Any) -> Any:
    return b.sub(ir.Constant(INTS, [0] * LANES), _masked(b, v[0], 1))


def _minus_or_one(b: Any, m: Any, v: Any) -> Any:
    return b.or_(_minus_or_zero(b, m, v), ir.Constant(INTS, [0x01010101] * LANES))


def _signed_sums(b: Any, m: Any, v: Any) -> Any:
    """For each 16 of 64 activations, with their sums A and B of 8: A + B, B - A, A - B, -A - B."""
    ones = ir.Constant(simd.u8x64.llvm, [1] * 64)
    four = isa.dot_u8x64(b, m, [ones, v[0]])  # sums of 4
    eight = b.add(four, b.shuffle_vector(four, four, simd._lanes([i ^ 1 for i in range(16)])))
    parts = []
    for first, bit in ((0, 1), (2, 2)):
        x = b.shuffle_vector(eight, eight, simd._lanes([i // 4 * 4 + first for i in range(16)]))
        flip = ir.Constant(simd.i32x16.llvm, [-1 if i & bit else 0 for i in range(16)])
        parts.append(b.sub(b.xor(x, flip), flip))
    return b.sitofp(b.add(*parts), simd.f32x16.llvm)


odd_number = _op(Floats, (Ints,), _odd_number)  # 2 (x & 7) + 1
nibble = _op(Floats, (Ints,), _nibble)  # x & 15
top_byte = _op(Ints, (Ints, types.int64), _top_byte)  # byte k (a constant) and 24 zeros
sign_of_bit_3 = _op(Floats, (Ints, Floats), _sign_of_bit_3)  # the float, negative where x & 8
one_of_4 = _op(Floats, (P, Ints), _one_of_4)  # floats at the address [x & 3]; 16-byte aligned
halves_from = _op(Floats, (Ints,), _halves_from)  # the low 16 bits read as a half
minus_or_zero = _op(Ints, (Ints,), _minus_or_zero)  # four bytes of -1 where x & 1, else of 0
minus_or_one = _op(Ints, (Ints,), _minus_or_one)  # four bytes of -1 where x & 1, else of 1
signed_sums = _op(simd.f32x16, (simd.i8x64,), _signed_sums)
