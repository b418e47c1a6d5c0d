"""The inner loops of `tile.matmul`: what multiplies a tile's rows with tokens, as LLVM.

`inner_loop` takes one group of columns of a tile's rows through all steps for a few tokens. How a
tile stores weights depends on the instruction set and on the values that a type's weights can have
(panels.py):

    VNNI          unsigned bytes 128 too large, four products added to a sum in one instruction
    AVX2, small   (weight - least) / step, unsigned: `maddubs` multiplies these with the activations
                  and adds pairs of products in 16 bits; as many of such sums as cannot overflow are
                  added there before they are widened to 32 bits
    AVX2, else    16 bits, as are activations then (both planes in one): `madd` adds two products
    else          signed bytes

What a stored weight is too large by is taken off with the sum of the activations.

Activations come in panels (panels.py), so that a loop reads one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.simd.vectors import (
    F32,
    I8,
    I32,
    I64,
    P,
    _op,
    _plus,
    _pointer,
    _prefetch,
    call,
    f32x8,
    f32x16,
    i32x16,
    splat_value,
)
from quant.tile.panels import Panel, Storage

ROWS = 32
ELEMENTS_AHEAD = 16  # elements of a panel: how early they are fetched, into the second cache
HALF = ROWS // 2  # rows: what `_narrow_loop` takes at a time

fetch_far = _prefetch(2)


def _splat_load(b: Any, address: Any, element: Any, lanes: int = 16) -> Any:
    x = b.load(_pointer(b, address, element), align=1)
    return splat_value(b, x, ir.VectorType(element, lanes))


def _opaque(b: Any, x: Any) -> Any:
    """The same value. LLVM cannot see that: it would rearrange sums and run out of registers."""
    constraint = "=r,0" if x.type == I64 else "=x,0"
    return b.asm(ir.FunctionType(x.type, [x.type]), "", constraint, [x], side_effect=False)


def _in_order(b: Any, x: Any) -> Any:
    """The same vector; neither loads nor other values of `_in_order` are moved past this one."""
    return b.asm(ir.FunctionType(x.type, [x.type]), "", "=x,0", [x], side_effect=True)


def _fetch_element(b: Any, m: Any, y: Any, panel: Panel) -> None:
    """The element ELEMENTS_AHEAD of the one at y."""
    for line in range(0, panel.element, 64):
        fetch_far(b, m, [_plus(b, y, ELEMENTS_AHEAD * panel.element + line)])


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


def _places(b: Any, acc: Any, tokens: int, apart: int) -> list[Any]:
    """Where the accumulators of tokens lie: those of both halves of the rows of each."""
    return [_pointer(b, _plus(b, acc, apart // 2 * i), f32x16.llvm) for i in range(2 * tokens)]


def _both(b: Any, at: Any) -> list[Any]:
    """Scales or offsets of the two halves of the rows."""
    return [b.load(_pointer(b, _plus(b, at, 64 * half), f32x16.llvm), align=1) for half in range(2)]


def _inner_loop(tokens: int, panel: Panel, stored: Storage, apart: int) -> Any:
    """inner_loop(w, s, steps, y, numbers, acc, start).

    One group of columns of 32 rows for `tokens` tokens: acc = start + all steps. y, numbers: the
    first token's activations and scale in the element of the first step; elements of steps follow
    each other. Token t's acc lies t * apart bytes on, its second 16 rows half as many further;
    start is acc itself, or as many zeros.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]
    group = panel.group

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, y0, numbers0, acc0, start = v
        v16f, v16i = f32x16.llvm, i32x16.llvm
        places = _places(b, acc0, tokens, apart)

        def body(i: Any, before: Any) -> list[Any]:
            sums = _places(b, before, tokens, apart)
            w = b.add(w0, b.mul(i, ir.Constant(I64, group * 32)))
            to_y = _opaque(b, b.add(y0, b.mul(i, ir.Constant(I64, panel.element))))
            numbers = b.add(numbers0, b.mul(i, ir.Constant(I64, panel.element)))
            _fetch_element(b, m, to_y, panel)
            dots = {pair: ir.Constant(v16i, [0] * 16) for pair in pairs}
            if stored.zero:
                at = [_plus(b, numbers, 4 * (panel.tokens + t)) for t in range(tokens)]
                more = [_splat_load(b, x, I32) for x in at]
                if panel.planes == 1:
                    dots = {(t, half): more[t] for t, half in pairs}
            for plane in range(panel.planes):
                if plane:
                    dots = {pair: b.shl(d, ir.Constant(v16i, [8] * 16)) for pair, d in dots.items()}
                    if stored.zero:
                        dots = {(t, half): b.add(d, more[t]) for (t, half), d in dots.items()}
                for k in range(group // 4):
                    ready = []
                    for half in range(2):
                        place = _pointer(b, _plus(b, w, 128 * k + 64 * half), v16i)
                        ready.append(isa.prepare_quad(b, m, b.load(place, align=1)))
                    for t in range(tokens):
                        to_quad = panel.activations * t + group * plane + 4 * k
                        y = _splat_load(b, _plus(b, to_y, to_quad), I32)
                        for half in range(2):
                            dots[t, half] = isa.add_quad(b, m, dots[t, half], ready[half], y)
            scale = _both(b, b.add(s0, b.mul(i, ir.Constant(I64, 128))))
            for t in range(tokens):
                ys = _splat_load(b, _plus(b, numbers, 4 * t), F32)
                for half in range(2):
                    place = places[2 * t + half]
                    args = [b.sitofp(dots[t, half], v16f), b.fmul(scale[half], ys)]
                    args.append(b.load(sums[2 * t + half], align=1))
                    b.store(call(b, m, "llvm.fma.v16f32", v16f, args), place, align=1)
            return [acc0]

        _for_steps(b, steps, [start], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 7, generate)


def _narrow_loop(tokens: int, panel: Panel, stored: Storage, apart: int) -> Any:
    """narrow_loop(w, s, steps, y, numbers, acc, start).

    The same for HALF rows, in vectors of 8, with `maddubs` or `madd`.
    """
    group = panel.group
    pairs = [(t, piece) for t in range(tokens) for piece in range(HALF // 8)]
    v8f, v32b, v16w = f32x8.llvm, ir.VectorType(I8, 32), isa.V16I16
    slots = group // 2 if stored.wide else group // 4  # vectors of 2 or 4 columns
    together = slots if stored.wide else stored.quads
    vector = v16w if stored.wide else v32b
    multiply = isa.sums_of_products if stored.wide else isa.pair_products

    def sums(b: Any, m: Any, w: Any, to_y: Any, columns: range) -> dict[Any, Any]:
        """What these slots' products are for each token and piece, as `multiply` gives them."""
        total: dict[Any, Any] = {}
        for k in columns:
            places = [_pointer(b, _plus(b, w, 128 * k + 32 * i), vector) for i in range(HALF // 8)]
            weights = [b.load(place, align=1) for place in places]
            for t, piece in pairs:
                if piece == 0:
                    at = _plus(b, to_y, panel.activations * t + 4 * k)
                    y = b.bitcast(_splat_load(b, at, I32, 8), vector)
                x = multiply(b, m, weights[piece], y)
                if (t, piece) in total:
                    x = b.add(total[t, piece], x)
                total[t, piece] = _in_order(b, x)
        return total

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, y0, numbers0, acc0, start = v

        def body(i: Any, before: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, 128 * slots)))
            s = b.add(s0, b.mul(i, ir.Constant(I64, 128)))
            to_y = _opaque(b, b.add(y0, b.mul(i, ir.Constant(I64, panel.element))))
            numbers = b.add(numbers0, b.mul(i, ir.Constant(I64, panel.element)))
            _fetch_element(b, m, to_y, panel)
            dots: dict[Any, Any] = {}
            for first in range(0, slots, together):
                columns = range(first, min(first + together, slots))
                for pair, x in sums(b, m, w, to_y, columns).items():
                    dot = x if stored.wide else isa.sums_of_pairs(b, m, x, stored.step)
                    dots[pair] = b.add(dots[pair], dot) if pair in dots else dot
            for t, piece in pairs:
                dot = dots[t, piece]
                if piece == 0:
                    ys = _splat_load(b, _plus(b, numbers, 4 * t), F32, 8)
                    if stored.zero:
                        at = _plus(b, numbers, 4 * (panel.tokens + t))
                        more = _splat_load(b, at, I32, 8)
                if stored.zero:
                    dot = b.add(dot, more)
                scale = b.load(_pointer(b, _plus(b, s, 32 * piece), v8f), align=1)
                to, at = (
                    _pointer(b, _plus(b, x, apart * t + 32 * piece), v8f) for x in (acc0, before)
                )
                args = [b.sitofp(dot, v8f), b.fmul(scale, ys), b.load(at, align=1)]
                b.store(call(b, m, "llvm.fma.v8f32", v8f, args), to, align=1)
            return [acc0]

        _for_steps(b, steps, [start], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 7, generate)


def _offset_loop(tokens: int, panel: Panel) -> Any:
    """offset_loop(o, steps, numbers, low, start): the same for offsets * sums.

    As many rows at a time as registers hold sums of.
    """
    rows = ROWS if isa.ISA.startswith("avx512") else HALF
    vector, lanes = (f32x16.llvm, 16) if rows == ROWS else (f32x8.llvm, 8)
    name = f"llvm.fma.v{lanes}f32"

    def generate(b: Any, m: Any, v: Any) -> Any:
        for first in range(0, ROWS, rows):
            few_rows(b, m, v, [first + i for i in range(0, rows, lanes)])
        return ir.Constant(I64, 0)

    def few_rows(b: Any, m: Any, v: Any, pieces: list[int]) -> None:
        o, steps, numbers, low, before = v
        pairs = [(t, row) for t in range(tokens) for row in pieces]

        def body(i: Any, *acc: Any) -> list[Any]:
            at = b.add(o, b.mul(i, ir.Constant(I64, 4 * ROWS)))
            offset = {
                row: b.load(_pointer(b, _plus(b, at, 4 * row), vector), align=1) for row in pieces
            }
            to_sums = b.add(numbers, b.mul(i, ir.Constant(I64, panel.element)))
            new = []
            for (t, row), x in zip(pairs, acc, strict=True):
                if row == pieces[0]:
                    sum_ = _splat_load(b, _plus(b, to_sums, 4 * (2 * panel.tokens + t)), F32, lanes)
                new.append(call(b, m, name, vector, [offset[row], sum_, x]))
            return new

        sources, places = (
            [
                _pointer(b, _plus(b, x, 256 * t + 128 * (row // HALF) + 4 * (row % HALF)), vector)
                for t, row in pairs
            ]
            for x in (before, low)
        )
        start = [b.load(source, align=1) for source in sources]
        for place, value in zip(places, _for_steps(b, steps, start, body), strict=True):
            b.store(value, place, align=1)

    return _op(types.int64, (P,) * 5, generate)


@cache
def intrinsics(panel: Panel, stored: Storage, sums: int) -> dict[str, Any]:
    """What `matmul` leaves open, for a kind of type; made once for each.

    sums: bytes from a token's sums to the next one's.
    """
    narrow = stored.wide or stored.quads > 0
    more: dict[str, Any] = {"NARROW": narrow}
    for name, count in (("many", panel.tokens), ("one", 1)):
        made = (_narrow_loop if narrow else _inner_loop)(count, panel, stored, sums)
        more[f"narrow_{name}"], more[f"loop_{name}"] = (made, None) if narrow else (None, made)
        more[f"offsets_{name}"] = _offset_loop(count, panel)
    return more
