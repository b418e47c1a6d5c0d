"""TQ1_0: 256 weights in 54 bytes; five base-3 digits (trits) to a byte.

    | 48 bytes of 5 trits | 4 bytes of 4 trits | d: half |        weight = d * (trit - 1)

    trit n of a byte v, 0 = the first: the whole part of 3 * (v * 3^n mod 256) / 256
    bytes 0-31:  trit n of byte b is weight 32 n + b
    bytes 32-47: trit n of byte 32 + b is weight 160 + 16 n + b
    bytes 48-51: trit n of byte 48 + b is weight 240 + 4 n + b

Source: block_tq1_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from typing import Any

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.ggml import GGMLType
from quant.quant_type import MATVEC, Direct, Pairs, QuantType
from quant.simd.pairs import high_bytes, join_halves_of, load_bytes, spread_bytes, times
from quant.simd.unpack import byte_constant, first_trits, join_halves, load_u8x4_8_times, trits
from quant.simd.vectors import (
    P,
    _op,
    constant,
    f16,
    join_u8,
    load_u8,
    load_u8x16_twice,
    load_u8x32_twice,
    splat_f16,
    splat_f32x16,
    store_f32x16,
    store_i8,
    u8x32,
)
from quant.types.tq1_0_matvec import matvec_16_rows

ones_and_threes = byte_constant([1] * 16 + [3] * 16)
powers_0_1 = byte_constant([1] * 32 + [3] * 32)
powers_2_3 = byte_constant([9] * 32 + [27] * 32)
powers_of_3 = byte_constant([0] * 16 + [3 ** (k // 4) for k in range(16)])


@inline
def scales_16(p: int) -> Any:
    """16 times d."""
    return splat_f32x16(f16(p + 52))


@inline
def weights_64(p: int, k: int) -> Any:
    """Weights 64 k .. 64 k + 63, 1 too large; k is a constant, so one branch is left."""
    if k == 0:
        v = load_u8x32_twice(p) * powers_0_1()
    elif k == 1:
        v = load_u8x32_twice(p) * powers_2_3()
    elif k == 2:
        v = join_u8(load_u8(p) * 81, load_u8x16_twice(p + 32) * ones_and_threes())
    else:
        a = load_u8x16_twice(p + 32) * ones_and_threes()
        b = join_halves(a * 81, load_u8x4_8_times(p + 48) * powers_of_3())
        v = join_u8(a * 9, b)
    return first_trits(v)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    store_f32x16(s, scales_16(p))
    v = load_u8(p)
    for n in range(5):
        store_i8(q + 32 * n, trits(v))
        v = v + v + v
    v = load_u8x16_twice(p + 32) * ones_and_threes()
    store_i8(q + 160, trits(v))
    store_i8(q + 192, trits(v * 9))
    store_i8(q + 224, trits(join_halves(v * 81, load_u8x4_8_times(p + 48) * powers_of_3())))


# --- matvec_pairs: contract there -----------------------------------------------------------------
#
# 9 v in 16 bits: the upper byte is 3 t0 + t1, of the first two trits; the lower one is what remains
# of v, with the other trits first. Even and odd bytes are multiplied apart.

FIRST, SECOND = [n // 3 for n in range(9)] + [0] * 7, [n % 3 for n in range(9)] + [0] * 7


def _trits_32(k: int) -> Any:
    """An intrinsic: a block's address -> its trits 32 k .. 32 k + 31, 1 too large."""

    def pair(b: Any, m: Any, products: Any, low: list[int], high: list[int]) -> Any:
        """Trits that tables find in upper bytes, one table for either half."""
        return isa.shuffle_bytes(b, m, constant(u8x32.llvm, low + high), high_bytes(b, *products))

    def generate(b: Any, m: Any, v: Any) -> Any:
        if k < 5:
            first = load_bytes(b, v[0], 32)
        else:
            first = spread_bytes(b, load_bytes(b, v[0], 16, 32))
        a = times(b, m, (first, first), [9] * 16)
        c = times(b, m, a, [9] * 16)
        if k in (0, 2):
            return pair(b, m, a if k == 0 else c, FIRST, FIRST)
        if k in (1, 3):
            return pair(b, m, a if k == 1 else c, SECOND, SECOND)
        if k in (5, 6):
            return pair(b, m, a if k == 5 else c, FIRST, SECOND)
        if k == 7:  # the last 4 bytes, four times: the n-th by 3^n, so that trit n comes first
            last = spread_bytes(b, load_bytes(b, v[0], 4, 48))
            last = times(b, m, (last, last), [1, 1, 3, 3, 9, 9, 27, 27] * 2)
            c = tuple(join_halves_of(b, x, y) for x, y in zip(c, last, strict=True))
        return high_bytes(b, *times(b, m, c, [3] * 16))

    return _op(u8x32, (P,), generate)


trits_0, trits_1, trits_2, trits_3, trits_4, trits_5, trits_6, trits_7 = map(_trits_32, range(8))


@inline
def weights_32(p: int, z: int, k: int) -> Any:
    """Trits, 1 too large."""
    if k == 0:
        w = trits_0(p)
    elif k == 1:
        w = trits_1(p)
    elif k == 2:
        w = trits_2(p)
    elif k == 3:
        w = trits_3(p)
    elif k == 4:
        w = trits_4(p)
    elif k == 5:
        w = trits_5(p)
    elif k == 6:
        w = trits_6(p)
    else:
        w = trits_7(p)
    return w


@inline
def scales(p: int, z: int) -> Any:
    """8 times d."""
    return splat_f16(p + 52)


QUANT = QuantType(
    ggml_type=GGMLType.TQ1_0,
    decode=decode,
    weights=range(-1, 2),
    direct=Direct(weights_64=weights_64, scales_16=scales_16, zero=1),
    overrides=dict.fromkeys(MATVEC, matvec_16_rows) if isa.VBMI else {},
    pairs=Pairs(weights_32=weights_32, scales=scales, zero=1, most=2),
    looped=3,
)
