"""What each PTX instruction does to a `State`: see ptx_machine.py."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ptx_text import Instruction, Program

if TYPE_CHECKING:
    from ptx_machine import State

Array = np.ndarray
Read = Callable[["State"], Any]
Write = Callable[["State", Any], None]
Step = Callable[["State"], None]
KINDS = {"pred": np.bool_, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "f32": np.float32}
TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16,
    "s16": np.int16, "f16": np.float16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "f32": np.float32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "pred": np.bool_,
}  # fmt: skip
LANES = {n: np.arange(n) for n in (1, 2, 4, 8)}
TINY = 2.0**-126  # the least normal float32
WIDER = {"u16": np.uint32, "s16": np.int32, "u32": np.uint64, "s32": np.int64}


def fault(text: str) -> Exception:
    from ptx_machine import PtxError

    return PtxError(text)


def as_type(x: Any, dtype: Any) -> Any:
    """The same bits; of a wider register the low ones."""
    x = np.asarray(x)
    if x.dtype == dtype:
        return x
    size = np.dtype(dtype).itemsize
    if x.dtype.itemsize != size:
        x = x.astype(f"u{size}")
    return x.view(dtype) if x.ndim else x[()].view(dtype)


class Operands:
    """Readers and writers of one instruction's operands."""

    def __init__(self, parsed: Program, one: Instruction) -> None:
        self.parsed, self.one = parsed, one

    def read(self, at: int, dtype: Any) -> Read:
        """Operand number `at` as this type."""
        return self.reader(self.one.operands[at], dtype)

    def reader(self, text: str, dtype: Any) -> Read:
        """An operand as this type."""
        if text == "shared_memory":
            return lambda state: dtype(0)
        if text in self.parsed.tables:
            place = dtype(self.parsed.tables[text].ctypes.data)
            return lambda state: place
        if re.match(r"0[fF][0-9A-Fa-f]{8}$", text):
            value = np.float32(struct.unpack(">f", bytes.fromhex(text[2:]))[0])
            constant = as_type(value, dtype)
            return lambda state: constant
        if re.match(r"-?(0x[0-9A-Fa-f]+|\d+)$", text):
            bits = np.dtype(dtype).itemsize * 8 if dtype is not np.bool_ else 64
            number = int(text, 0) & (1 << bits) - 1
            plain = np.bool_(number) if dtype is np.bool_ else None
            whole = (
                plain
                if plain is not None
                else as_type(np.dtype(f"u{bits // 8}").type(number), dtype)
            )
            return lambda state: whole
        wanted = np.dtype(dtype)

        def register(state: State) -> Any:
            x = state.registers[text]
            return x if x.dtype == wanted else as_type(x, dtype)

        return register

    def write(self, at: int) -> Write:
        """Operand number `at`, a register."""
        return self.writer(self.one.operands[at])

    def writer(self, name: str) -> Write:
        """A register; only of the threads that take the step."""
        if name == "_":
            return lambda state, value: None
        kind = KINDS[self.parsed.kind(name)]

        def put(state: State, value: Any) -> None:
            value = np.asarray(value)
            if value.dtype != kind:
                size = np.dtype(kind).itemsize
                if value.dtype.itemsize < size and value.dtype.kind == "i":
                    value = value.astype(f"i{size}")  # cvt and ld extend signs
                value = as_type(value, kind)
            if state.mask is not None:
                before = state.registers.get(name)
                if before is None:
                    before = kind(0)
                value = np.where(state.mask, value, before)
            state.registers[name] = value

        return put

    def list_of(self, at: int) -> list[str]:
        """Registers in braces, or the only one."""
        return [name.strip() for name in self.one.operands[at].strip("{}").split(",")]

    def address(self, at: int) -> Read:
        """[register + number] -> int64."""
        inside = self.one.operands[at].strip("[]")
        base, _, offset = inside.partition("+")
        read = self.reader(base.strip(), np.uint64)
        more = np.uint64(int(offset or "0", 0) & (1 << 64) - 1)
        return lambda state: (read(state) + more).view(np.int64)


def step(parsed: Program, one: Instruction) -> Step:
    """The closure of an instruction, with its guard."""
    make = OPS.get(one.op)
    if make is None:
        raise NotImplementedError(one.text)
    todo = make(Operands(parsed, one), one)
    if one.guard is None or one.op == "bra":
        return todo
    name, negated = one.guard

    def guarded(state: State) -> None:
        wanted = np.asarray(state.registers[name]) != negated
        before = state.mask
        mask = np.broadcast_to(wanted, state.n)
        mask = mask if before is None else mask & before
        if not mask.any():
            return
        state.mask = mask
        place = state.place
        try:
            todo(state)
        finally:
            if state.place == place:
                state.mask = before

    if one.op in ("ret", "exit", "bar"):
        raise NotImplementedError(one.text)
    return guarded


