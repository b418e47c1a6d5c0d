"""e^x and SiLU of a float32 with the bits of quant/simd/floats.py, product by product."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.cuda.intrinsics import as_f32, as_u32, fma, i32, quotient, shl, u32
from quant.cuda.ptx import device

ZERO, ONE = np.float32(0), np.float32(1)
LOW, HIGH = np.float32(-64), np.float32(89)
MAGIC = np.float32(1.5 * 2**23)
MAGIC_BITS = int(MAGIC.view(np.int32))
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
C5, C4, C3, C2, C1, C0 = (
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1,
    )
)  # fmt: skip


@device
def exp_f32(x: Any) -> Any:
    """0 below -64, inf above 89; not-a-number stays."""
    lost = x < LOW
    x = LOW if lost else x
    x = HIGH if x > HIGH else x
    shifted = fma(x, LOG2_E, MAGIC)
    n = i32(as_u32(shifted)) - MAGIC_BITS
    whole = shifted - MAGIC
    r = fma(whole, LN2_LOW, fma(whole, LN2_HIGH, x))
    p = fma(C5, r, C4)
    p = fma(p, r, C3)
    p = fma(p, r, C2)
    p = fma(p, r, C1)
    p = fma(p, r, C0)
    p = fma(p, r * r, r) + ONE
    first = n >> 1
    p = p * as_f32(shl(u32(first + 127), 23))
    p = p * as_f32(shl(u32(n - first + 127), 23))
    return ZERO if lost else p


@device
def silu(x: Any) -> Any:
    """x / (1 + e^-x)."""
    return quotient(x, exp_f32(ZERO - x) + ONE)
