"""float32 -> records (records.py), with the bits of `quantize_32` in quant/run/activations.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.cuda.intrinsics import (
    fma,
    larger,
    permute,
    quotient,
    round_f32,
    round_i32,
    size,
    smaller,
    store_f32,
    store_u32,
    swap_f32,
    u32,
)
from quant.cuda.ptx import device
from quant.run.activations import TINY

ZERO = np.float32(0)
SMALLEST = np.float32(TINY)
MOST = np.float32(127)
LEAST = np.float32(-127)
FINER = np.float32(256)  # the second plane
FINER_SCALE = np.float32(1 / 256)


@device
def in_a_word(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four whole numbers as signed bytes, the first lowest."""
    low = permute(u32(round_i32(a)), u32(round_i32(b)), 0x0040)
    high = permute(u32(round_i32(c)), u32(round_i32(d)), 0x0040)
    return permute(low, high, 0x5410)


@device
def rest(x: Any, whole: Any) -> Any:
    """256ths of x - whole, at most 127 either way."""
    return larger(smaller(round_f32((x - whole) * FINER), MOST), LEAST)


@device
def quantize_4(
    record: Any, n: Any, column: Any, planes: Any, a: Any, b: Any, c: Any, d: Any
) -> None:
    """Columns column .. column + 3 of a record of n columns; lane i of a warp: 4 i of its 128."""
    top = larger(larger(size(a), size(b)), larger(size(c), size(d)))
    top = larger(top, swap_f32(top, 1))
    top = larger(top, swap_f32(top, 2))
    top = larger(top, swap_f32(top, 4))
    scale = ZERO
    inverse = ZERO
    if top > SMALLEST:
        scale = quotient(top, MOST)
        inverse = quotient(MOST, top)
    a, b, c, d = a * inverse, b * inverse, c * inverse, d * inverse
    ha, hb, hc, hd = round_f32(a), round_f32(b), round_f32(c), round_f32(d)
    store_u32(record + column, in_a_word(ha, hb, hc, hd))
    if planes == 2:
        scale = scale * FINER_SCALE
        a, b, c, d = rest(a, ha), rest(b, hb), rest(c, hc), rest(d, hd)
        store_u32(record + n + column, in_a_word(a, b, c, d))
        ha, hb = fma(ha, FINER, a), fma(hb, FINER, b)
        hc, hd = fma(hc, FINER, c), fma(hd, FINER, d)
    half = (ha + hb) + (hc + hd)  # whole numbers below 2^24: exact in any order
    half = half + swap_f32(half, 1)
    half = half + swap_f32(half, 2)
    both = half + swap_f32(half, 4)
    scale = scale + (both - both)  # + 0, or not a number
    numbers = record + planes * n
    if column % 16 == 0:
        at = numbers + (column >> 2)
        store_f32(at + (n >> 2), scale * half)
        store_u32(at + (n >> 3) * 5, u32(round_i32(half)))
    if column % 32 == 0:
        at = numbers + (column >> 3)
        store_f32(at, scale)
        store_f32(at + (n >> 3), scale * both)
        store_u32(at + (n >> 1), u32(round_i32(both)))