# --- arithmetic ---------------------------------------------------------------------------------


def _type(one: Instruction) -> str:
    return one.parts[-1]


def _binary(compute: Callable[[Any, Any], Any]) -> Any:
    def make(o: Operands, one: Instruction) -> Step:
        dtype = TYPES[_type(one)]
        a, b, put = o.read(1, dtype), o.read(2, dtype), o.write(0)
        return lambda state: put(state, compute(a(state), b(state)))

    return make


def _unary(compute: Callable[[Any], Any]) -> Any:
    def make(o: Operands, one: Instruction) -> Step:
        dtype = TYPES[_type(one)]
        a, put = o.read(1, dtype), o.write(0)
        return lambda state: put(state, compute(a(state)))

    return make


def _mul(o: Operands, one: Instruction) -> Step:
    kind = _type(one)
    dtype = TYPES[kind]
    a, b, put = o.read(1, dtype), o.read(2, dtype), o.write(0)
    if "wide" in one.parts:
        wide = WIDER[kind]
        return lambda state: put(state, wide(a(state)) * wide(b(state)))
    if "hi" in one.parts:
        bits = np.dtype(dtype).itemsize * 8
        if bits == 64:
            return lambda state: put(state, _high(a(state), b(state), dtype))
        wide = WIDER[kind]
        return lambda state: put(
            state, (wide(a(state)) * wide(b(state)) >> wide(bits)).astype(dtype)
        )
    return lambda state: put(state, a(state) * b(state))


def _high(a: Any, b: Any, dtype: Any) -> Any:
    found = np.asarray(a).astype(object) * np.asarray(b).astype(object) >> 64
    return np.asarray(found).astype(dtype) if np.ndim(found) else dtype(found)


