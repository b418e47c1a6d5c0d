"""Tiles of f16 and q8_0 rows in shared memory, for attend_halves.py: rows of WIDTH halves."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler.jit import OPEN
from quant.cuda.cache_rows import PAGE
from quant.cuda.intrinsics import (
    copy_16,
    fma_halves,
    half,
    permute,
    put_shared_4,
    put_shared_f32,
    put_shared_u16,
    shared,
    shared_4,
    shared_u16,
    thread,
    u32,
)
from quant.cuda.ptx import device

THREADS = 256
TILE = 32  # positions
D_ROW = TILE + 4  # numbers from one 16 columns' d to the next, so that they do not share banks
LATENT: int = OPEN
WIDTH: int = OPEN
ROW: int = OPEN
LATENT_GROUPS: int = OPEN
GROUPS: int = OPEN
Q8: bool = OPEN
RAW_AT: int = OPEN
D_AT: int = OPEN
DH_AT: int = OPEN
BIASED = np.uint32(0x64646464)  # 1024 + b is the half whose bytes are b, 0x64
MINUS_BIAS = np.uint32(0xE480E480)  # -(1024 + 128), twice
ONES = np.uint32(0x3C003C00)


def bring(page: Any, layer: Any, first: Any, n: Any, to: Any) -> None:
    """Send for the tile of positions first .. (of n) of a layer; they are in this page."""
    r, c = thread() // 8, thread() % 8
    place = first % PAGE
    if Q8:
        base = page + layer * PAGE * (WIDTH + 2 * GROUPS)
        at = base + place * WIDTH
        for i in range(thread(), TILE * WIDTH // 16, THREADS):
            copy_16(to + 16 * i, at + 16 * i)
        at = base + PAGE * WIDTH + place * 2 * GROUPS
        for i in range(thread(), TILE * GROUPS // 8, THREADS):
            copy_16(to + TILE * WIDTH + 16 * i, at + 16 * i)
    else:
        r_here = min(r, n - 1 - first)  # rows behind the last: the last, for p 0
        at = page + (layer * PAGE + place + r_here) * 2 * WIDTH
        for i in range(c, WIDTH // 8, 8):
            copy_16(to + r * ROW + 16 * i, at + 16 * i)


@device
def halves_of(word: Any) -> Any:
    """4 int8 -> (halves 0 and 1, halves 2 and 3), exact."""
    word = word ^ u32(0x80808080)
    low = permute(word, BIASED, u32(0x5150))
    high = permute(word, BIASED, u32(0x7352))
    return fma_halves(low, ONES, MINUS_BIAS), fma_halves(high, ONES, MINUS_BIAS)


def widen(first: Any, n: Any) -> None:
    """int8 rows and their d, as they came -> the tile in halves, d as float32 and halves."""
    raw = shared() + RAW_AT
    r, c = thread() // 8, thread() % 8
    here = min(r, n - 1 - first)
    for i in range(c, WIDTH // 16, 8):
        words = shared_4(raw + here * WIDTH + 16 * i)
        a, b = halves_of(words[0])
        d, e = halves_of(words[1])
        to = shared() + r * ROW + 32 * i
        put_shared_4(to, a, b, d, e)
        a, b = halves_of(words[2])
        d, e = halves_of(words[3])
        put_shared_4(to + 16, a, b, d, e)
        g = i // 2
        if i >= LATENT // 16:
            g = LATENT_GROUPS + (i - LATENT // 16) // 2
        bits = shared_u16(raw + TILE * WIDTH + 2 * (here * GROUPS + g))
        put_shared_f32(shared() + D_AT + 4 * (D_ROW * i + r), half(bits))
        put_shared_u16(shared() + DH_AT + 2 * (D_ROW * i + r), bits)
