"""What kernels do beyond Python's arithmetic: memory, warps, tensor cores. The only place of it.

Addresses are bytes (int64); shared memory has addresses of its own, from `shared()` on. Words are
uint32: arithmetic between them and plain integers is 64 bits wide in Numba, so what must wrap goes
through `u32`, `shl`, `shr`, `mul32`. `x * y + z` is two roundings (ptx.py compiles that way), `fma`
is one. Lanes are threads of a warp; functions that speak to other lanes are called by all 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
U32, S32, S64, FLOAT = types.uint32, types.int32, types.int64, types.float32
VOID = types.void
GLOBAL, SHARED = 1, 3
Builder = Callable[[Any, Any, list[Any]], Any]


def _llvm(kind: Any) -> Any:
    return {U32: I32, S32: I32, S64: I64, FLOAT: F32}[kind]


def _op(ret: Any, args: tuple[Any, ...], build: Builder) -> Any:
    """An intrinsic of these types; arguments are cast to them. build(builder, module, values)."""

    def typed(given: tuple[Any, ...]) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            cast = [
                context.cast(b, value, of, to)
                for value, of, to in zip(values, given, args, strict=True)
            ]
            found = build(b, b.module, cast)
            if ret == VOID:
                return context.get_dummy_value()
            if isinstance(ret, types.UniTuple):
                return cgutils.pack_array(b, found)
            return found

        return ret(*given), generate

    names = [f"a{i}" for i in range(len(args))]
    listed = ", ".join(names)
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def op(typingctx, {listed}):\n    return typed(({listed}{',' if names else ''}))", scope)
    return intrinsic(scope["op"])


def _call(b: Any, m: Any, name: str, ret: Any, values: list[Any]) -> Any:
    kind = ir.FunctionType(ret, [v.type for v in values])
    return b.call(cgutils.get_or_insert_function(m, kind, name), values)


def _asm(text: str, constraints: str, ret: Any, side_effect: bool = False) -> Builder:
    def build(b: Any, m: Any, v: list[Any]) -> Any:
        kind = ir.FunctionType(ret, [x.type for x in v])
        return b.call(ir.InlineAsm(kind, text, constraints, side_effect=side_effect), v)

    return build


def _asm_4(text: str, constraints: str, element: Any, n: int = 4, side_effect: bool = False) -> Any:
    """Several results."""
    one = _asm(text, constraints, ir.LiteralStructType([element] * n), side_effect)

    def build(b: Any, m: Any, v: list[Any]) -> Any:
        found = one(b, m, v)
        return [b.extract_value(found, i) for i in range(n)]

    return build


# --- where a thread is ----------------------------------------------------------------------------


def _register(name: str) -> Any:
    def build(b: Any, m: Any, v: list[Any]) -> Any:
        return b.zext(_call(b, m, f"llvm.nvvm.read.ptx.sreg.{name}", I32, []), I64)

    return _op(S64, (), build)


thread = _register("tid.x")
block_x = _register("ctaid.x")
block_y = _register("ctaid.y")
block_z = _register("ctaid.z")
blocks_x = _register("nctaid.x")
blocks_z = _register("nctaid.z")
# the same as `thread`, read anew: what follows from it stays in no register from round to round
thread_anew = _op(
    S64,
    (),
    lambda b, m, v: b.zext(_asm("mov.u32 $0, %tid.x;", "=r", I32, side_effect=True)(b, m, v), I64),
)

# --- integers -------------------------------------------------------------------------------------

u32 = _op(U32, (U32,), lambda b, m, v: v[0])
i32 = _op(S32, (S32,), lambda b, m, v: v[0])
shl = _op(U32, (U32, U32), lambda b, m, v: b.shl(v[0], v[1]))
shr = _op(U32, (U32, U32), lambda b, m, v: b.lshr(v[0], v[1]))
mul32 = _op(U32, (U32, U32), lambda b, m, v: b.mul(v[0], v[1]))
add32 = _op(U32, (U32, U32), lambda b, m, v: b.add(v[0], v[1]))
div32 = _op(U32, (U32, U32), lambda b, m, v: b.udiv(v[0], v[1]))
mod32 = _op(U32, (U32, U32), lambda b, m, v: b.urem(v[0], v[1]))
# c + the products of 4 signed bytes
dp4a = _op(S32, (U32, U32, S32), _asm("dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", I32))
# byte i of the result: byte (sel >> 4 i & 7) of a (0-3) and b (4-7)
permute = _op(U32, (U32, U32, U32), lambda b, m, v: _call(b, m, "llvm.nvvm.prmt", I32, v))
pop_count = _op(U32, (U32,), lambda b, m, v: _call(b, m, "llvm.ctpop.i32", I32, v))
bytes_less = _op(  # byte by byte, wrapping: a - b
    U32,
    (U32, U32),
    lambda b, m, v: b.bitcast(b.sub(*(b.bitcast(x, ir.VectorType(I8, 4)) for x in v)), I32),
)

# --- float32 --------------------------------------------------------------------------------------

fma = _op(FLOAT, (FLOAT, FLOAT, FLOAT), lambda b, m, v: _call(b, m, "llvm.fma.f32", F32, v))
as_f32 = _op(FLOAT, (U32,), lambda b, m, v: b.bitcast(v[0], F32))
as_u32 = _op(U32, (FLOAT,), lambda b, m, v: b.bitcast(v[0], I32))
f32 = _op(FLOAT, (S32,), lambda b, m, v: b.sitofp(v[0], F32))  # to the nearest, ties to even
f32_of_u32 = _op(FLOAT, (U32,), lambda b, m, v: b.uitofp(v[0], F32))
round_i32 = _op(S32, (FLOAT,), _asm("cvt.rni.s32.f32 $0, $1;", "=r,f", I32))  # ties to even
round_f32 = _op(FLOAT, (FLOAT,), _asm("cvt.rni.f32.f32 $0, $1;", "=f,f", F32))
larger = _op(FLOAT, (FLOAT, FLOAT), _asm("max.f32 $0, $1, $2;", "=f,f,f", F32))
smaller = _op(FLOAT, (FLOAT, FLOAT), _asm("min.f32 $0, $1, $2;", "=f,f,f", F32))
size = _op(FLOAT, (FLOAT,), _asm("abs.f32 $0, $1;", "=f,f", F32))
root = _op(FLOAT, (FLOAT,), _asm("sqrt.rn.f32 $0, $1;", "=f,f", F32))
quotient = _op(FLOAT, (FLOAT, FLOAT), _asm("div.rn.f32 $0, $1, $2;", "=f,f,f", F32))
power_of_2 = _op(FLOAT, (FLOAT,), _asm("ex2.approx.ftz.f32 $0, $1;", "=f,f", F32))
# bits of a half, in the low half of a word
half = _op(FLOAT, (U32,), lambda b, m, v: b.fpext(b.bitcast(b.trunc(v[0], I16), F16), F32))
half_bits = _op(
    U32,
    (FLOAT,),
    lambda b, m, v: b.zext(_asm("cvt.rn.f16.f32 $0, $1;", "=h,f", I16)(b, m, v), I32),
)
two_halves = _op(  # the first in the low half of the word
    U32, (FLOAT, FLOAT), _asm("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", I32)
)
fma_halves = _op(  # of the two halves of each word
    U32, (U32, U32, U32), _asm("fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", I32)
)

# --- memory ---------------------------------------------------------------------------------------


def _pointer(b: Any, address: Any, kind: Any, space: int) -> Any:
    return b.inttoptr(address, ir.PointerType(kind, addrspace=space))


def _load(ret: Any, kind: Any, space: int, finish: Any = None, constant: bool = False) -> Any:
    def build(b: Any, m: Any, v: list[Any]) -> Any:
        found = b.load(_pointer(b, v[0], kind, space), align=_bytes(kind))
        if constant:
            found.set_metadata("invariant.load", m.add_metadata([]))
        return found if finish is None else finish(b, found)

    return _op(ret, (S64,), build)


def _bytes(kind: Any) -> int:
    if isinstance(kind, ir.VectorType):
        return int(kind.count) * _bytes(kind.element)
    return {I8: 1, I16: 2, F16: 2, I32: 4, F32: 4, I64: 8}[kind]


def _store(kind: Any, values: tuple[Any, ...], space: int, start: Any) -> Any:
    def build(b: Any, m: Any, v: list[Any]) -> Any:
        b.store(start(b, v[1:]), _pointer(b, v[0], kind, space), align=_bytes(kind))

    return _op(VOID, (S64, *values), build)


def _lanes_of(b: Any, x: Any) -> list[Any]:
    return [b.extract_element(x, I32(i)) for i in range(x.type.count)]


def _vector_of(b: Any, values: list[Any]) -> Any:
    x = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        x = b.insert_element(x, value, I32(i))
    return x


def _wide(b: Any, x: Any) -> Any:
    return b.zext(x, I32)


def _first(b: Any, v: list[Any]) -> Any:
    return v[0]


_2 = types.UniTuple(U32, 2)
_4 = types.UniTuple(U32, 4)
_V2, _V4 = ir.VectorType(I32, 2), ir.VectorType(I32, 4)

load_u8 = _load(U32, I8, GLOBAL, _wide)
load_i8 = _load(S32, I8, GLOBAL, lambda b, x: b.sext(x, I32))
load_u16 = _load(U32, I16, GLOBAL, _wide)
load_u32 = _load(U32, I32, GLOBAL)
load_i32 = _load(S32, I32, GLOBAL)
load_i64 = _load(S64, I64, GLOBAL)
load_f32 = _load(FLOAT, F32, GLOBAL)
load_f16 = _load(FLOAT, F16, GLOBAL, lambda b, x: b.fpext(x, F32))
load_2 = _load(_2, _V2, GLOBAL, _lanes_of)  # words, at multiples of 8 bytes
load_4 = _load(_4, _V4, GLOBAL, _lanes_of)  # of 16 bytes
# of what no thread of the kernel writes: weights
weight_u8 = _load(U32, I8, GLOBAL, _wide, constant=True)
weight_u16 = _load(U32, I16, GLOBAL, _wide, constant=True)
weight_u32 = _load(U32, I32, GLOBAL, constant=True)
weight_f32 = _load(FLOAT, F32, GLOBAL, constant=True)
weight_2 = _load(_2, _V2, GLOBAL, _lanes_of, constant=True)
weight_4 = _load(_4, _V4, GLOBAL, _lanes_of, constant=True)
store_u8 = _store(I8, (U32,), GLOBAL, lambda b, v: b.trunc(v[0], I8))
store_u16 = _store(I16, (U32,), GLOBAL, lambda b, v: b.trunc(v[0], I16))
store_u32 = _store(I32, (U32,), GLOBAL, _first)
store_i64 = _store(I64, (S64,), GLOBAL, _first)
store_f32 = _store(F32, (FLOAT,), GLOBAL, _first)
store_2 = _store(_V2, (U32,) * 2, GLOBAL, _vector_of)
store_4 = _store(_V4, (U32,) * 4, GLOBAL, _vector_of)


def _shared(b: Any, m: Any, v: list[Any]) -> Any:
    name = "shared_memory"
    if name in m.globals:
        block = m.globals[name]
    else:
        block = ir.GlobalVariable(m, ir.ArrayType(I8, 0), name, addrspace=SHARED)
        block.linkage = "external"
        block.align = 128
    return b.ptrtoint(block, I64)


shared = _op(S64, (), _shared)  # the launch says how many bytes
shared_u8 = _load(U32, I8, SHARED, _wide)
shared_u16 = _load(U32, I16, SHARED, _wide)
shared_u32 = _load(U32, I32, SHARED)
shared_f32 = _load(FLOAT, F32, SHARED)
shared_2 = _load(_2, _V2, SHARED, _lanes_of)
shared_4 = _load(_4, _V4, SHARED, _lanes_of)
put_shared_u8 = _store(I8, (U32,), SHARED, lambda b, v: b.trunc(v[0], I8))
put_shared_u16 = _store(I16, (U32,), SHARED, lambda b, v: b.trunc(v[0], I16))
put_shared_u32 = _store(I32, (U32,), SHARED, _first)
put_shared_f32 = _store(F32, (FLOAT,), SHARED, _first)
put_shared_2 = _store(_V2, (U32,) * 2, SHARED, _vector_of)
put_shared_4 = _store(_V4, (U32,) * 4, SHARED, _vector_of)

# 16 bytes from global to shared memory, behind the thread's back; `copies_sent` closes a group,
# `copies_done(n)` (a literal) waits until at most n groups are under way
copy_16 = _op(
    VOID,
    (S64, S64),
    lambda b, m, v: _asm(
        "cp.async.cg.shared.global [$0], [$1], 16;", "r,l,~{memory}", ir.VoidType(), True
    )(b, m, [b.trunc(v[0], I32), v[1]]),
)
copy_4 = _op(  # 4 bytes, through L1
    VOID,
    (S64, S64),
    lambda b, m, v: _asm(
        "cp.async.ca.shared.global [$0], [$1], 4;", "r,l,~{memory}", ir.VoidType(), True
    )(b, m, [b.trunc(v[0], I32), v[1]]),
)
copies_sent = _op(
    VOID, (), _asm("cp.async.commit_group;", "~{memory}", ir.VoidType(), side_effect=True)
)
copies_done_0 = _op(
    VOID, (), _asm("cp.async.wait_group 0;", "~{memory}", ir.VoidType(), side_effect=True)
)
copies_done_1 = _op(
    VOID, (), _asm("cp.async.wait_group 1;", "~{memory}", ir.VoidType(), side_effect=True)
)
add_u32 = _op(  # atomic; what was there before
    U32,
    (S64, U32),
    lambda b, m, v: b.atomic_rmw("add", _pointer(b, v[0], I32, GLOBAL), v[1], "monotonic"),
)

fence_system = _op(  # what this thread wrote or saw is there for all, the host too, before the rest
    VOID, (), _asm("fence.acq_rel.sys;", "~{memory}", ir.VoidType(), side_effect=True)
)
store_flag = _op(  # whole, and seen by the host
    VOID,
    (S64, S64),
    _asm("st.relaxed.sys.global.s64 [$0], $1;", "l,l,~{memory}", ir.VoidType(), side_effect=True),
)

# --- other threads --------------------------------------------------------------------------------

sync = _op(  # all threads of the block, and their memory
    VOID, (), lambda b, m, v: _call(b, m, "llvm.nvvm.barrier0", ir.VoidType(), [])
)
sync_warp = _op(
    VOID, (), _asm("bar.warp.sync 0xffffffff;", "~{memory}", ir.VoidType(), side_effect=True)
)
_SHUFFLE = "shfl.sync.{}.b32 $0, $1, $2, 0x1f, 0xffffffff;"


def _shuffle(kind: Any, how: str) -> Any:
    letter = "f" if kind == FLOAT else "r"
    return _op(
        kind, (kind, U32),
        _asm(_SHUFFLE.format(how), f"={letter},{letter},r", _llvm(kind), side_effect=True),
    )  # fmt: skip


swap_f32 = _shuffle(FLOAT, "bfly")  # of the lane whose number differs by these bits
swap_u32 = _shuffle(U32, "bfly")
from_lane_f32 = _shuffle(FLOAT, "idx")
from_lane_u32 = _shuffle(U32, "idx")
vote = _op(  # a bit per lane: whether its word is not 0
    U32,
    (U32,),
    lambda b, m, v: _call(
        b, m, "llvm.nvvm.vote.ballot.sync", I32, [I32(-1), b.icmp_unsigned("!=", v[0], I32(0))]
    ),
)
largest = _op(  # of the warp's lanes
    U32, (U32,), _asm("redux.sync.max.u32 $0, $1, 0xffffffff;", "=r,r", I32, side_effect=True)
)
smallest = _op(
    U32, (U32,), _asm("redux.sync.min.u32 $0, $1, 0xffffffff;", "=r,r", I32, side_effect=True)
)
alike = _op(  # a bit per lane: whether its word is this lane's
    U32,
    (U32,),
    _asm("match.any.sync.b32 $0, $1, 0xffffffff;", "=r,r", I32, side_effect=True),
)

# --- tensor cores ---------------------------------------------------------------------------------


def _mma(name: str, kind: Any, letter: str, n_a: int = 4, n_b: int = 2) -> Any:
    """D = A B + C: a, n_a words of (16, K); b, n_b of (K, 8); c, 4 numbers of (16, 8)."""
    ins = [f"${4 + i}" for i in range(n_a + n_b)]
    a, b = ",".join(ins[:n_a]), ",".join(ins[n_a:])
    text = f"mma.sync.aligned.{name} {{$0,$1,$2,$3}}, {{{a}}}, {{{b}}}, {{$0,$1,$2,$3}};"
    constraints = ",".join([f"={letter}"] * 4 + ["r"] * len(ins) + list("0123"))
    return _op(
        types.UniTuple(kind, 4), (U32,) * len(ins) + (kind,) * 4,
        _asm_4(text, constraints, _llvm(kind), side_effect=True),
    )  # fmt: skip


mma_f16 = _mma("m16n8k16.row.col.f32.f16.f16.f32", FLOAT, "f")
mma_i8 = _mma("m16n8k32.row.col.s32.s8.s8.s32", S32, "r")
mma_i8_16 = _mma("m16n8k16.row.col.s32.s8.s8.s32", S32, "r", 2, 1)


def _ldmatrix(n: int, turned: str) -> Any:
    outs = "{" + ",".join(f"${i}" for i in range(n)) + "}"
    text = f"ldmatrix.sync.aligned.m8n8.x{n}{turned}.shared.b16 {outs}, [${n}];"
    build = _asm_4(text, ",".join(["=r"] * n + ["r"]), I32, n, side_effect=True)
    return _op(types.UniTuple(U32, n), (S64,), lambda b, m, v: build(b, m, [b.trunc(v[0], I32)]))


# n matrices of 8 rows of 16 bytes; lane i gives the shared address of row i of them all
matrix_2 = _ldmatrix(2, "")
matrix_4 = _ldmatrix(4, "")
matrix_2_turned = _ldmatrix(2, ".trans")
matrix_4_turned = _ldmatrix(4, ".trans")

# --- what a module brings along -------------------------------------------------------------------


def table(name: str, make: Callable[[], np.ndarray]) -> Any:
    """An intrinsic: address of a module's copy of an array, in global memory; 16-byte aligned."""

    def build(b: Any, m: Any, v: list[Any]) -> Any:
        if name in m.globals:
            return b.ptrtoint(m.globals[name], I64)
        words = np.ascontiguousarray(make()).reshape(-1).view(np.uint32)
        kind = ir.ArrayType(I32, words.size)
        block = ir.GlobalVariable(m, kind, name, addrspace=GLOBAL)
        block.initializer = ir.Constant(kind, words.tolist())
        block.global_constant = True
        block.linkage = "linkonce_odr"
        block.align = 16
        return b.ptrtoint(block, I64)

    return _op(S64, (), build)