def _mad(o: Operands, one: Instruction) -> Step:
    kind = _type(one)
    dtype = TYPES[kind]
    wide = WIDER[kind] if "wide" in one.parts else dtype
    a, b, c, put = o.read(1, dtype), o.read(2, dtype), o.read(3, wide), o.write(0)
    return lambda state: put(state, wide(a(state)) * wide(b(state)) + c(state))


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32 with one rounding."""
    product = np.float64(a) * np.float64(b)
    c = np.float64(c)
    total = np.asarray(product + c)
    bits = total.view(np.int64)
    halfway = (bits & 0x1FFFFFFF) == 0x10000000
    small = np.abs(total) < TINY  # where half is depends on the size of a subnormal
    if small.any():
        halfway = halfway | small & (total != 0)
    if halfway.any():  # rounding twice may differ from rounding once
        back = total - product
        rest = (product - (total - back)) + (c - back)
        up = (rest > 0) == (total > 0)
        nudged = np.where(up, bits + 1, bits - 1).view(np.float64)
        total = np.where(halfway & (rest != 0) & (bits & 1 == 0), nudged, total)
    return total.astype(np.float32)


def _fma(o: Operands, one: Instruction) -> Step:
    if _type(one) == "f16x2":
        words = [o.read(i, np.uint32) for i in (1, 2, 3)]
        to = o.write(0)

        def halves(state: State) -> None:  # a float64 holds a product of halves and most sums
            x = [np.asarray(read(state))[..., None].view(np.float16) for read in words]
            a, b, c = (one.astype(np.float64) for one in x)
            to(state, (a * b + c).astype(np.float16).view(np.uint32)[..., 0])

        return halves
    _only(one, {"rn", "f32"})
    a, b, c, put = (o.read(1, np.float32), o.read(2, np.float32), o.read(3, np.float32), o.write(0))
    return lambda state: put(state, fused(a(state), b(state), c(state)))


def _only(one: Instruction, known: set[str]) -> None:
    if not set(one.parts) <= known:
        raise NotImplementedError(one.text)


def _add(o: Operands, one: Instruction) -> Step:
    if _type(one) == "f32":
        _only(one, {"rn", "f32"})
    return _binary(lambda a, b: a + b)(o, one)


def _sub(o: Operands, one: Instruction) -> Step:
    return _binary(lambda a, b: a - b)(o, one)


def _div(o: Operands, one: Instruction) -> Step:
    if _type(one) == "f32":
        _only(one, {"rn", "f32"})
        return _binary(lambda a, b: a / b)(o, one)
    return _binary(_quotient)(o, one)


def _quotient(a: Any, b: Any) -> Any:
    b = np.where(np.asarray(b) == 0, np.asarray(b).dtype.type(1), b)
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(b.dtype)


def _rem(o: Operands, one: Instruction) -> Step:
    return _binary(
        lambda a, b: np.fmod(a, np.where(np.asarray(b) == 0, np.asarray(b).dtype.type(1), b))
    )(o, one)


def _shift(left: bool) -> Any:
    def make(o: Operands, one: Instruction) -> Step:
        dtype = TYPES[_type(one)]
        bits = np.dtype(dtype).itemsize * 8
        a, count, put = o.read(1, dtype), o.read(2, np.uint32), o.write(0)

        def do(state: State) -> None:
            x, n = a(state), count(state)
            least = np.minimum(n, np.uint32(bits - 1)).astype(dtype)
            found = x << least if left else x >> least
            if np.dtype(dtype).kind == "u":
                found = np.where(n >= bits, dtype(0), found)
            put(state, found)

        return do

    return make


def _not(o: Operands, one: Instruction) -> Step:
    return _unary(lambda a: ~a)(o, one)


def _popc(o: Operands, one: Instruction) -> Step:
    dtype = TYPES[_type(one)]
    a, put = o.read(1, dtype), o.write(0)
    return lambda state: put(state, np.bitwise_count(a(state)).astype(np.uint32))


def _clz(o: Operands, one: Instruction) -> Step:
    a, put = o.read(1, np.uint32), o.write(0)

    def do(state: State) -> None:
        x = np.asarray(a(state))
        _, exponent = np.frexp(x.astype(np.float64))
        put(state, (32 - exponent).astype(np.uint32))

    return do


def _bfe(o: Operands, one: Instruction) -> Step:
    dtype = TYPES[_type(one)]
    a, start, count, put = o.read(1, dtype), o.read(2, np.uint32), o.read(3, np.uint32), o.write(0)
    bits = np.dtype(dtype).itemsize * 8

    def do(state: State) -> None:
        x, s, n = a(state), start(state), count(state)
        left = np.where(s + n < bits, bits - s - n, 0).astype(dtype)
        right = np.minimum(bits - n, bits - 1).astype(dtype)
        put(state, np.where(n == 0, dtype(0), (x << left) >> right))

    return do


def _bfi(o: Operands, one: Instruction) -> Step:
    a, b, start, count, put = (
        o.read(1, np.uint32), o.read(2, np.uint32), o.read(3, np.uint32), o.read(4, np.uint32),
        o.write(0),
    )  # fmt: skip

    def do(state: State) -> None:
        mask = ((np.uint64(1) << np.uint64(count(state))) - np.uint64(1)).astype(
            np.uint32
        ) << start(state)
        put(state, (b(state) & ~mask) | ((a(state) << start(state)) & mask))

    return do


def _lop3(o: Operands, one: Instruction) -> Step:
    a, b, c, put = o.read(1, np.uint32), o.read(2, np.uint32), o.read(3, np.uint32), o.write(0)
    table = int(one.operands[4], 0)
    terms = [k for k in range(8) if table >> k & 1]
    inverted = len(terms) > 4
    if inverted:
        terms = [k for k in range(8) if k not in terms]

    def do(state: State) -> None:
        sides = [(~x, x) for x in (a(state), b(state), c(state))]
        found = np.uint32(0)
        for k in terms:
            found = found | (sides[0][k >> 2] & sides[1][k >> 1 & 1] & sides[2][k & 1])
        put(state, ~found if inverted else found)

    return do


def _shf(o: Operands, one: Instruction) -> Step:
    a, b, count, put = o.read(1, np.uint32), o.read(2, np.uint32), o.read(3, np.uint32), o.write(0)
    left, wraps = one.parts[0] == "l", "wrap" in one.parts

    def do(state: State) -> None:
        both = np.uint64(b(state)) << np.uint64(32) | np.uint64(a(state))
        n = count(state)
        n = np.uint64(n & np.uint32(31) if wraps else np.minimum(n, np.uint32(32)))
        found = both << n >> np.uint64(32) if left else both >> n
        put(state, found.astype(np.uint32))

    return do


def _prmt(o: Operands, one: Instruction) -> Step:
    a, b, sel, put = o.read(1, np.uint32), o.read(2, np.uint32), o.read(3, np.uint32), o.write(0)

    def do(state: State) -> None:
        both = np.uint64(b(state)) << np.uint64(32) | np.uint64(a(state))
        chosen = np.uint64(sel(state))
        found = np.uint64(0)
        for i in range(4):
            one_byte = chosen >> np.uint64(4 * i) & np.uint64(15)
            byte = both >> (np.uint64(8) * (one_byte & np.uint64(7))) & np.uint64(255)
            sign = np.where(byte >> np.uint64(7) != 0, np.uint64(255), np.uint64(0))
            found = found | np.where(one_byte & np.uint64(8) != 0, sign, byte) << np.uint64(8 * i)
        put(state, found.astype(np.uint32))

    return do


def _dp4a(o: Operands, one: Instruction) -> Step:
    kinds = [np.int32 if part == "s32" else np.uint32 for part in one.parts]
    a, b, c, put = o.read(1, np.uint32), o.read(2, np.uint32), o.read(3, np.int32), o.write(0)

    def do(state: State) -> None:
        x, y = (
            np.asarray(v)
            .astype(np.uint32)
            .reshape(-1, 1)
            .view(np.uint8 if k is np.uint32 else np.int8)
            .astype(np.int32)
            for v, k in ((a(state), kinds[0]), (b(state), kinds[1]))
        )
        put(state, (c(state) + (x * y).sum(axis=1, dtype=np.int32)).astype(np.int32))

    return do


def _minmax(compute: Callable[[Any, Any], Any]) -> Any:
    return _binary(compute)  # fmin and fmax: the other, where one is not a number


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b, "lo": lambda a, b: a < b, "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b, "hs": lambda a, b: a >= b,
    "neu": lambda a, b: a != b, "equ": lambda a, b: ~((a < b) | (a > b)),
    "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
    "nan": lambda a, b: (a != a) | (b != b), "num": lambda a, b: (a == a) & (b == b),
}  # fmt: skip


def _setp(o: Operands, one: Instruction) -> Step:
    dtype = TYPES[_type(one)]
    compare = COMPARE[one.parts[0]]
    target = one.operands[0]
    a, b, put = o.read(1, dtype), o.read(2, dtype), o.writer(target)
    if len(one.parts) == 2:
        return lambda state: put(state, np.asarray(compare(a(state), b(state))))
    more, joined = o.read(3, np.bool_), one.parts[1]
    join: Callable[[Any, Any], Any] = {
        "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y
    }[joined]  # fmt: skip
    return lambda state: put(state, join(np.asarray(compare(a(state), b(state))), more(state)))


def _selp(o: Operands, one: Instruction) -> Step:
    dtype = TYPES[_type(one)]
    a, b, which, put = o.read(1, dtype), o.read(2, dtype), o.read(3, np.bool_), o.write(0)
    return lambda state: put(state, np.where(which(state), a(state), b(state)))


def _cvt(o: Operands, one: Instruction) -> Step:
    kinds = [part for part in one.parts if part in TYPES or part == "f16x2"]
    how = set(one.parts) - set(kinds)
    put = o.write(0)
    to, of = kinds
    if to == "f16x2":
        a, b = o.read(1, np.float32), o.read(2, np.float32)

        def pack(state: State) -> None:
            high, low = (
                np.asarray(v).astype(np.float16).view(np.uint16).astype(np.uint32)
                for v in (a(state), b(state))
            )
            put(state, high << np.uint32(16) | low)

        return pack
    source, target = TYPES[of], TYPES[to]
    a = o.read(1, source)
    if of.startswith("f") and not to.startswith("f") or "rni" in how:
        rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
        (chosen,) = (rounding[part] for part in how if part in rounding)
        if to == "f32":
            return lambda state: put(state, chosen(a(state)))
        least, most = np.iinfo(target).min, np.iinfo(target).max

        def whole(state: State) -> None:
            x = np.asarray(a(state), np.float64)
            x = np.where(np.isnan(x), 0, np.clip(chosen(x), least, most))
            put(state, x.astype(target))

        return whole
    if how - {"rn", "sat"} or "sat" in how:
        raise NotImplementedError(one.text)

    def convert(state: State) -> None:
        found = np.asarray(a(state)).astype(target)
        put(state, found.view(np.uint16) if to == "f16" else found)

    return convert


# --- moves and memory ---------------------------------------------------------------------------


def _mov(o: Operands, one: Instruction) -> Step:
    target, source = one.operands
    if source.startswith("{"):
        parts = [o.reader(name, np.uint64) for name in o.list_of(1)]
        kinds = [KINDS[o.parsed.kind(name)] for name in o.list_of(1)]
        put = o.write(0)
        size = 8 * np.dtype(kinds[0]).itemsize
        out = np.uint64 if size * len(parts) == 64 else np.uint32

        def pack(state: State) -> None:
            found = np.uint64(0)
            for i, read in enumerate(parts):
                found = found | read(state) << np.uint64(size * i)
            put(state, np.asarray(found).astype(out))

        return pack
    if target.startswith("{"):
        names = o.list_of(0)
        puts = [o.writer(name) for name in names]
        size = 64 // len(names) if _type(one) == "b64" else 32 // len(names)
        read = o.read(1, np.uint64)
        kind = np.dtype(f"u{size // 8}")

        def unpack(state: State) -> None:
            x = read(state)
            for i, put in enumerate(puts):
                put(state, np.asarray(x >> np.uint64(size * i)).astype(kind))

        return unpack
    dtype = TYPES[_type(one)]
    a, put = o.reader(source, dtype), o.writer(target)
    return lambda state: put(state, a(state))


def _cvta(o: Operands, one: Instruction) -> Step:
    a, put = o.read(1, np.uint64), o.write(0)
    return lambda state: put(state, a(state))


def _vector(one: Instruction) -> int:
    return next((int(part[1]) for part in one.parts if part in ("v2", "v4")), 1)


def spots(state: State, address: Any, size: int, lanes: int, where: Array, base: int) -> Array:
    """Indices (N, lanes) of elements in memory; threads that do not take the step: element 0."""
    at = np.asarray(address) - base
    if state.mask is not None:
        at = np.where(state.mask, at, 0)
    least, most = _ends(at)
    if least < 0 or most + size * lanes > where.nbytes:
        raise fault(f"byte {most if least >= 0 else least} of {where.nbytes}")
    if size * lanes > 1 and int(np.bitwise_or.reduce(at, axis=None)) & (size * lanes - 1):
        raise fault(f"an address that is no multiple of {size * lanes}")
    first = at >> (size.bit_length() - 1)
    return first[..., None] if lanes == 1 else first[..., None] + LANES[lanes]


def _ends(at: Any) -> tuple[int, int]:
    """The least and the greatest address."""
    if np.ndim(at) == 0:
        return int(at), int(at)
    return int(np.minimum.reduce(at)), int(np.maximum.reduce(at))


def _wide(state: State, x: Any) -> Array:
    """A number for each thread."""
    x = np.asarray(x)
    return x if x.ndim else np.broadcast_to(x, (state.n,))


def _place(
    state: State, one: Instruction, address: Any, size: int, lanes: int, writes: bool
) -> tuple[Array, Array]:
    """(memory as bytes, element indices)."""
    if "shared" in one.parts:
        base = state.block * state.shared_bytes
        at = _wide(state, address)
        least, most = _ends(at if state.mask is None else at[state.mask])
        if least < 0 or most + size * lanes > state.shared_bytes:
            raise fault(f"shared byte {most} of {state.shared_bytes}")
        at = at + base
        found = spots(state, at, size, lanes, state.shared, 0)
        if state.races is not None:
            state.races.touch(found, size, writes)
        return state.shared, found
    if "global" not in one.parts:
        raise fault("generic addresses")
    parts = state.beside if writes else [*state.tables, *state.beside]
    if parts:
        taking = address if state.mask is None else _wide(state, address)[state.mask]
        first = int(np.asarray(taking).flat[0])
        for part in parts:
            if part.start <= first < part.end:
                return part.bytes, spots(state, address, size, lanes, part.bytes, part.start)
    return state.machine.memory, spots(
        state, address, size, lanes, state.machine.memory, state.machine.base
    )


class Part(NamedTuple):
    """Memory beside the slab, or a table."""

    start: int
    end: int
    bytes: Array

    @classmethod
    def of(cls, array: Array) -> Part:
        """All of it."""
        start = array.ctypes.data
        return cls(start, start + array.nbytes, array)


def _by_memory(one: Instruction, address: Read, access: Callable[[State, Any], None]) -> Step:
    """A step for the threads of each part of the memory on its own: `access(state, address)`."""
    if "global" not in one.parts:
        return lambda state: access(state, address(state))

    def do(state: State) -> None:
        at, whole = address(state), state.mask
        if at.ndim == 0 or not state.beside:
            access(state, at)
            return
        least, most = _ends(at if whole is None else at[whole])
        if any(part.start <= least and most < part.end for part in state.beside) or all(
            most < part.start or least >= part.end for part in state.beside
        ):
            access(state, at)
            return
        where = np.zeros(at.shape, np.int64)
        for i, part in enumerate(state.beside):
            where[(at >= part.start) & (at < part.end)] = i + 1
        for i in np.unique(where if whole is None else where[whole]):
            state.mask = where == i if whole is None else (where == i) & whole
            access(state, at)
        state.mask = whole

    return do


def _ld(o: Operands, one: Instruction) -> Step:
    kind = TYPES[_type(one)]
    if one.parts[0] == "param":
        name = one.operands[1].strip("[]")
        put = o.write(0)
        return lambda state: put(state, as_type(state.arguments[name], kind))
    size, lanes = np.dtype(kind).itemsize, _vector(one)
    puts = [o.writer(name) for name in o.list_of(0)]

    def load(state: State, address: Any) -> None:
        memory, at = _place(state, one, address, size, lanes, False)
        found = memory.view(kind)[at]
        for i, put in enumerate(puts):
            put(state, found[..., i])

    return _by_memory(one, o.address(1), load)


def _st(o: Operands, one: Instruction) -> Step:
    kind = TYPES[_type(one)]
    size, lanes = np.dtype(kind).itemsize, _vector(one)
    reads = [o.reader(name, kind) for name in o.list_of(1)]

    def store(state: State, address: Any) -> None:
        memory, at = _place(state, one, address, size, lanes, True)
        view, mask = memory.view(kind), state.mask
        if mask is not None:
            at = at[mask]
        for i, read in enumerate(reads):
            value = read(state)
            view[at[..., i]] = value if mask is None or not np.ndim(value) else value[mask]

    return _by_memory(one, o.address(0), store)


def _atom(o: Operands, one: Instruction) -> Step:
    kind = TYPES[_type(one)]
    how = next(part for part in one.parts if part in ("add", "max", "min", "exch", "or", "inc"))
    returns = one.op == "atom"
    put = o.write(0) if returns else None
    address, value = o.address(int(returns)), o.read(int(returns) + 1, kind)

    def do(state: State) -> None:
        memory, at = _place(state, one, address(state), np.dtype(kind).itemsize, 1, True)
        places = np.broadcast_to(at[..., 0], state.n)
        values = np.broadcast_to(value(state), state.n)
        view = memory.view(kind)
        before = np.zeros(state.n, kind)
        chosen = range(state.n) if state.mask is None else np.flatnonzero(state.mask)
        for i in chosen:
            old = view[places[i]]
            before[i] = old
            new: dict[str, Any] = {
                "add": old + values[i], "max": max(old, values[i]), "min": min(old, values[i]),
                "exch": values[i], "or": old | values[i],
            }  # fmt: skip
            view[places[i]] = new[how]
        if put is not None:
            put(state, before)

    return do


def _cp(o: Operands, one: Instruction) -> Step:
    if one.parts[0] != "async":
        raise NotImplementedError(one.text)
    if one.parts[1] == "commit_group":
        return lambda state: state.copies.commit(state.mask)
    if one.parts[1] == "wait_group":
        left = int(one.operands[0])
        return lambda state: state.copies.wait(state.mask, left)
    size = int(one.operands[2])
    to, of = o.address(0), o.address(1)
    shared = Instruction("st", ["shared", "b32"], [], None, one.text)
    wide = Instruction("ld", ["global", "b32"], [], None, one.text)

    def do(state: State) -> None:
        target, at = _place(state, shared, to(state) & 0xFFFFFFFF, 4, size // 4, True)
        source, places = _place(state, wide, of(state), 4, size // 4, False)
        at, places = (np.broadcast_to(x, (state.n, size // 4)) for x in (at, places))
        threads = np.arange(state.n)
        if state.mask is not None:
            at, places, threads = at[state.mask], places[state.mask], threads[state.mask]
        values = source.view(np.uint32)[places]
        target.view(np.uint32)[at] = ~values  # to be read by nobody yet
        state.copies.add(threads, at, values)

    return do


class Copies:
    """Copies behind the threads' backs: they arrive when their thread waits for their group."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.closed = np.zeros(state.n, np.int64)  # groups of each thread
        self.under_way: list[tuple[Array, Array, Array, Array]] = []

    def add(self, threads: Array, at: Array, values: Array) -> None:
        """Words to places in shared memory, (n, words), of these threads' open groups."""
        self.under_way.append((threads, at, values, self.closed[threads]))

    def commit(self, mask: Array | None) -> None:
        """Close the threads' groups."""
        self.closed[... if mask is None else mask] += 1

    def wait(self, mask: Array | None, left: int) -> None:
        """All but the threads' `left` latest groups arrive."""
        here = np.ones(self.state.n, bool) if mask is None else mask
        waiting, self.under_way = self.under_way, []
        for threads, at, values, group in waiting:
            done = here[threads] & (group < self.closed[threads] - left)
            self.state.shared.view(np.uint32)[at[done]] = values[done]
            if not done.all():
                rest = ~done
                self.under_way.append((threads[rest], at[rest], values[rest], group[rest]))


