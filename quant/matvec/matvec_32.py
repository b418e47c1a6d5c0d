"""Matrix-vector product for blocks of 32 weights: 16 blocks of a row at a time, from their bytes.

A type gives, instead of going through memory:

    weights_2(p)     u8x64: the blocks at p and p + BYTES, weights plus ZERO; at most 64 where
                     the processor has no VNNI, or signed (i8x64, ZERO = 0) there
    scales_16(p)     f32x16: the scales of the 16 blocks from p on
    offsets_16(p)    f32x16: their offsets, if the type has any

The columns behind the last multiple of 512 are copied to a place with zeros behind them, the
activations once and the weights of every row, and take the same path.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.compiler import isa
from quant.compiler.jit import OPEN, inline
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    OFFSETS,
    PLANES,
    token_at,
)
from quant.simd import half
from quant.simd.vectors import (
    F16,
    I1,
    I8,
    I16,
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    alloca,
    constant,
    f32,
    f32x16,
    fma,
    high_half,
    i8x64,
    i32x16,
    i64,
    load_f32,
    load_f32x16,
    load_i8,
    load_i8x64,
    load_i32x16,
    low_half,
    prefetch_far,
    put_f32,
    put_i64,
    store_i8,
    sums_32,
    to_f32x16,
    tree_sum_8,
    u8x32,
    u8x64,
    zero_f32,
)

AHEAD = 6144  # bytes: see matvec_64; open
ZERO: int = OPEN  # what the stored weights exceed the real ones by


def weights_2(p: int) -> Any:
    """Open: the type's own."""


def scales_16(p: int) -> Any:
    """Open: the type's own."""


def offsets_16(p: int) -> Any:
    """Open: the type's own."""


def add_dot(acc: Any, w: Any, y: Any) -> Any:
    """Open: simd.add_dot_u8x64 or, of signed weights, add_dot_i8x64."""


def first_dot(w: Any, y: Any) -> Any:
    """Open: simd.dot_u8x64 or dot_i8x64."""


def dots_2(p: int, y: int, n: int) -> Any:
    """Dots of the two blocks from p on with the activations at y. Open: PLANES is."""
    w = weights_2(p)
    d = first_dot(w, load_i8x64(y))
    if PLANES == 2:
        d = add_dot(d << 8, w, load_i8x64(y + n))
    return d


@inline
def copy_bytes(src: int, n: int, dst: int) -> None:
    """N >= 16 bytes, none beyond them read or written."""
    if n >= 32:
        for at in range(0, n - 32, 32):
            store_i8(dst + at, load_i8(src + at))
        store_i8(dst + n - 32, load_i8(src + n - 32))
    else:
        put_i64(dst, i64(src))
        put_i64(dst + 8, i64(src + 8))
        put_i64(dst + n - 8, i64(src + n - 8))


@inline
def copy_words(src: int, n: int, dst: int) -> None:
    """N words of 4 bytes."""
    for i in range(0, 4 * n, 4):
        put_f32(dst + i, f32(src + i))


