"""Float vectors as wide as the machine has them, for products, attention and exponentials.

`V` is `f32x16` where there is AVX-512, else `f32x8` (on NEON two registers); the functions below
end in `_v` and work on it, so that one source serves both. `LANES` floats, `V_BYTES` bytes.

Sums over lanes always form the same tree, whether one vector is summed or sixteen at a time:
first half + second half, and so on down to one lane. `fold_*` is a level of that tree on two
vectors at once; sixteen sums cost 15 folds.
"""

from __future__ import annotations

import struct
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.simd import half
from quant.simd.vectors import (
    F16,
    F32,
    I8,
    I16,
    I32,
    P,
    _op,
    _pointer,
    _store,
    call,
    f32x8,
    f32x16,
    splat_value,
)

WIDE = isa.ISA.startswith("avx512")
V: Any = f32x16 if WIDE else f32x8
LANES = 16 if WIDE else 8
V_BYTES = 4 * LANES
PART = LANES // 4  # lanes of a quarter of V
_V, _INT = V.llvm, ir.VectorType(I32, LANES)


def _pick(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _floats(x: float) -> Any:
    return ir.Constant(_V, [float(struct.unpack("f", struct.pack("f", x))[0])] * LANES)


def _ints(x: int) -> Any:
    return ir.Constant(_INT, [x] * LANES)


def _fma(b: Any, m: Any, x: Any, y: Any, z: Any) -> Any:
    return call(b, m, f"llvm.fma.v{LANES}f32", _V, [x, y, z])


# --- loads and stores ---------------------------------------------------------------------------


def _load(element: Any, lanes: int, widen: Any) -> Any:
    narrow = ir.VectorType(element, lanes)
    return _op(V, (P,), lambda b, m, v: widen(b, b.load(_pointer(b, v[0], narrow), align=1)))


def _from_bf16(b: Any, x: Any) -> Any:
    wide = ir.VectorType(I32, x.type.count)
    shift = ir.Constant(wide, [16] * x.type.count)
    return b.bitcast(b.shl(b.zext(x, wide), shift), ir.VectorType(F32, x.type.count))


def _from_i8(b: Any, x: Any) -> Any:
    return b.sitofp(b.sext(x, ir.VectorType(I32, x.type.count)), ir.VectorType(F32, x.type.count))


load_v = _load(F32, LANES, lambda b, x: x)
load_f16_v = _load(F16, LANES, half.widen)
load_bf16_v = _load(I16, LANES, _from_bf16)
load_i8_v = _load(I8, LANES, _from_i8)
store_v = _op(types.int64, (P, V), lambda b, m, v: _store(b, v[1], v[0]))


def _store_part(k: int) -> Any:
    lanes = [PART * k + i for i in range(PART)]
    return _op(types.int64, (P, V), lambda b, m, v: _store(b, _pick(b, v[1], v[1], lanes), v[0]))


store_part_0, store_part_1, store_part_2, store_part_3 = (_store_part(k) for k in range(4))
store_8 = _op(  # lanes 0-7
    types.int64, (P, V), lambda b, m, v: _store(b, _pick(b, v[1], v[1], list(range(8))), v[0])
)

# --- arithmetic ---------------------------------------------------------------------------------

zero_v = _op(V, (), lambda b, m, v: _floats(0.0))
splat_v = _op(V, (types.float32,), lambda b, m, v: splat_value(b, v[0], _V))
fma_v = _op(V, (V, V, V), lambda b, m, v: _fma(b, m, *v))  # a * b + c, one rounding
div_v = _op(V, (V, V), lambda b, m, v: b.fdiv(v[0], v[1]))
max_v = _op(  # the second where the first is not a number
    V, (V, V), lambda b, m, v: b.select(b.fcmp_ordered(">", v[0], v[1]), v[0], v[1])
)


def _first_lanes(b: Any, m: Any, v: Any) -> Any:
    """v[0] in the lanes below v[1], -inf above."""
    count = b.trunc(v[1], I32)
    one = b.insert_element(ir.Constant(_INT, ir.Undefined), count, ir.Constant(I32, 0))
    limit = _pick(b, one, one, [0] * LANES)
    below = b.icmp_signed("<", ir.Constant(_INT, list(range(LANES))), limit)
    return b.select(below, v[0], ir.Constant(_V, [float("-inf")] * LANES))


first_lanes_v = _op(V, (V, types.int64), _first_lanes)


def _exp(b: Any, m: Any, v: Any) -> Any:
    """e^x: x = n ln 2 + r, a polynomial in |r| <= 0.35, times 2^n in two steps.

    Within 1 ulp of the true value; 0 below -64, inf above 89; not-a-number stays. Coefficients:
    Cephes' expf.

    Below -64: a share of attention under 2e-28 of the largest does not show in a float32 result.
    Times a small value, under 7e-11, it would be denormal, for which Intel's processors call
    their microcode: attention took up to 12 times as long. SiLU adds e^x to 1.
    """
    x = v[0]
    low, high, magic = _floats(-64.0), _floats(89.0), _floats(12582912.0)  # 1.5 * 2^23
    lost = b.fcmp_ordered("<", x, low)
    x = b.select(lost, low, x)
    x = b.select(b.fcmp_ordered(">", x, high), high, x)
    shifted = _fma(b, m, x, _floats(1.4426950408889634), magic)
    n = b.sub(b.bitcast(shifted, _INT), b.bitcast(magic, _INT))
    whole = b.fsub(shifted, magic)
    r = _fma(b, m, whole, _floats(-0.693359375), x)
    r = _fma(b, m, whole, _floats(2.12194440e-4), r)
    p = _floats(1.9875691500e-4)
    for c in (
        1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    ):  # fmt: skip
        p = _fma(b, m, p, r, _floats(c))
    p = b.fadd(_fma(b, m, p, b.fmul(r, r), r), _floats(1.0))
    first = b.ashr(n, _ints(1))
    for part in (first, b.sub(n, first)):
        p = b.fmul(p, b.bitcast(b.shl(b.add(part, _ints(127)), _ints(23)), _V))
    return b.select(lost, _floats(0.0), p)


def _silu(b: Any, m: Any, v: Any) -> Any:
    """x * sigmoid(x) = x / (1 + e^-x); -0 where e^-x overflows."""
    e = _exp(b, m, [b.fsub(_floats(0.0), v[0])])
    return b.fdiv(v[0], b.fadd(e, _floats(1.0)))


exp_v = _op(V, (V,), _exp)
silu_v = _op(V, (V,), _silu)

# --- sums over lanes ----------------------------------------------------------------------------


def _fold(low: list[int], high: list[int]) -> Any:
    return _op(
        V,
        (V, V),
        lambda b, m, v: b.fadd(_pick(b, v[0], v[1], low), _pick(b, v[0], v[1], high)),
    )


def _segments(size: int) -> tuple[list[int], list[int]]:
    """Lanes of the first and second halves of all segments of `size` lanes in two vectors."""
    starts = range(0, 2 * LANES, size)
    half = size // 2
    return [s + i for s in starts for i in range(half)], [
        s + half + i for s in starts for i in range(half)
    ]


def _in_quads(first: list[int], second: list[int]) -> list[int]:
    """In every group of four lanes: two of the first vector's lanes, two of the second's."""
    return [
        lane for q in range(0, LANES, 4)
        for lane in (*(q + i for i in first), *(LANES + q + i for i in second))
    ]  # fmt: skip


fold_16: Any = _fold(*_segments(16)) if WIDE else None  # a -> 8 lanes | b -> 8 lanes
fold_8 = _fold(*_segments(8))  # every 8 lanes -> 4: those of a, then those of b
# every 4 lanes -> 2, of a and b in turn; every pair of lanes -> 1, two of a and b in turn
fold_4 = _fold(_in_quads([0, 1], [0, 1]), _in_quads([2, 3], [2, 3]))
fold_2 = _fold(_in_quads([0, 2], [0, 2]), _in_quads([1, 3], [1, 3]))


def _tree(b: Any, x: Any, combine: Any) -> Any:
    size = LANES
    while size > 1:
        size //= 2
        x = combine(
            b, _pick(b, x, x, list(range(size))), _pick(b, x, x, list(range(size, 2 * size)))
        )
    return b.extract_element(x, ir.Constant(I32, 0))


def _larger(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


sum_v = _op(types.float32, (V,), lambda b, m, v: _tree(b, v[0], lambda b, x, y: b.fadd(x, y)))
first_lane = _op(types.float32, (V,), lambda b, m, v: b.extract_element(v[0], ir.Constant(I32, 0)))
maximum_v = _op(types.float32, (V,), lambda b, m, v: _tree(b, v[0], _larger))
_EVEN_PAIRS = [4 * q + i for q in range(4) for i in (0, 1)]
pairs_of_quads = _op(  # lanes 0 1 4 5 8 9 12 13 of f32x16, as lanes 0-7
    V, (V,), lambda b, m, v: _pick(b, v[0], v[0], _EVEN_PAIRS * 2) if WIDE else v[0]
)