# --- other threads ------------------------------------------------------------------------------


def _bra(o: Operands, one: Instruction) -> Step:
    target = o.parsed.labels[one.operands[0]]
    if one.guard is None:
        return lambda state: state.branch(np.bool_(True), target)
    name, negated = one.guard
    return lambda state: state.branch(np.asarray(state.registers[name]) != negated, target)


def _bar(o: Operands, one: Instruction) -> Step:
    if "warp" in one.parts:
        return lambda state: None
    return lambda state: state.barrier()


def _ret(o: Operands, one: Instruction) -> Step:
    return lambda state: state.end()


def _whole_warps(state: State) -> None:
    if state.mask is not None:
        lanes = state.mask.reshape(-1, 32)
        if (lanes.any(axis=1) != lanes.all(axis=1)).any():
            raise fault("lanes are missing")


def _by_warp(state: State, x: Any) -> Array:
    return np.broadcast_to(x, state.n).reshape(state.warps, 32)


def _shfl(o: Operands, one: Instruction) -> Step:
    how = one.parts[1]
    a, lane, put = o.read(1, np.uint32), o.read(2, np.uint32), o.write(0)
    own = np.arange(32)

    def do(state: State) -> None:
        _whole_warps(state)
        value, n = _by_warp(state, a(state)), _by_warp(state, lane(state)).astype(np.int64)
        if how == "bfly":
            at = own ^ n
        elif how == "idx":
            at = n & 31
        elif how == "down":
            at = np.where(own + n < 32, own + n, own)
        else:
            at = np.where(own - n >= 0, own - n, own)
        put(state, np.take_along_axis(value, np.broadcast_to(at, value.shape), 1).reshape(-1))

    return do


