"""Matrix-vector product straight from the block, a lane to 16 columns: AVX-512 VNNI.

For blocks of 256 small unsigned weights of which four neighbours lie in one word of 32 bits. A type
gives, besides what `matvec_64` asks for:

    quad(p, m)      u8x64, m = 0 .. 3: lane g holds weights 16 g + 4 m .. + 3 of the block at p,
                    plus ZERO; a field of bits may be left where it stands in its byte
    lanes_down(d)   i32x16 of sums -> what they are with the fields at the bottom

Four products, one after the other, then sum 16 columns in their lane; what `matvec_64` makes is the
sums of four columns each, and bringing these together is a third of its work. Activations are put
into the same order once per call, a step of 256 columns after the other:

    planes x [ bytes 0-3 16-19 32-35 ... | 4-7 20-23 ... | 8-11 ... | 12-15 ... ]   4 x 64 bytes
    GROUP 16: scale of every lane, 16 x f32

ZERO is taken off in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler.jit import inline
from quant.kernels import (
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _OUT_STRIDE,
    _ROW0,
    _ROW_BYTES,
    _W,
    BYTES,
    GROUP,
    PLANES,
    token_at,
)
from quant.matvec.matvec_64 import AHEAD, add_16, add_two_32
from quant.simd.vectors import (
    I32,
    I64,
    P,
    _lanes,
    _op,
    _pointer,
    add_dot_u8x64,
    alloca,
    call,
    constant,
    dot_u8x64,
    i32x16,
    i64,
    load_f32,
    load_f32x16,
    load_i8x64,
    prefetch_far,
    put_f32,
    splat_value,
    store_f32x16,
    tree_sum_8,
    tree_sum_16,
    twice_each,
    u8x64,
    zero_f32,
    zero_f32x16,
)

GROUPS = range(16)  # lanes
COLS = 32768  # whose activations are kept in order; wider rows do it again for every row


def quad(p: int, m: int) -> Any:
    """Open: the type's own."""


@inline
def lanes_down(d: Any) -> Any:
    """Open: the type's own."""
    return d


# --- words ----------------------------------------------------------------------------------------


