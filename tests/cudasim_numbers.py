"""Arithmetic of quant/cuda/intrinsics.py on Python's whole numbers and NumPy's float32."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

MASK = 0xFFFFFFFF
F = np.float32


def i32(x: int) -> int:
    x = int(x) & MASK
    return x - (1 << 32) if x >> 31 else x


def bits_of(x: Any) -> int:
    return int(F(x).view(np.uint32))


def float_of(bits: int) -> Any:
    return np.uint32(int(bits) & MASK).view(F)


def shift(x: int, n: int, left: bool) -> int:
    assert 0 <= n < 32, f"a shift by {n}"
    return (int(x) << int(n) if left else (int(x) & MASK) >> int(n)) & MASK


def fused(a: Any, b: Any, c: Any) -> float:
    """a * b + c in float64, rounded to odd: rounding that once more is rounding the sum once."""
    product, more = float(a) * float(b), float(c)  # exact
    total = product + more
    if math.isfinite(total):
        back = total - product
        rest = (product - (total - back)) + (more - back)
        if rest and not struct.unpack("<q", struct.pack("<d", total))[0] & 1:
            total = math.nextafter(total, math.copysign(math.inf, rest))
    return total


def half_of(bits: int) -> Any:
    return np.uint16(int(bits) & 0xFFFF).view(np.float16)


def half_bits(x: Any) -> int:
    return int(np.float16(x).view(np.uint16))


def fma_halves(a: int, b: int, c: int) -> int:
    low, high = (
        half_bits(fused(*(half_of(int(x) >> first) for x in (a, b, c)))) for first in (0, 16)
    )
    return low | high << 16


def bytes_of(x: int) -> tuple[int, ...]:
    return struct.unpack("<4b", struct.pack("<I", int(x) & MASK))


def dp4a(a: int, b: int, c: int) -> int:
    return i32(int(c) + sum(x * y for x, y in zip(bytes_of(a), bytes_of(b), strict=True)))


def permute(a: int, b: int, sel: int) -> int:
    both = (int(a) & MASK) | (int(b) & MASK) << 32
    out = 0
    for i in range(4):
        chosen = int(sel) >> 4 * i & 15
        byte = both >> 8 * (chosen & 7) & 255
        out |= (255 * (byte >> 7) if chosen & 8 else byte) << 8 * i
    return out


def bytes_less(a: int, b: int) -> int:
    return sum(((int(a) >> 8 * i & 255) - (int(b) >> 8 * i & 255) & 255) << 8 * i for i in range(4))


def whole(x: Any) -> int:
    return int(np.clip(np.rint(np.float64(x)), -(2**31), 2**31 - 1)) if x == x else 0