def _vote(o: Operands, one: Instruction) -> Step:
    a, put = o.read(1, np.bool_), o.write(0)
    if one.parts[1] != "ballot":
        raise NotImplementedError(one.text)

    def do(state: State) -> None:
        _whole_warps(state)
        bits = (_by_warp(state, a(state)).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(
            axis=1
        )
        put(state, np.repeat(bits.astype(np.uint32), 32))

    return do


def _redux(o: Operands, one: Instruction) -> Step:
    dtype = TYPES[_type(one)]
    a, put = o.read(1, dtype), o.write(0)
    reduce = {"max": np.max, "min": np.min}[one.parts[1]]

    def do(state: State) -> None:
        _whole_warps(state)
        put(state, np.repeat(reduce(_by_warp(state, a(state)), axis=1), 32))

    return do


def _match(o: Operands, one: Instruction) -> Step:
    a, put = o.read(1, np.uint32), o.write(0)

    def do(state: State) -> None:
        _whole_warps(state)
        value = _by_warp(state, a(state))
        same = value[:, :, None] == value[:, None, :]
        put(
            state,
            (same.astype(np.uint32) << np.arange(32, dtype=np.uint32))
            .sum(axis=2, dtype=np.uint32)
            .reshape(-1),
        )

    return do


LANE = np.arange(32)
GROUP, PLACE = LANE // 4, LANE % 4


def _words(state: State, read: Read, dtype: Any) -> Array:
    """(W, 32, numbers of a word)."""
    x = np.ascontiguousarray(_by_warp(state, read(state)))
    return x[:, :, None].view(dtype)


def _mma(o: Operands, one: Instruction) -> Step:
    shape, *_ = (part for part in one.parts if part.startswith("m16n8k"))
    k = int(shape.removeprefix("m16n8k"))
    dtype = np.float16 if "f16" in one.parts else np.int8
    per = 4 // np.dtype(dtype).itemsize  # numbers of a word
    out = np.float32 if "f16" in one.parts else np.int32
    names = [o.list_of(i) for i in range(4)]
    puts = [o.writer(name) for name in names[0]]
    a, b = ([o.reader(name, np.uint32) for name in names[i]] for i in (1, 2))
    c = [o.reader(name, out) for name in names[3]]

    def do(state: State) -> None:
        _whole_warps(state)
        left = np.zeros((state.warps, 16, k), np.float32)
        right = np.zeros((state.warps, k, 8), np.float32)
        columns = PLACE[:, None] * per + np.arange(per)
        for r, read in enumerate(a):
            rows = GROUP + 8 * (r & 1)
            left[:, rows[:, None], columns + k // 2 * (r >> 1)] = _words(state, read, dtype)
        for r, read in enumerate(b):
            right[:, columns + k // 2 * r, GROUP[:, None]] = _words(state, read, dtype)
        product = left @ right
        for i, (read, put) in enumerate(zip(c, puts, strict=True)):
            part = product[:, GROUP + 8 * (i >> 1), PLACE * 2 + (i & 1)].reshape(-1)
            put(state, read(state) + part.astype(out))

    return do


def _ldmatrix(o: Operands, one: Instruction) -> Step:
    names = o.list_of(0)
    puts = [o.writer(name) for name in names]
    turned = "trans" in one.parts
    address = o.address(1)
    shared = Instruction("ld", ["shared", "b16"], [], None, one.text)

    def do(state: State) -> None:
        _whole_warps(state)
        n = len(puts)
        rows = _by_warp(state, address(state) & 0xFFFFFFFF)
        mask = state.mask
        wanted = np.zeros((state.warps, 32), bool)
        wanted[:, : 8 * n] = True
        mine = np.where(wanted, rows, 0).reshape(-1)
        state.mask = wanted.reshape(-1) if mask is None else wanted.reshape(-1) & mask
        memory, at = _place(state, shared, mine, 2, 8, False)
        state.mask = mask
        cells = memory.view(np.uint16)[at].reshape(state.warps, 32, 8)
        for i, put in enumerate(puts):
            tile = cells[:, 8 * i : 8 * i + 8]
            if turned:
                tile = tile.transpose(0, 2, 1)
            pairs = np.ascontiguousarray(tile).view(np.uint32)  # (W, 8, 4)
            put(state, pairs[:, GROUP, PLACE].reshape(-1))

    return do


class Races:
    """Who touched each byte of shared memory since the last barrier of its block."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.warp = np.arange(state.n) // 32
        shape = state.shared.size // 4 + 1
        self.writer = np.full(shape, -1)
        self.reader = np.full(shape, -1)  # -2: several warps

    def pass_barrier(self, blocks: Array | None) -> None:
        """Forget what these blocks (None: all) did."""
        if blocks is None:
            self.writer[:] = self.reader[:] = -1
            return
        words = self.state.shared_bytes // 4
        for block in np.flatnonzero(blocks):
            self.writer[block * words : (block + 1) * words] = -1
            self.reader[block * words : (block + 1) * words] = -1

    def touch(self, at: Array, size: int, writes: bool) -> None:
        """Elements (N, lanes) are read or written by the threads that take the step."""
        state, lanes = self.state, at.shape[-1]
        words, warp = (at if size == 4 else at * size >> 2), self.warp
        if state.mask is not None:
            words, warp = words[state.mask], warp[state.mask]
        words, warp = words.reshape(-1), warp if lanes == 1 else np.repeat(warp, lanes)
        before = self.writer[words]
        if ((before >= 0) & (before != warp)).any():
            raise fault("a race: another warp has written there since the last barrier")
        read = self.reader[words]
        if writes:
            if ((read == -2) | (read >= 0) & (read != warp)).any():
                raise fault("a race: another warp has read there since the last barrier")
            self.writer[words] = warp
            if (self.writer[words] != warp).any():
                raise fault("a race: two warps write there")
        else:
            self.reader[words] = np.where((read == -1) | (read == warp), warp, -2)
            mixed = self.reader[words] != warp
            self.reader[words[mixed]] = -2


OPS: dict[str, Callable[[Operands, Instruction], Step]] = {
    "mov": _mov, "cvta": _cvta, "ld": _ld, "st": _st, "atom": _atom, "red": _atom, "cp": _cp,
    "add": _add, "sub": _sub, "mul": _mul, "mad": _mad, "fma": _fma, "div": _div, "rem": _rem,
    "neg": _unary(lambda a: -a), "abs": _unary(np.abs), "not": _not,
    "and": _binary(lambda a, b: a & b), "or": _binary(lambda a, b: a | b),
    "xor": _binary(lambda a, b: a ^ b), "shl": _shift(True), "shr": _shift(False),
    "min": _minmax(np.fmin), "max": _minmax(np.fmax), "setp": _setp, "selp": _selp, "cvt": _cvt,
    "popc": _popc, "clz": _clz, "bfe": _bfe, "bfi": _bfi, "lop3": _lop3, "shf": _shf,
    "prmt": _prmt, "dp4a": _dp4a, "sqrt": _unary(np.sqrt),
    "ex2": _unary(lambda a: np.exp2(np.float64(a)).astype(np.float32)),
    "bra": _bra, "bar": _bar, "barrier": _bar, "ret": _ret, "exit": _ret, "shfl": _shfl,
    "vote": _vote, "redux": _redux, "match": _match, "mma": _mma, "ldmatrix": _ldmatrix,
    "membar": lambda o, one: lambda state: None, "fence": lambda o, one: lambda state: None,
}  # fmt: skip
