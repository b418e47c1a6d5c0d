"""SIMD values for Numba kernels: LLVM vectors with ordinary operators.

A kernel works on addresses (`intp`) and on register types: `i8x32`, `u8x32` (32 bytes), `i16x16`,
`i32x8`, `f32x8`, each 256 bits, and `i8x64`, `u8x64`, `i32x16`, `f32x16` of 512. Operators
(+ - * & | ^ << >>) act lane by lane; an int on the right is broadcast. `>>` is arithmetic on
signed, logical on unsigned lanes; byte shifts stay inside their byte. LLVM legalises these vectors
for narrower and wider machines, so one source runs on AVX-512, AVX2 and NEON; only the dot products
and the 16-entry look-up have variants per instruction set (see `isa.py`).

Loads and stores take any alignment. Nothing here checks bounds: the callers' drivers do, once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from quant.compiler import isa
from quant.simd import half

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
Generate = Callable[[Any, Any, Any], Any]


def _vector_type(name: str, element: Any, lanes: int, *, signed: bool = True) -> Any:
    class Vector(types.Type):
        def __init__(self) -> None:
            super().__init__(name=name)
            self.llvm = ir.VectorType(element, lanes)
            self.signed = signed

    vector = Vector()

    @register_model(Vector)
    class Model(models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: Any) -> None:
            super().__init__(dmm, fe_type, fe_type.llvm)

    return vector


i8x32 = _vector_type("i8x32", I8, 32)
u8x32 = _vector_type("u8x32", I8, 32, signed=False)
i16x16 = _vector_type("i16x16", I16, 16)
i32x8 = _vector_type("i32x8", I32, 8)
f32x8 = _vector_type("f32x8", F32, 8)
i8x64 = _vector_type("i8x64", I8, 64)
u8x64 = _vector_type("u8x64", I8, 64, signed=False)
i32x16 = _vector_type("i32x16", I32, 16)
f32x16 = _vector_type("f32x16", F32, 16)
VECTORS = (i8x32, u8x32, i16x16, i32x8, f32x8)
INTEGERS = (i8x32, u8x32, i16x16, i32x8, i8x64, u8x64, i32x16)
FLOATS = (f32x8, f32x16)


# --- plumbing ---------------------------------------------------------------------------------


def _op(ret: Any, args: tuple[Any, ...], generate: Generate) -> Any:
    """An intrinsic of fixed argument types; `generate(builder, module, values)` emits its LLVM."""
    names = ", ".join(f"a{i}" for i in range(len(args)))
    scope: dict[str, Any] = {"ret": ret, "args": args, "generate": generate}
    exec(  # an intrinsic's arity is read from its Python signature
        f"def op(typingctx{', ' * bool(names)}{names}):\n"
        "    def codegen(context, builder, sig, values):\n"
        "        return generate(builder, builder.module, values)\n"
        "    return ret(*args), codegen\n",
        scope,
    )
    return intrinsic(scope["op"])


def _pointer(b: Any, address: Any, element: Any) -> Any:
    return b.inttoptr(address, element.as_pointer())


def _plus(b: Any, x: Any, n: int) -> Any:
    return b.add(x, ir.Constant(I64, n)) if n else x


def splat_value(b: Any, x: Any, vector: Any) -> Any:
    """LLVM value: scalar x in every lane of `vector` (an ir.VectorType)."""
    one = b.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def constant(vector: Any, values: list[int]) -> Any:
    """LLVM constant of an integer vector; values are taken modulo the lane width."""
    bits = vector.element.width
    return ir.Constant(
        vector, [(v + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) for v in values]
    )


def call(b: Any, m: Any, name: str, ret: Any, values: list[Any]) -> Any:
    """Emit a call of an LLVM intrinsic or C function by name."""
    fn = ir.FunctionType(ret, [v.type for v in values])
    return b.call(cgutils.get_or_insert_function(m, fn, name), values)


def _broadcast(b: Any, x: Any, vector: Any) -> Any:
    if isinstance(vector.element, ir.FloatType):
        return splat_value(b, x, vector)
    width = vector.element.width
    return splat_value(b, b.trunc(x, vector.element) if x.type.width > width else x, vector)


def _binary(py_op: Any, vector: Any, emit: Callable[[Any, Any, Any], Any]) -> None:
    scalar = types.float32 if vector in FLOATS else types.int64

    @infer_global(py_op)
    class Typing(ConcreteTemplate):
        cases = [signature(vector, vector, vector), signature(vector, vector, scalar)]

    @lower_builtin(py_op, vector, vector)
    def vv(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return emit(b, *args)

    @lower_builtin(py_op, vector, scalar)
    def vs(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return emit(b, args[0], _broadcast(b, args[1], vector.llvm))


for _v in FLOATS:
    _binary(operator.add, _v, lambda b, x, y: b.fadd(x, y))
    _binary(operator.sub, _v, lambda b, x, y: b.fsub(x, y))
    _binary(operator.mul, _v, lambda b, x, y: b.fmul(x, y))
for _v in INTEGERS:
    _binary(operator.add, _v, lambda b, x, y: b.add(x, y))
    _binary(operator.sub, _v, lambda b, x, y: b.sub(x, y))
    _binary(operator.mul, _v, lambda b, x, y: b.mul(x, y))
    _binary(operator.and_, _v, lambda b, x, y: b.and_(x, y))
    _binary(operator.or_, _v, lambda b, x, y: b.or_(x, y))
    _binary(operator.xor, _v, lambda b, x, y: b.xor(x, y))
    _binary(operator.lshift, _v, lambda b, x, y: b.shl(x, y))
    _binary(
        operator.rshift,
        _v,
        (lambda b, x, y: b.ashr(x, y)) if _v.signed else (lambda b, x, y: b.lshr(x, y)),
    )


# --- scalars from memory ------------------------------------------------------------------------

P = types.intp


def _load_scalar(element: Any, ret: Any, widen: Callable[[Any, Any], Any]) -> Any:
    return _op(ret, (P,), lambda b, m, v: widen(b, b.load(_pointer(b, v[0], element), align=1)))


u8 = _load_scalar(I8, types.int64, lambda b, x: b.zext(x, I64))
s8 = _load_scalar(I8, types.int64, lambda b, x: b.sext(x, I64))
u16 = _load_scalar(I16, types.int64, lambda b, x: b.zext(x, I64))
u32 = _load_scalar(I32, types.int64, lambda b, x: b.zext(x, I64))
i64 = _load_scalar(I64, types.int64, lambda b, x: x)
f16 = _load_scalar(F16, types.float32, half.widen)
f32 = _load_scalar(F32, types.float32, lambda b, x: x)
f64 = _load_scalar(ir.DoubleType(), types.float64, lambda b, x: x)


def _store(b: Any, value: Any, address: Any) -> Any:
    b.store(value, _pointer(b, address, value.type), align=1)
    return ir.Constant(I64, 0)


put_i64 = _op(types.int64, (P, types.int64), lambda b, m, v: _store(b, v[1], v[0]))
put_i32 = _op(  # the low 32 bits
    types.int64, (P, types.int64), lambda b, m, v: _store(b, b.trunc(v[1], I32), v[0])
)
put_f16 = _op(  # the nearest half
    types.int64, (P, types.float32), lambda b, m, v: _store(b, half.narrow(b, v[1]), v[0])
)
put_f32 = _op(types.int64, (P, types.float32), lambda b, m, v: _store(b, v[1], v[0]))


def _bits_to_f32(b: Any, m: Any, v: Any) -> Any:
    return b.bitcast(b.trunc(v[0], I32), F32)


f32_from_bits = _op(types.float32, (types.int64,), _bits_to_f32)  # low 32 bits read as a float
bf16 = _op(
    types.float32,
    (P,),
    lambda b, m, v: b.bitcast(
        b.shl(b.zext(b.load(_pointer(b, v[0], I16), align=1), I32), ir.Constant(I32, 16)), F32
    ),
)


# --- vectors from and to memory -----------------------------------------------------------------


def _load_vector(vector: Any) -> Any:
    return _op(vector, (P,), lambda b, m, v: b.load(_pointer(b, v[0], vector.llvm), align=1))


load_i8, load_u8, load_i16, load_i32, load_f32 = (_load_vector(v) for v in VECTORS)
load_i8x64, load_u8x64, load_f32x16 = (_load_vector(v) for v in (i8x64, u8x64, f32x16))
load_i32x16 = _load_vector(i32x16)


def _widening_load(element: Any, lanes: int, ret: Any, widen: Callable[[Any, Any], Any]) -> Any:
    narrow = ir.VectorType(element, lanes)
    return _op(ret, (P,), lambda b, m, v: widen(b, b.load(_pointer(b, v[0], narrow), align=1)))


# 8 halves, 8 bfloat16, 8 signed bytes -> f32x8;  16 bytes in both halves of a u8x32
load_f16 = _widening_load(F16, 8, f32x8, half.widen)
splat_f16 = _op(  # the half at an address in every lane
    f32x8,
    (P,),
    lambda b, m, v: half.widen(
        b, splat_value(b, b.load(_pointer(b, v[0], F16), align=1), ir.VectorType(F16, 8))
    ),
)
load_bf16 = _widening_load(
    I16,
    8,
    f32x8,
    lambda b, x: b.bitcast(
        b.shl(b.zext(x, i32x8.llvm), constant(i32x8.llvm, [16] * 8)), f32x8.llvm
    ),
)
load_i8_as_f32 = _widening_load(
    I8, 8, f32x8, lambda b, x: b.sitofp(b.sext(x, i32x8.llvm), f32x8.llvm)
)


def _pick(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _twice(b: Any, x: Any) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, 32), [*range(16), *range(16)])
    return b.shuffle_vector(x, x, lanes)


load_f32x2 = _widening_load(  # a b 0 0 0 0 0 0
    F32, 2, f32x8, lambda b, x: _pick(b, x, ir.Constant(x.type, [0.0, 0.0]), [0, 1] + [2, 3] * 3)
)
load_f32x4_twice = _widening_load(  # a a b b c c d d
    F32, 4, f32x8, lambda b, x: _pick(b, x, x, [k // 2 for k in range(8)])
)
load_u8x16_twice = _widening_load(I8, 16, u8x32, _twice)
store_i8 = _op(types.int64, (P, i8x32), lambda b, m, v: _store(b, v[1], v[0]))
store_u8 = _op(types.int64, (P, u8x32), lambda b, m, v: _store(b, v[1], v[0]))
store_i16 = _op(types.int64, (P, i16x16), lambda b, m, v: _store(b, v[1], v[0]))
store_i32 = _op(types.int64, (P, i32x8), lambda b, m, v: _store(b, v[1], v[0]))
store_f32 = _op(types.int64, (P, f32x8), lambda b, m, v: _store(b, v[1], v[0]))
store_u8x64 = _op(types.int64, (P, u8x64), lambda b, m, v: _store(b, v[1], v[0]))
store_f32x16 = _op(types.int64, (P, f32x16), lambda b, m, v: _store(b, v[1], v[0]))
store_f16 = _op(types.int64, (P, f32x8), lambda b, m, v: _store(b, half.narrow(b, v[1]), v[0]))
store_i8x8 = _op(  # 8 float lanes of whole numbers within int8, as bytes
    types.int64,
    (P, f32x8),
    lambda b, m, v: _store(b, b.trunc(b.fptosi(v[1], i32x8.llvm), ir.VectorType(I8, 8)), v[0]),
)


def _store_words(b: Any, m: Any, v: Any) -> Any:
    words = b.trunc(b.fptosi(v[1], i32x8.llvm), ir.VectorType(I16, 8))
    swapped = ir.Constant(i32x8.llvm, [0, 2, 1, 3, 4, 6, 5, 7])
    return _store(b, b.shuffle_vector(words, words, swapped), v[0])


# 8 float lanes of whole numbers within int16, as such; of four the second and third change places
store_i16x8 = _op(types.int64, (P, f32x8), _store_words)


# --- 512 bits: one step of 64 columns -----------------------------------------------------------


def _lanes(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(I32, len(indices)), indices)


def _join(b: Any, m: Any, v: Any) -> Any:
    return b.shuffle_vector(v[0], v[1], _lanes(list(range(2 * v[0].type.count))))


def _half(which: int) -> Generate:
    def generate(b: Any, m: Any, v: Any) -> Any:
        n = v[0].type.count // 2
        return b.shuffle_vector(v[0], v[0], _lanes([which * n + i for i in range(n)]))

    return generate


def _shift_halves(b: Any, m: Any, v: Any) -> Any:
    """Bytes 0-31 shifted right by v[1], bytes 32-63 by v[2] (constants after inlining)."""
    words = ir.VectorType(I16, 32)
    low = splat_value(b, b.trunc(v[1], I16), words)
    high = splat_value(b, b.trunc(v[2], I16), words)
    by = b.shuffle_vector(low, high, _lanes([*range(16), *range(32, 48)]))
    return b.bitcast(b.lshr(b.bitcast(v[0], words), by), u8x64.llvm)


def _spread(pattern: list[int]) -> Generate:
    return lambda b, m, v: b.shuffle_vector(v[0], v[0], _lanes(pattern))


def _bytes_to_floats(b: Any, m: Any, v: Any) -> Any:
    lanes = b.bitcast(v[0], ir.VectorType(I8, 8))
    return b.sitofp(b.zext(lanes, i32x8.llvm), f32x8.llvm)


zero_f32x16 = _op(f32x16, (), lambda b, m, v: ir.Constant(f32x16.llvm, [0.0] * 16))
splat_f32x16 = _op(f32x16, (types.float32,), lambda b, m, v: splat_value(b, v[0], f32x16.llvm))


def shift_lanes(by: list[int]) -> Any:
    """An intrinsic: lane i of an i32x16 shifted right by by[i]."""
    return _op(i32x16, (i32x16,), lambda b, m, v: b.ashr(v[0], constant(i32x16.llvm, by)))


splat_u8x64 = _op(u8x64, (types.int64,), lambda b, m, v: _broadcast(b, v[0], u8x64.llvm))
join_u8 = _op(u8x64, (u8x32, u8x32), _join)
join_f32 = _op(f32x16, (f32x8, f32x8), _join)
low_half = _op(f32x8, (f32x16,), _half(0))
high_half = _op(f32x8, (f32x16,), _half(1))
load_f32x8_twice = _widening_load(
    F32, 8, f32x16, lambda b, x: b.shuffle_vector(x, x, _lanes([*range(8)] * 2))
)
load_u8x32_twice = _widening_load(
    I8, 32, u8x64, lambda b, x: b.shuffle_vector(x, x, _lanes([*range(32)] * 2))
)
# 16-bit lanes are shifted: mask away what comes from the neighbour byte
shift_halves = _op(u8x64, (u8x64, types.int64, types.int64), _shift_halves)
to_f32x16 = _op(f32x16, (i32x16,), lambda b, m, v: b.sitofp(v[0], f32x16.llvm))
bytes_as_f32 = _op(f32x8, (types.int64,), _bytes_to_floats)  # the 8 unsigned bytes of an int64
load_u8_as_i32x16 = _widening_load(I8, 16, i32x16, lambda b, x: b.zext(x, i32x16.llvm))
twice_each = _op(f32x16, (f32x8,), _spread([i // 2 for i in range(16)]))  # 0 0 1 1 2 2 ...
# scales of the 16-column groups 4 k .. 4 k + 3, four lanes each
quarter_0, quarter_1, quarter_2, quarter_3 = (
    _op(f32x16, (f32x16,), _spread([4 * k + i // 4 for i in range(16)])) for k in range(4)
)
evens = _op(f32x8, (f32x16,), _spread([2 * i for i in range(8)]))  # lanes 0 2 4 ...
dot_i8x64 = _op(i32x16, (i8x64, i8x64), isa.dot_i8x64)  # lane k = products 4k .. 4k+3 summed
dot_u8x64 = _op(
    i32x16, (u8x64, i8x64), isa.dot_u8x64
)  # the same; unsigned side at most 64 without VNNI
add_dot_i8x64 = _op(
    i32x16,
    (i32x16, i8x64, i8x64),
    lambda b, m, v: b.add(v[0], isa.dot_i8x64(b, m, v[1:])),
)
add_dot_u8x64 = _op(i32x16, (i32x16, u8x64, i8x64), isa.add_dot_u8x64)  # added to the first
fma_16 = _op(
    f32x16,
    (f32x16, f32x16, f32x16),
    lambda b, m, v: call(b, m, "llvm.fma.v16f32", f32x16.llvm, list(v)),
)


# --- sums of lanes: a dot product of 64 columns is 16 lanes of 4 columns -------------------------


def _pair_sums(b: Any, x: Any, y: Any, low: list[int], high: list[int]) -> Any:
    """Lanes `low` of x and y joined + lanes `high` of x and y joined."""
    return b.add(b.shuffle_vector(x, y, _lanes(low)), b.shuffle_vector(x, y, _lanes(high)))


def _sums_of_4(b: Any, v: Any) -> Any:
    """Four i32x16 -> lane 4 k + i = the sum of lanes 4 k .. 4 k + 3 of v[i]."""
    low = [4 * k + i for k in range(4) for i in (0, 16, 1, 17)]
    high = [4 * k + i for k in range(4) for i in (2, 18, 3, 19)]
    x = _pair_sums(b, v[0], v[1], low, high)
    y = _pair_sums(b, v[2], v[3], low, high)
    low = [4 * k + i for k in range(4) for i in (0, 1, 16, 17)]
    high = [4 * k + i for k in range(4) for i in (2, 3, 18, 19)]
    return _pair_sums(b, x, y, low, high)


def _sums_16(b: Any, m: Any, v: Any) -> Any:
    x = _sums_of_4(b, v)
    return b.shuffle_vector(x, x, _lanes([4 * (g % 4) + g // 4 for g in range(16)]))


def _sums_32(b: Any, m: Any, v: Any) -> Any:
    x, y = _sums_of_4(b, v[:4]), _sums_of_4(b, v[4:])
    first = [16 * r + 8 * (g % 2) + g // 2 for r in range(2) for g in range(8)]
    return _pair_sums(b, x, y, first, [i + 4 for i in first])


def _tree_sum(b: Any, m: Any, v: Any) -> Any:
    """Halves added until one lane is left."""
    x = v[0]
    n = x.type.count
    while n > 1:
        n //= 2
        x = b.fadd(
            b.shuffle_vector(x, x, _lanes(list(range(n)))),
            b.shuffle_vector(x, x, _lanes(list(range(n, 2 * n)))),
        )
    return b.extract_element(x, ir.Constant(I32, 0))


# dots of 4 x 64 columns -> sums of their 16 groups of 16 columns
sums_16 = _op(i32x16, (i32x16,) * 4, _sums_16)
# dots of 4 x 64 columns of two rows -> lanes 0-7: groups of 32 of the first row, 8-15: of the other
sums_32 = _op(i32x16, (i32x16,) * 8, _sums_32)
tree_sum_8 = _op(types.float32, (f32x8,), _tree_sum)
tree_sum_16 = _op(types.float32, (f32x16,), _tree_sum)


# --- making and changing vectors ----------------------------------------------------------------

splat_f32 = _op(f32x8, (types.float32,), lambda b, m, v: splat_value(b, v[0], f32x8.llvm))
splat_u8 = _op(u8x32, (types.int64,), lambda b, m, v: _broadcast(b, v[0], u8x32.llvm))
splat_i8 = _op(i8x32, (types.int64,), lambda b, m, v: _broadcast(b, v[0], i8x32.llvm))
zero_f32 = _op(f32x8, (), lambda b, m, v: ir.Constant(f32x8.llvm, [0.0] * 8))
zero_i32 = _op(i32x8, (), lambda b, m, v: ir.Constant(i32x8.llvm, [0] * 8))
as_i8 = _op(i8x32, (u8x32,), lambda b, m, v: v[0])  # the same bits
as_u8 = _op(u8x32, (i8x32,), lambda b, m, v: v[0])


def _two_halves(b: Any, m: Any, v: Any) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, 8), [0] * 4 + [8] * 4)
    return b.shuffle_vector(
        splat_value(b, v[0], f32x8.llvm), splat_value(b, v[1], f32x8.llvm), lanes
    )


def _spread_pair(b: Any, m: Any, v: Any) -> Any:
    first = b.mul(b.trunc(v[1], I32), ir.Constant(I32, 2))
    second = b.add(first, ir.Constant(I32, 1))
    return _two_halves(b, m, [b.extract_element(v[0], k) for k in (first, second)])


spread_pair = _op(f32x8, (f32x8, types.int64), _spread_pair)  # pair_f32 of lanes 2k and 2k + 1
pair_f32 = _op(f32x8, (types.float32, types.float32), _two_halves)  # lanes 0-3 = a, 4-7 = b
to_f32 = _op(f32x8, (i32x8,), lambda b, m, v: b.sitofp(v[0], f32x8.llvm))
to_i32 = _op(i32x8, (f32x8,), lambda b, m, v: b.fptosi(v[0], i32x8.llvm))
round_f32 = _op(f32x8, (f32x8,), lambda b, m, v: call(b, m, "llvm.rint.v8f32", f32x8.llvm, [v[0]]))
abs_f32 = _op(f32x8, (f32x8,), lambda b, m, v: call(b, m, "llvm.fabs.v8f32", f32x8.llvm, [v[0]]))
max_f32 = _op(
    f32x8, (f32x8, f32x8), lambda b, m, v: b.select(b.fcmp_ordered(">", v[0], v[1]), v[0], v[1])
)
min_f32 = _op(
    f32x8, (f32x8, f32x8), lambda b, m, v: b.select(b.fcmp_ordered("<", v[0], v[1]), v[0], v[1])
)
fma = _op(  # a * b + c, one rounding
    f32x8, (f32x8, f32x8, f32x8), lambda b, m, v: call(b, m, "llvm.fma.v8f32", f32x8.llvm, list(v))
)


def _reduce(name: str, start: Any) -> Any:
    def generate(b: Any, m: Any, v: Any) -> Any:
        args = [*start, v[0]]
        fn = ir.FunctionType(F32, [a.type for a in args])
        flags = ("reassoc",) if start else ()
        return b.call(cgutils.get_or_insert_function(m, fn, name), args, fastmath=flags)

    return _op(types.float32, (f32x8,), generate)


sum_f32 = _reduce("llvm.vector.reduce.fadd.v8f32", [ir.Constant(F32, -0.0)])
maximum_f32 = _reduce("llvm.vector.reduce.fmax.v8f32", [])
sum_i32 = _op(
    types.int64,
    (i32x8,),
    lambda b, m, v: b.sext(call(b, m, "llvm.vector.reduce.add.v8i32", I32, [v[0]]), I64),
)


def _lookup16(b: Any, m: Any, v: Any) -> Any:
    """32 bytes of indices 0..15 into a 16-byte table."""
    table = b.load(_pointer(b, v[0], ir.VectorType(I8, 16)), align=1)
    return isa.shuffle_bytes(b, m, _twice(b, table), v[1])


lookup16 = _op(i8x32, (P, u8x32), _lookup16)
dot_i8 = _op(i32x8, (i8x32, i8x32), isa.dot_i8)  # lane k = sum of the 4 products 4k .. 4k+3


# --- memory, calls, atomics ---------------------------------------------------------------------


def _prefetch(locality: int, write: int = 0) -> Generate:
    def generate(b: Any, m: Any, v: Any) -> Any:
        values = [_pointer(b, v[0], I8), *(ir.Constant(I32, k) for k in (write, locality, 1))]
        fn = ir.FunctionType(ir.VoidType(), [x.type for x in values])
        b.call(cgutils.get_or_insert_function(m, fn, "llvm.prefetch.p0"), values)
        return ir.Constant(I64, 0)

    return generate


prefetch = _op(types.int64, (P,), _prefetch(3))
prefetch_far = _op(types.int64, (P,), _prefetch(2))  # into the second level of cache
prefetch_to_write = _op(types.int64, (P,), _prefetch(3, 1))


def _call_kernel(b: Any, m: Any, v: Any) -> Any:
    fn = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    b.call(b.inttoptr(v[0], fn.as_pointer()), list(v[1:]))
    return ir.Constant(I64, 0)


call_kernel = _op(types.int64, (P, P, P, P), _call_kernel)  # kernel(job, first_row, last_row)


def _alloca(typingctx: Any, n_bytes: Any) -> Any:
    """Address of `n_bytes` (a literal) on the kernel's stack, 64-byte aligned."""
    if not isinstance(n_bytes, types.IntegerLiteral):
        return None
    size = n_bytes.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(I8, size))
            room.align = 64
            return builder.ptrtoint(room, I64)

    return types.intp(n_bytes), codegen


alloca: Any = intrinsic(prefer_literal=True)(_alloca)


def _as_pointer(typingctx: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I8.as_pointer())

    return types.voidptr(types.int64), codegen


as_pointer: Any = intrinsic(_as_pointer)
