"""Panels: the activations of many tokens, in the order in which the loops of a tile read them.

    element   one group of columns of the tokens that a loop takes at a time (TOKENS):
              | activations of token 0, of token 1, .. | scales | corrections | sums |
    block     at most 2,048 columns of at most MOST tokens: elements [group][tokens / TOKENS][step],
              columns in groups and steps as in kernels.py
    panel     blocks [tokens / MOST][columns / 2,048]

    activations   bytes of the first plane, then of the second; or 16 bits for both, where of four
                  the second and third have changed places (as in activations.py)
    corrections   int32, for what stored weights are too large by: added to the sum of products
    sums          float32, what offsets are multiplied by

Both are there whether a type reads them or not: so more types share a panel.

Records are what a matrix and one token want. Tiles (tile.py) multiply a few tokens at a time with
one group of columns after the other: from records that would be a stream for each token and kind of
number, more pages than the first TLB has entries. Panels are made once for all matrices that store
weights alike and read the same tokens; rows then only stream them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.compiler.jit import OPEN, bind, c_kernel, inline
from quant.kernels import (
    _INDEX,
    _N_COLS,
    _N_TOKENS,
    _OUT,
    _X,
    _X_STRIDE,
    GROUP,
    PLANES,
)
from quant.run.activations import words_offset
from quant.simd.vectors import (
    I8,
    I16,
    I32,
    I64,
    P,
    _op,
    _plus,
    _pointer,
    alloca,
    f32,
    i64,
    put_f32,
    put_i32,
    put_i64,
    u32,
)

# tokens of a block: the more, the fewer times weights are decoded; sums of all lie in a cache
MOST = 192 if isa.ISA.startswith("avx512") else 96
COLS = 2048  # columns of a block

# open, filled in by `Panel.names`
TOKENS: int = OPEN
WIDE: bool = OPEN
ACTIVATIONS: int = OPEN  # bytes of a token in an element
NUMBERS: int = OPEN  # where an element's scales begin
ELEMENT: int = OPEN  # bytes of an element
ZERO: int = OPEN


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
    """How a panel looks: what matrices that can share one agree in.

    tokens: that share an element. planes: of the records it is made of. group: columns of an
    element. wide: 16 bits for an activation. zero: what stored weights are too large by.
    """

    tokens: int
    planes: int
    group: int
    wide: bool
    zero: int

    @classmethod
    def of(cls, weights: range, group: int, planes: int) -> Panel:
        """The panel that a type's `matmul` reads."""
        stored = storage(weights, planes)
        return cls(tokens_at_a_time(group, stored), planes, group, stored.wide, stored.zero)

    @property
    def activations(self) -> int:
        """Bytes of one token in an element."""
        return self.group * (2 if self.wide else self.planes)

    @property
    def numbers(self) -> int:
        """Where the scales begin; corrections and sums follow, each 4 bytes a token."""
        return self.tokens * self.activations

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return -(-(self.numbers + 12 * self.tokens) // 64) * 64

    def n_blocks(self, n_tokens: Any, n_cols: int) -> Any:
        """Blocks of a panel; n_tokens: a number, or an array of them."""
        return -(-n_tokens // MOST) * -(-n_cols // COLS)

    def n_bytes(self, n_tokens: Any, n_cols: int) -> Any:
        """Bytes of a panel; n_tokens: a number, or an array of them."""
        return -(-n_tokens // self.tokens) * -(-n_cols // 256) * (256 // self.group) * self.element

    def names(self) -> dict[str, Any]:
        """What code that makes or reads such a panel leaves open."""
        return {
            "GROUP": self.group,
            "PLANES": self.planes,
            "TOKENS": self.tokens,
            "WIDE": self.wide,
            "ACTIVATIONS": self.activations,
            "NUMBERS": self.numbers,
            "ELEMENT": self.element,
            "ZERO": self.zero,
        }

    def address(self) -> int:
        """Address of the C kernel that makes blocks; see `fill_blocks`."""
        return int(_compiled(self).address)


@cache
def _compiled(panel: Panel) -> Any:
    names = panel.names() | {"copy_group": copy_group_of(panel)}
    name = "_".join(str(n) for n in names.values() if isinstance(n, int))
    for helper in (block_at, fill_block):
        names[helper.__name__] = inline(bind(helper, f"{helper.__name__}_{name}", **names))
    return c_kernel(bind(fill_blocks, f"fill_blocks_{name}", **names))


def copy_group_of(panel: Panel) -> Any:
    """copy_group(src, plane, dst): a group of a token's activations as an element holds them.

    src: what a record has of them: bytes, `plane` bytes from those of the first plane to those of
    the second; or words where a record has these.
    """
    group = panel.group

    def copy(b: Any, src: Any, dst: Any, size: int) -> None:
        vector = ir.VectorType(I8, size)
        b.store(b.load(_pointer(b, src, vector), align=1), _pointer(b, dst, vector), align=1)

    def generate(b: Any, m: Any, v: Any) -> Any:
        src, plane, dst = v
        if not panel.wide:
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


def copy_group(src: int, plane: int, dst: int) -> None:
    """Open: see `copy_group_of`."""


def block_at(panel: int, t0: int, tokens: int, c0: int, n: int) -> int:
    """Address of the block of `tokens` tokens from t0 and columns from c0 on; open.

    tokens: a multiple of TOKENS; n: columns of the whole panel.
    """
    before = t0 // TOKENS * ((n + 255) // 256) + tokens // TOKENS * (c0 // 256)
    return panel + before * (256 // GROUP) * ELEMENT


def fill_block(table: int, tokens: int, c0: int, steps: int, n: int, block: int) -> None:
    """`steps` x 256 columns from c0 on of the records whose addresses are in `table`; open."""
    lanes = 256 // GROUP
    to_scale = PLANES * n
    to_sums = to_scale + (n // 8 if GROUP == 32 else n // 4)
    to_isums = to_scale + (n // 2 if GROUP == 32 else n // 8 * 5)
    to_words = words_offset(n)
    for t in range(tokens):
        record = i64(table + 8 * t)
        at = block + t // TOKENS * steps * ELEMENT
        j = t % TOKENS
        for step in range(steps):
            for g in range(lanes):
                column = c0 + 256 * step + g * GROUP
                element = at + (tokens // TOKENS * steps * g + step) * ELEMENT
                src = to_words + 2 * column if WIDE and PLANES == 2 else column
                copy_group(record + src, n, element + ACTIVATIONS * j)
                numbers = element + NUMBERS + 4 * j
                put_f32(numbers, f32(record + to_scale + column // 32 * 4))
                isum = u32(record + to_isums + column // GROUP * 4)
                put_i32(numbers + 4 * TOKENS, -ZERO * isum)
                put_f32(numbers + 8 * TOKENS, f32(record + to_sums + column // GROUP * 4))


def fill_blocks(job: int, i0: int, i1: int) -> None:
    """Blocks i0 .. i1 - 1 of the panel at OUT from the records of a `matmul` job; open."""
    n, n_tokens = i64(job + _N_COLS), i64(job + _N_TOKENS)
    x, x_stride, index = i64(job + _X), i64(job + _X_STRIDE), i64(job + _INDEX)
    across = (n + COLS - 1) // COLS
    table = alloca(1536)  # addresses of MOST tokens' records
    for i in range(i0, i1):
        t0 = i // across * MOST
        c0 = i % across * COLS
        count = min(MOST, n_tokens - t0)
        padded = -(-count // TOKENS) * TOKENS
        for t in range(padded):  # those beyond the last: computed and forgotten
            k = t0 + min(t, count - 1)
            put_i64(table + 8 * t, x + (i64(index + 8 * k) if index else k * x_stride))
        steps = (min(COLS, n - c0) + 255) // 256
        fill_block(table, padded, c0, steps, n, block_at(i64(job + _OUT), t0, padded, c0, n))
