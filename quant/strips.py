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

Activations come in panels, so that a loop reads one stream. An element of a panel holds one group
of columns of the tokens that a loop takes at a time:

    | activations of token 0, of token 1, .. | scales | corrections | sums |

    activations   bytes of the first plane, then of the second; or 16 bits for both, where of four
                  the second and third have changed places (as in activations.py)
    corrections   int32, for what weights are too large by: added to the sum of products
    sums          float32, what offsets are multiplied by
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from quant import isa
from quant.simd import (
    F32,
    I8,
    I16,
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
MOST = 96  # tokens that a kernel takes at a time
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


@dataclass(frozen=True, slots=True)
class Panel:
    """Sizes of a panel's elements, in bytes. tokens: how many share an element."""

    tokens: int
    planes: int
    group: int
    stored: Storage

    @property
    def activations(self) -> int:
        """Of one token."""
        return self.group * (2 if self.stored.wide else self.planes)

    @property
    def numbers(self) -> int:
        """Where the scales begin; corrections and sums follow, each 4 bytes a token."""
        return self.tokens * self.activations

    @property
    def element(self) -> int:
        """Of a whole element."""
        return -(-(self.numbers + 12 * self.tokens) // 64) * 64


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


def _strips(tokens: int, panel: Panel) -> Any:
    """strips(w, s, steps, y, numbers, acc).

    One group of columns of 32 rows for `tokens` tokens: acc grows by all steps. y, numbers: the
    first token's activations and scale in the element of the first step; elements of steps follow
    each other. Token t's acc lies 256 t bytes on, its second 16 rows 128 bytes further.
    """
    pairs = [(t, half) for t in range(tokens) for half in range(2)]
    group, stored = panel.group, panel.stored

    def generate(b: Any, m: Any, v: Any) -> Any:
        w0, s0, steps, y0, numbers0, acc0 = v
        v16f, v16i = f32x16.llvm, i32x16.llvm
        places = _places(b, acc0, tokens)

        def body(i: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, group * 32)))
            to_y = _opaque(b, b.add(y0, b.mul(i, ir.Constant(I64, panel.element))))
            numbers = b.add(numbers0, b.mul(i, ir.Constant(I64, panel.element)))
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
                    args.append(b.load(place, align=1))
                    b.store(call(b, m, "llvm.fma.v16f32", v16f, args), place, align=1)
            return []

        _for_steps(b, steps, [], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 6, generate)


def _narrow_strips(tokens: int, panel: Panel) -> Any:
    """narrow_strips(w, s, steps, y, numbers, acc).

    The same for HALF rows, in vectors of 8, with `maddubs` or `madd`.
    """
    group, stored = panel.group, panel.stored
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
        w0, s0, steps, y0, numbers0, acc0 = v

        def body(i: Any) -> list[Any]:
            w = b.add(w0, b.mul(i, ir.Constant(I64, 128 * slots)))
            s = b.add(s0, b.mul(i, ir.Constant(I64, 128)))
            to_y = _opaque(b, b.add(y0, b.mul(i, ir.Constant(I64, panel.element))))
            numbers = b.add(numbers0, b.mul(i, ir.Constant(I64, panel.element)))
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
                place = _pointer(b, _plus(b, acc0, 256 * t + 32 * piece), v8f)
                args = [b.sitofp(dot, v8f), b.fmul(scale, ys), b.load(place, align=1)]
                b.store(call(b, m, "llvm.fma.v8f32", v8f, args), place, align=1)
            return []

        _for_steps(b, steps, [], body)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 6, generate)


def _offset_strips(tokens: int, panel: Panel) -> Any:
    """offset_strips(o, steps, numbers, low): the same for offsets * sums.

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
        o, steps, numbers, low = v
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

        places = [
            _pointer(b, _plus(b, low, 256 * t + 128 * (row // HALF) + 4 * (row % HALF)), vector)
            for t, row in pairs
        ]
        start = [b.load(place, align=1) for place in places]
        for place, value in zip(places, _for_steps(b, steps, start, body), strict=True):
            b.store(value, place, align=1)

    return _op(types.int64, (P,) * 4, generate)


def _copy_group(panel: Panel) -> Any:
    """copy_group(src, plane, dst): a group of a token's activations as an element holds them.

    src: what a record has of them: bytes, `plane` bytes from those of the first plane to those of
    the second; or words where a record has these.
    """
    group, stored = panel.group, panel.stored

    def copy(b: Any, src: Any, dst: Any, size: int) -> None:
        vector = ir.VectorType(I8, size)
        b.store(b.load(_pointer(b, src, vector), align=1), _pointer(b, dst, vector), align=1)

    def generate(b: Any, m: Any, v: Any) -> Any:
        src, plane, dst = v
        if not stored.wide:
            copy(b, src, dst, group)
            if panel.planes == 2:
                copy(b, b.add(src, plane), _plus(b, dst, group), group)
        elif panel.planes == 2:
            copy(b, src, dst, 2 * group)
        else:
            half = group // 2
            bytes_2 = ir.VectorType(I16, half)
            eight = ir.Constant(bytes_2, [8] * half)
            x = b.load(_pointer(b, src, bytes_2), align=1)
            words_2 = ir.VectorType(I32, half // 2)
            parts = (b.ashr(b.shl(x, eight), eight), b.ashr(x, eight))
            evens, odds = (b.bitcast(y, words_2) for y in parts)
            lanes = [i // 2 + i % 2 * (half // 2) for i in range(half)]
            both = b.shuffle_vector(evens, odds, ir.Constant(ir.VectorType(I32, half), lanes))
            b.store(both, _pointer(b, dst, both.type), align=1)
        return ir.Constant(I64, 0)

    return _op(types.int64, (P,) * 3, generate)


@cache
def intrinsics(planes: int, group: int, stored: Storage) -> dict[str, Any]:
    """What `matmul` leaves open, for a kind of type; made once for each."""
    tokens = tokens_at_a_time(group, stored)
    panel = Panel(tokens, planes, group, stored)
    narrow = stored.wide or stored.quads > 0
    more: dict[str, Any] = {
        "NARROW": narrow,
        "WIDE": stored.wide,
        "TOKENS": tokens,
        "ACTIVATIONS": panel.activations,
        "NUMBERS": panel.numbers,
        "ELEMENT": panel.element,
        "ZERO": stored.zero,
        "copy_group": _copy_group(panel),
    }
    for name, count in (("many", tokens), ("one", 1)):
        if narrow:
            more[f"narrow_{name}"] = _narrow_strips(count, panel)
        else:
            more[f"strips_{name}"] = _strips(count, panel)
        more[f"offsets_{name}"] = _offset_strips(count, panel)
    return more