def words_of(lanes: list[int]) -> Any:
    """An intrinsic: u8x64, m -> lane i = its word lanes[i] + m."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        words = i32x16.llvm
        more = splat_value(b, b.trunc(v[1], I32), words)
        values = [b.bitcast(v[0], words), b.add(constant(words, lanes), more)]
        x = call(b, m, "llvm.x86.avx512.permvar.si.512", words, values)
        return b.bitcast(x, u8x64.llvm)

    return _op(u8x64, (u8x64, types.int64), generate)


def words_of_two(lanes: list[int]) -> Any:
    """The same from the 32 words of two vectors."""

    def generate(b: Any, m: Any, v: Any) -> Any:
        words = i32x16.llvm
        more = splat_value(b, b.trunc(v[2], I32), words)
        x, y = (b.bitcast(u, words) for u in v[:2])
        values = [x, b.add(constant(words, lanes), more), y]
        return b.bitcast(call(b, m, "llvm.x86.avx512.vpermi2var.d.512", words, values), u8x64.llvm)

    return _op(u8x64, (u8x64, u8x64, types.int64), generate)


def _store_by_words(b: Any, m: Any, v: Any) -> Any:
    words = i32x16.llvm
    rows = [
        b.load(_pointer(b, b.add(v[0], ir.Constant(I64, 64 * i)), words), align=1) for i in range(4)
    ]
    low, high = (b.shuffle_vector(*rows[i : i + 2], _lanes([*range(32)])) for i in (0, 2))
    for i in range(4):
        x = b.shuffle_vector(low, high, _lanes([4 * lane + i for lane in range(16)]))
        b.store(x, _pointer(b, b.add(v[1], ir.Constant(I64, 64 * i)), words), align=1)
    return ir.Constant(I64, 0)


store_by_words = _op(types.int64, (P, P), _store_by_words)  # 256 bytes: see above


def _neighbours(b: Any, m: Any, v: Any) -> Any:
    first, second = (b.shuffle_vector(*v, _lanes([*range(i, 32, 2)])) for i in (0, 1))
    return b.add(first, second)


sum_neighbours = _op(i32x16, (i32x16, i32x16), _neighbours)  # lanes 0 + 1, 2 + 3 .. of two vectors


# --- the product ----------------------------------------------------------------------------------


def order_columns(x: int, c0: int, cols: int, n: int, out: int) -> None:
    """Columns c0 .. c0 + cols - 1 of the record at x; open because PLANES and GROUP are."""
    for c in range(c0, c0 + cols, 256):
        store_by_words(x + c, out)
        if PLANES == 2:
            store_by_words(x + n + c, out + 256)
        out += 256 * PLANES
        if GROUP == 16:
            store_f32x16(out, twice_each(load_f32(x + PLANES * n + c // 8)))
            out += 64


def dots(p: int, y: int) -> Any:
    """Sums of the block at p and the step at y, 16 columns each; open because PLANES is."""
    w0 = quad(p, 0)
    w1 = quad(p, 1)
    w2 = quad(p, 2)
    w3 = quad(p, 3)
    d = add_dot_u8x64(dot_u8x64(w0, load_i8x64(y)), w1, load_i8x64(y + 64))
    d = add_dot_u8x64(add_dot_u8x64(d, w2, load_i8x64(y + 128)), w3, load_i8x64(y + 192))
    if PLANES == 2:
        d = add_dot_u8x64(d << 8, w0, load_i8x64(y + 256))
        d = add_dot_u8x64(add_dot_u8x64(d, w1, load_i8x64(y + 320)), w2, load_i8x64(y + 384))
        d = add_dot_u8x64(d, w3, load_i8x64(y + 448))
    return lanes_down(d)


def matvec_lanes(job: int, r0: int, r1: int) -> None:
    """out[t, r] = row r . activations t, activations as records."""
    w, row_bytes, n = i64(job + _W), i64(job + _ROW_BYTES), i64(job + _N_COLS)
    ordered = alloca(73728)  # COLS / 256 * 576
    step = 256 * PLANES + (64 if GROUP == 16 else 0)
    for t in range(i64(job + _N_TOKENS)):
        x = token_at(job, t)
        out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE) - 4 * i64(job + _ROW0)
        for r in range(r0, r1):
            p = w + r * row_bytes
            ys = x + PLANES * n
            a = zero_f32()  # GROUP 32
            low = zero_f32()
            b = zero_f32x16()  # GROUP 16
            low_b = zero_f32x16()
            for c0 in range(0, n, COLS):
                cols = min(COLS, n - c0)
                if r == r0 or n > COLS:
                    order_columns(x, c0, cols, n, ordered)
                y = ordered
                if GROUP == 16:
                    for _ in range(0, cols, 256):
                        for line in range(0, BYTES, 64):
                            prefetch_far(p + AHEAD + line)
                        scale = load_f32x16(y + 256 * PLANES)
                        isums, sums = ys + n // 8 * 5, ys + n // 4
                        b, low_b = add_16(dots(p, y), p, scale, isums, sums, b, low_b)
                        y += step
                        ys += 64
                        p += BYTES
                else:
                    for c in range(0, cols, 512):
                        two = c + 256 < cols  # else the last block again, for nothing
                        q = p + BYTES if two else p
                        z = y + step if two else y
                        for line in range(0, 2 * BYTES, 64):
                            prefetch_far(p + AHEAD + line)
                        d = sum_neighbours(dots(p, y), dots(q, z))
                        a, low = add_two_32(d, p, q, two, ys, n, a, low)
                        y += 2 * step
                        ys += 64
                        p += 2 * BYTES
            put_f32(out + 4 * r, tree_sum_16(b + low_b) if GROUP == 16 else tree_sum_8(a + low))


# what has open names itself, in the order in which it is bound
OPEN_HELPERS: dict[str, Callable[..., Any]] = {
    "order_columns": order_columns,
    "dots": dots,
    "add_16": add_16,
    "add_two_32": add_two_32,
}