@inline
def copy_record(x: int, n: int, first: int, planes: int, dst: int) -> None:
    """Columns first .. of a record -> a record of 512 columns; what is missing of them stays."""
    count = (n - first) // 32
    for plane in range(planes):
        copy_bytes(x + plane * n + first, n - first, dst + plane * 512)
    src = x + planes * n + first // 8
    dst += planes * 512
    copy_words(src, count, dst)
    copy_words(src + n // 8, count, dst + 64)
    copy_words(src + n // 2, count, dst + 256)


def matvec_32(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records; 16 blocks at a time."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    whole = n // 512 * 512
    last = alloca(576)  # blocks of the columns behind
    record = alloca(1536)
    for at in range(0, 576, 8):
        put_i64(last + at, 0)
    for at in range(0, 1536, 8):
        put_i64(record + at, 0)
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        if whole < n:
            copy_record(x, n, whole, PLANES, record)
        for r in range(r0, r1):
            p = w + r * row_bytes
            y = x
            ys = x + PLANES * n
            m = n  # columns of the record
            acc = zero_f32()
            low = zero_f32()
            for c in range(0, n, 512):
                if c == whole:
                    copy_bytes(p, (n - c) // 32 * BYTES, last)
                    p = last
                    y = record
                    ys = record + PLANES * 512
                    m = 512
                for line in range(0, 16 * BYTES, 64):
                    prefetch_far(p + AHEAD + line)
                d0 = dots_2(p, y, m)
                d1 = dots_2(p + 2 * BYTES, y + 64, m)
                d2 = dots_2(p + 4 * BYTES, y + 128, m)
                d3 = dots_2(p + 6 * BYTES, y + 192, m)
                d4 = dots_2(p + 8 * BYTES, y + 256, m)
                d5 = dots_2(p + 10 * BYTES, y + 320, m)
                d6 = dots_2(p + 12 * BYTES, y + 384, m)
                d7 = dots_2(p + 14 * BYTES, y + 448, m)
                d = sums_32(d0, d1, d2, d3, d4, d5, d6, d7)
                if ZERO:
                    d = d - load_i32x16(ys + m // 2) * ZERO
                v = to_f32x16(d)
                scale = scales_16(p) * load_f32x16(ys)
                acc = fma(low_half(v), low_half(scale), acc)
                acc = fma(high_half(v), high_half(scale), acc)
                if OFFSETS:
                    offset = offsets_16(p)
                    low = fma(low_half(offset), load_f32(ys + m // 8), low)
                    low = fma(high_half(offset), load_f32(ys + m // 8 + 32), low)
                p += 16 * BYTES
                y += 512
                ys += 64
            put_f32(out + 4 * r, tree_sum_8(acc + low))


# --- what the types share -------------------------------------------------------------------------


def _pair(n: int) -> Any:
    """Two addresses -> the n bytes there, each 32 // n times, side by side (u8x64)."""
    part = ir.VectorType(I8, n)

    def generate(b: Any, m: Any, v: Any) -> Any:
        x, y = (b.load(_pointer(b, address, part), align=1) for address in v)
        order = [k % n + n * half for half in range(2) for k in range(32)]
        return b.shuffle_vector(x, y, _lanes(order))

    return _op(u8x64, (P, P), generate)


pair_of_32 = _pair(32)
pair_of_16 = _pair(16)


def _split_nibbles(b: Any, m: Any, v: Any) -> Any:
    wide = ir.VectorType(I32, 16)
    x = b.lshr(b.bitcast(v[0], wide), constant(wide, [0, 0, 0, 0, 4, 4, 4, 4] * 2))
    return b.and_(b.bitcast(x, u8x64.llvm), constant(u8x64.llvm, [15] * 64))


# of `pair_of_16`: low nibbles, then high nibbles, of either block
split_nibbles = _op(u8x64, (u8x64,), _split_nibbles)


def _of_16(element: Any, block_bytes: int, ret: Any, widen: Any) -> Any:
    """An intrinsic: address -> the numbers there, one every block_bytes, widened to 16 lanes."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        x = ir.Constant(ir.VectorType(element, 16), ir.Undefined)
        for k in range(16):
            at = b.add(v[0], ir.Constant(I64, k * block_bytes))
            number = b.load(_pointer(b, at, element), align=1)
            x = b.insert_element(x, number, ir.Constant(I32, k))
        return widen(b, x)

    return _op(ret, (P,), generate)


def halves_of_16(block_bytes: int) -> Any:
    """An intrinsic: address -> f32x16 of the halves there, one every block_bytes."""
    halves = ir.VectorType(F16, 16)
    return _of_16(I16, block_bytes, f32x16, lambda b, x: half.widen(b, b.bitcast(x, halves)))


def bytes_of_16(block_bytes: int) -> Any:
    """An intrinsic: address -> i32x16 of the bytes there, one every block_bytes."""
    return _of_16(I8, block_bytes, i32x16, lambda b, x: b.zext(x, i32x16.llvm))


def _powers_of_2(b: Any, m: Any, v: Any) -> Any:
    one = constant(i32x16.llvm, [1] * 16)
    normal = b.shl(b.sub(v[0], one), constant(i32x16.llvm, [23] * 16))
    # 2^-128 and 2^-127 are subnormal; more than 31 would be no shift at all
    small = b.shl(constant(i32x16.llvm, [0x200000] * 16), b.and_(v[0], one))
    bits = b.select(b.icmp_unsigned(">", v[0], one), normal, small)
    return b.bitcast(bits, f32x16.llvm)


powers_of_2 = _op(f32x16, (i32x16,), _powers_of_2)  # 2^(lane - 128)


def _flip(b: Any, m: Any, v: Any) -> Any:
    return b.xor(v[0], constant(u8x64.llvm, [isa.FLIP] * 64)) if isa.FLIP else v[0]


# signed bytes as the dot product wants them: themselves, or 128 larger
flip = _op(u8x64 if isa.FLIP else i8x64, (u8x64,), _flip)


def _bits(b: Any, m: Any, v: Any) -> Any:
    words = [b.zext(b.load(_pointer(b, address, I32), align=1), I64) for address in v]
    bits = b.or_(words[0], b.shl(words[1], ir.Constant(I64, 32)))
    mask = b.bitcast(bits, ir.VectorType(I1, 64))
    return b.select(mask, *(constant(u8x64.llvm, [x] * 64) for x in (16, 0)))


bits_of_16 = _op(u8x64, (P, P), _bits)  # two addresses of 4 bytes, lowest bit first -> 16 or 0


def levels(values: tuple[int, ...]) -> Any:
    """An intrinsic: u8x64 of nibbles -> their values (signed bytes), as `flip` gives them."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        if isa.ISA.startswith("avx512"):
            table = constant(u8x64.llvm, [x ^ isa.FLIP for x in values] * 4)
            name = "llvm.x86.avx512.pshuf.b.512"
            return isa._call(b, m, name, u8x64.llvm, [table, v[0]])
        table = constant(u8x32.llvm, [x ^ isa.FLIP for x in values] * 2)
        halves = (b.shuffle_vector(v[0], v[0], _lanes(list(range(k, k + 32)))) for k in (0, 32))
        found = (isa.shuffle_bytes(b, m, table, half) for half in halves)
        return b.shuffle_vector(*found, _lanes(list(range(64))))

    return _op(u8x64 if isa.FLIP else i8x64, (u8x64,), generate)
