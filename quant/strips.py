"""The inner loops of `tile.matmul`: what multiplies a tile's rows with tokens, as LLVM.

`strips` takes one group of columns of a tile's rows through all steps for a few tokens. How a tile
stores weights depends on the instruction set and on the values that a type's weights can have
(`storage`):

    VNNI          unsigned bytes 128 too large, four products added to a sum in one instruction
    AVX2, small   (weight - least) / step, unsigned: `maddubs` multiplies these with the activations
                  and adds pairs of products in 16 bits; as many of such sums as cannot overflow are
                  added there before they are widened to 32 bits
    AVX2, else    16 bits, as are activations then (both planes in one): `madd` adds two products
    else          signed bytes

What a stored weight is too large by is taken off with the sum of the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from quant import isa
from quant.simd import (
    F32,
    I8,
    I32,
    I64,
    P,
    _op,
    _pointer,
    call,
    f32x8,
    f32x16,
    i32x16,
    splat_value,
)

ROWS = 32
MOST = 256  # tokens: more than a kernel takes at a time
HALF = ROWS // 2  # rows: what `_narrow_strips` takes at a time


class Storage(NamedTuple):
    """How a tile stores the weights of a type: as (weight + zero) / step.

    quads: how many products of four columns can be added in 16 bits, 0 where this is not done.
    wide: 16 bits for a weight and an activation.
    """

    zero: int = 0
    step: int = 1
    quads: int = 0
    wide: bool = False


def storage(weights: range, planes: int = 1) -> Storage:
    """The values that `decode` writes -> how they are stored.

    A sum of 16 bits gets two products of each quad, |activation| <= 127: with unsigned weights up
    to `most` it stays within quads * 2 * 127 * most.
    """
    if isa.VNNI:
        return Storage(zero=128)
    if not isa.PAIRS:
        return Storage()
    most = len(weights) - 1
    quads = 32767 // (2 * 127 * most)
    if quads == 0 or planes == 2:
        return Storage(wide=True)
    return Storage(zero=-weights.start, step=weights.step, quads=quads)


def tokens_at_a_time(group: int, stored: Storage) -> int:
    """Tokens per pass over a group: what registers hold."""
    if isa.ISA.startswith("avx512") or stored.wide:
        return 6
    if stored.quads:
        return 6 if 4 * stored.quads >= group else 3
    return 2


def _splat_load(b: Any, address: Any, element: Any, lanes: int = 16) -> Any:
    x = b.load(_pointer(b, address, element), align=1)
    return splat_value(b, x, ir.VectorType(element, lanes))


def _plus(b: Any, x: Any, n: int) -> Any:
    return b.add(x, ir.Constant(I64, n)) if n else x


def _opaque(b: Any, x: Any) -> Any:
    """The same value. LLVM cannot see that: it would rearrange sums and run out of registers."""
    constraint = "=r,0" if x.type == I64 else "=x,0"
    return b.asm(ir.FunctionType(x.type, [x.type]), "", constraint, [x], side_effect=False)


def _in_order(b: Any, x: Any) -> Any:
    """The same vector; neither loads nor other values of `_in_order` are moved past this one."""
    return b.asm(ir.FunctionType(x.type, [x.type]), "", "=x,0", [x], side_effect=True)


def _for_steps(b: Any, steps: Any, kept: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
    """A loop: the values `kept` become body(i, *kept) for every step i; returned at its end."""
    before = b.block
    loop = b.append_basic_block("steps")
    after = b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    phis = [b.phi(value.type) for value in kept]
    for phi, value in zip(phis, kept, strict=True):
        phi.add_incoming(value, before)
    new = body(i, *phis)
    following = b.add(i, ir.Constant(I64, 1))
    for phi, value in zip([i, *phis], [following, *new], strict=True):
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, steps), loop, after)
    b.position_at_end(after)
    return new


def _places(b: Any, acc: Any, tokens: int) -> list[Any]:
    """Where the accumulators of tokens lie: those of both halves of the rows of each."""
    return [_pointer(b, _plus(b, acc, 128 * i), f32x16.llvm) for i in range(2 * tokens)]


def _both(b: Any, at: Any) -> list[Any]:
    """Scales or offsets of the two halves of the rows."""
    return [b.load(_pointer(b, _plus(b, at, 64 * half), f32x16.llvm), align=1) for half in range(2)]


def _strips(tokens: int, group: int, planes: int, stored: Storage) -> Any:
    """strips(w, s, steps, table, x, ys, isum, n, acc).

    One group of columns of 32 rows for `tokens` tokens: acc grows by all steps. table: addresses of
    the tokens' records; x, ys, isum: what to add to these for the group's first columns, scales and
    sums; n: from one plane to the next. Token t's acc lies 256 t bytes on, its second 16 rows 128
    bytes further.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, table, x0, ys0, isum0, n, acc0 = v
        v16f, v16i = f32x16.llvm, i32x16.llvm
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(tokens)]
        places = _places(b, acc0, tokens)

        def body(i: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, group * 32)))
            to_x = _opaque(b, b.add(x0, b.mul(i, ir.Constant(I64, 256))))
            to_ys = _opaque(b, b.add(ys0, b.mul(i, ir.Constant(I64, 32))))
            dots = {pair: ir.Constant(v16i, [0] * 16) for pair in pairs}
            if stored.zero:  # what the weights are too large by, of all columns: taken off
                to_sum = _opaque(b, b.add(isum0, b.mul(i, ir.Constant(I64, 1024 // group))))
                at_sum = [b.add(r, to_sum) for r in records]
                isum = [b.load(_pointer(b, at, I32), align=1) for at in at_sum]
                bias = [
                    splat_value(b, b.mul(x, ir.Constant(I32, -stored.zero)), v16i) for x in isum
                ]
                if planes == 1:
                    dots = {(t, half): bias[t] for t, half in pairs}
            for plane in range(planes):
                if plane:
                    dots = {pair: b.shl(d, ir.Constant(v16i, [8] * 16)) for pair, d in dots.items()}
                    if stored.zero:
                        dots = {(t, half): b.add(d, bias[t]) for (t, half), d in dots.items()}
                if plane:
                    to_x = _opaque(b, b.add(to_x, n))
                at = [b.add(r, to_x) for r in records]
                for k in range(group // 4):
                    ready = []
                    for half in range(2):
                        place = _pointer(b, _plus(b, w, 128 * k + 64 * half), v16i)
                        ready.append(isa.prepare_quad(b, m, b.load(place, align=1)))
                    for t in range(tokens):
                        y = _splat_load(b, _plus(b, at[t], 4 * k), I32)
                        for half in range(2):
                            dots[t, half] = isa.add_quad(b, m, dots[t, half], ready[half], y)
            scale = _both(b, b.add(s0, b.mul(i, ir.Constant(I64, 128))))
            for t in range(tokens):
                ys = _splat_load(b, b.add(records[t], to_ys), F32)
                for half in range(2):
                    place = places[2 * t + half]
                    args = [b.sitofp(dots[t, half], v16f), b.fmul(scale[half], ys)]
                    args.append(b.load(place, align=1))
                    b.store(call(b, m, "llvm.fma.v16f32", v16f, args), place, align=1)
            return []

        _for_steps(b, steps, [], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 9, generate)


def _narrow_strips(tokens: int, group: int, stored: Storage) -> Any:
    """narrow_strips(w, s, steps, table, y, x, ys, isum, acc).

    The same for HALF rows, in vectors of 8, with `maddubs` or `madd`. y: addresses of the tokens'
    activations; x: what to add to these for the group's first columns.
    """
    pairs = [(t, piece) for t in range(tokens) for piece in range(HALF // 8)]
    v8f, v8i, v32b, v16w = f32x8.llvm, ir.VectorType(I32, 8), ir.VectorType(I8, 32), isa.V16I16
    slots = group // 2 if stored.wide else group // 4  # vectors of 2 or 4 columns
    together = slots if stored.wide else stored.quads
    vector = v16w if stored.wide else v32b
    multiply = isa.sums_of_products if stored.wide else isa.pair_products

    def sums(b: Any, m: Any, w: Any, at: list[Any], columns: range) -> dict[Any, Any]:
        """What these slots' products are for each token and piece, as `multiply` gives them."""
        total: dict[Any, Any] = {}
        for k in columns:
            places = [_pointer(b, _plus(b, w, 128 * k + 32 * i), vector) for i in range(HALF // 8)]
            weights = [b.load(place, align=1) for place in places]
            for t, piece in pairs:
                if piece == 0:
                    y = b.bitcast(_splat_load(b, _plus(b, at[t], 4 * k), I32, 8), vector)
                x = multiply(b, m, weights[piece], y)
                if (t, piece) in total:
                    x = b.add(total[t, piece], x)
                total[t, piece] = _in_order(b, x)
        return total

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, table, y_table, x0, ys0, isum0, acc0 = v
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(tokens)]
        starts = [b.load(_pointer(b, _plus(b, y_table, 8 * t), I64)) for t in range(tokens)]

        def body(i: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, 128 * slots)))
            s = b.add(s0, b.mul(i, ir.Constant(I64, 128)))
            to_x = _opaque(b, b.add(x0, b.mul(i, ir.Constant(I64, 512 if stored.wide else 256))))
            to_ys = _opaque(b, b.add(ys0, b.mul(i, ir.Constant(I64, 32))))
            to_sum = _opaque(b, b.add(isum0, b.mul(i, ir.Constant(I64, 1024 // group))))
            at = [b.add(y, to_x) for y in starts]
            dots: dict[Any, Any] = {}
            for first in range(0, slots, together):
                columns = range(first, min(first + together, slots))
                for pair, x in sums(b, m, w, at, columns).items():
                    dot = x if stored.wide else isa.sums_of_pairs(b, m, x, stored.step)
                    dots[pair] = b.add(dots[pair], dot) if pair in dots else dot
            for t, piece in pairs:
                if piece == 0:
                    ys = _splat_load(b, b.add(records[t], to_ys), F32, 8)
                    if stored.zero:
                        isum = _opaque(b, _splat_load(b, b.add(records[t], to_sum), I32, 8))
                        bias = b.mul(isum, ir.Constant(v8i, [stored.zero] * 8))
                dot = b.sub(dots[t, piece], bias) if stored.zero else dots[t, piece]
                scale = b.load(_pointer(b, _plus(b, s, 32 * piece), v8f), align=1)
                place = _pointer(b, _plus(b, acc0, 256 * t + 32 * piece), v8f)
                args = [b.sitofp(dot, v8f), b.fmul(scale, ys), b.load(place, align=1)]
                b.store(call(b, m, "llvm.fma.v8f32", v8f, args), place, align=1)
            return []

        _for_steps(b, steps, [], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 9, generate)


def _offset_strips(tokens: int, group: int) -> Any:
    """offset_strips(o, steps, table, sums, low): the same for offsets * sums.

    sums: what to add to a record's address for the sum of the group's first columns.
    """
    together = tokens if isa.ISA.startswith("avx512") else min(tokens, 2)  # what registers hold

    def generate(b: Any, m: Any, v: Any) -> Any:
        o, steps, table, sums, low = v
        for first in range(0, tokens, together):
            at = b.add(table, ir.Constant(I64, 8 * first))
            to_low = b.add(low, ir.Constant(I64, 256 * first))
            few_offsets(b, m, (o, steps, at, sums, to_low), min(together, tokens - first))
        return ir.Constant(I64, 0)

    def few_offsets(b: Any, m: Any, v: Any, count: int) -> None:
        o, steps, table, sums, low = v
        pairs = [(t, half) for t in range(count) for half in range(2)]
        records = [b.load(_pointer(b, _plus(b, table, 8 * t), I64)) for t in range(count)]

        def body(i: Any, *acc: Any) -> list[Any]:
            offset = _both(b, b.add(o, b.mul(i, ir.Constant(I64, 128))))
            to_sum = b.add(sums, b.mul(i, ir.Constant(I64, 1024 // group)))
            here = [_splat_load(b, b.add(r, to_sum), F32) for r in records]
            return [
                call(b, m, "llvm.fma.v16f32", f32x16.llvm, [offset[half], here[t], x])
                for (t, half), x in zip(pairs, acc, strict=True)
            ]

        places = _places(b, low, count)
        start = [b.load(place, align=1) for place in places]
        for place, value in zip(places, _for_steps(b, steps, start, body), strict=True):
            b.store(value, place, align=1)

    return _op(types.int64, (P,) * 5, generate)


def _widen(b: Any, m: Any, v: Any) -> Any:
    """32 activations of one plane as the words of a Q16 record; see activations.py."""
    src, dst = v
    eight = ir.Constant(isa.V16I16, [8] * 16)
    x = b.load(_pointer(b, src, isa.V16I16), align=1)
    pairs = [b.bitcast(y, isa.V8I32) for y in (b.ashr(b.shl(x, eight), eight), b.ashr(x, eight))]
    lanes = [i // 2 + i % 2 * 8 for i in range(16)]
    both = b.shuffle_vector(*pairs, ir.Constant(ir.VectorType(I32, 16), lanes))
    b.store(both, _pointer(b, dst, both.type), align=1)
    return ir.Constant(I64, 0)


widen = _op(types.int64, (P, P), _widen)


@cache
def intrinsics(planes: int, group: int, stored: Storage) -> dict[str, Any]:
    """What `matmul` leaves open, for a kind of type; made once for each."""
    tokens = tokens_at_a_time(group, stored)
    narrow = stored.wide or stored.quads > 0
    more: dict[str, Any] = {
        "NARROW": narrow,
        "WIDE": stored.wide,
        "PART": 24 if stored.wide else MOST,
        "TILES": 1 if stored.quads else 2,
    }
    for name, count in (("many", tokens), ("one", 1)):
        if narrow:
            more[f"narrow_{name}"] = _narrow_strips(count, group, stored)
        else:
            more[f"strips_{name}"] = _strips(count, group, planes, stored)
    return more | {
        "TOKENS": tokens,
        "offsets_many": _offset_strips(tokens, group),
        "offsets_one": _offset_strips(1, group),
    }
