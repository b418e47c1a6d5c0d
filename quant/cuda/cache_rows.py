"""Rows of the latent cache in VRAM: pages of PAGE positions, and the kernel that appends to them.

A page holds PAGE positions of all layers of a sequence; layer i begins at i * PAGE * row_bytes:

    F32, F16   PAGE rows of latent + rope floats or halves
    Q8_0       PAGE x (latent + rope) int8 | PAGE x ( d of c | d of k_rope ): halves

so that 16-byte loads are aligned. The numbers are those of quant/run/cache_rows.py, to the bit.

A row of a batch (a token) has a record of four int64: token id, position, address of the addresses
(int64) of its sequence's pages, and a RowKind.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler.jit import OPEN
from quant.cuda.intrinsics import (
    as_f32,
    block_x,
    f32,
    fma,
    half,
    half_bits,
    larger,
    load_f32,
    load_i64,
    put_shared_f32,
    quotient,
    root,
    round_f32,
    round_i32,
    shared,
    shared_f32,
    size,
    smaller,
    store_f32,
    store_u8,
    store_u16,
    swap_f32,
    sync,
    thread,
    u32,
)
from quant.cuda.ptx import device
from quant.run.cache_rows import GROUP, LEAST, RowKind

Array = np.ndarray
PAGE = 256  # positions
RECORD = 32  # bytes of a row's record
POSITION, PAGES, KIND = 8, 16, 24  # where its other numbers are
THREADS = 128
RANK: int = OPEN  # elements of c
ROPE: int = OPEN  # of k_rope
LATENT: int = OPEN  # RANK and its zeros
WIDTH: int = OPEN  # LATENT, and ROPE and its zeros
LATENT_GROUPS: int = OPEN
GROUPS: int = OPEN
_F32, _Q8_0 = int(RowKind.F32), int(RowKind.Q8_0)
_LEAST, _ONE, _MOST = np.float32(LEAST), np.float32(1), np.float32(127)


def groups(latent: int, width: int) -> tuple[int, int]:
    """(groups of c, groups of a row) that share a d in Q8_0."""
    of_latent = -(-latent // GROUP)
    return of_latent, of_latent - (latent - width) // GROUP


def to_layer(kind: RowKind, rows: Array, width: int) -> Array:
    """(PAGE, row_bytes) uint8 as on the CPU -> the bytes of a layer of a page."""
    if kind != RowKind.Q8_0:
        return rows.reshape(-1)
    return np.concatenate((rows[:, :width].reshape(-1), rows[:, width:].reshape(-1)))


def from_layer(kind: RowKind, layer: Array, width: int) -> Array:
    """`to_layer`, back."""
    if kind != RowKind.Q8_0:
        return layer.reshape(PAGE, -1)
    numbers, d = layer[: PAGE * width], layer[PAGE * width :]
    return np.concatenate((numbers.reshape(PAGE, -1), d.reshape(PAGE, -1)), axis=1)


@device
def page_of(pages: Any, position: Any) -> Any:
    """Address of the page that holds a position of a sequence."""
    return load_i64(pages + 8 * (position // PAGE))


@device
def _store_group(at: Any, d: Any, lane: Any, first: Any, n: Any) -> None:
    """Elements first .. first + n - 1 of the row, 16 or 32, -> int8 at `at`, and their d.

    Lane i has element i, as in quant/run/cache_rows.py.
    """
    x = shared_f32(shared() + 4 * (first + (lane if lane < n else 0)))
    best, rest = size(x), x - x  # 0, or not a number
    for i in range(5):
        best = larger(best, swap_f32(best, 1 << i))
        rest = rest + swap_f32(rest, 1 << i)
    bits = half_bits(quotient(best, _MOST) + _LEAST + rest)
    step = half(bits)
    inverse = quotient(_ONE, step) if step > f32(0) else f32(0)
    v = smaller(larger(round_f32(x * inverse), -_MOST), _MOST)
    if lane < n:
        store_u8(at + lane, u32(round_i32(v)))
        if lane == 0:
            store_u16(d, bits)


def append(
    rows: int, layer: int, x: int, x_stride: int, weight: int, eps_bits: int, cos: int, sin: int
) -> None:
    """RMSNorm of c times weight, k_rope turned -> each token's place in its page. Grid: tokens.

    x: rows [ c: RANK | k_rope: ROPE ] float32; cos, sin: (tokens, ROPE / 2) float32.
    """
    t, i = block_x(), thread()
    row = x + t * x_stride
    record = rows + RECORD * t
    total = f32(0)
    for c in range(i, RANK, THREADS):
        v = load_f32(row + 4 * c)
        total = fma(v, v, total)
    for k in range(5):
        total = total + swap_f32(total, 1 << k)
    sums = shared() + 4 * WIDTH
    if i % 32 == 0:
        put_shared_f32(sums + i // 8, total)
    sync()
    total = (shared_f32(sums) + shared_f32(sums + 4)) + (
        shared_f32(sums + 8) + shared_f32(sums + 12)
    )
    scale = quotient(_ONE, root(quotient(total, f32(RANK)) + as_f32(u32(eps_bits))))
    scale = scale + (total - total)  # + 0, or not a number: squares exceed float32
    for c in range(i, WIDTH, THREADS):
        v = f32(0)
        if c < RANK:
            v = load_f32(row + 4 * c) * scale * load_f32(weight + 4 * c)
        elif c >= LATENT and c < LATENT + ROPE:
            j = c - LATENT
            at = row + 4 * (RANK + j // 2 * 2)
            a, b = load_f32(at), load_f32(at + 4)
            angle = 2 * ROPE * t + 4 * (j // 2)
            co, si = load_f32(cos + angle), load_f32(sin + angle)
            v = a * si + b * co if j % 2 else a * co - b * si
        put_shared_f32(shared() + 4 * c, v)
    sync()
    position, kind = load_i64(record + POSITION), load_i64(record + KIND)
    page, place = page_of(load_i64(record + PAGES), position), position % PAGE
    if kind != _Q8_0:
        each = 4 if kind == _F32 else 2
        at = page + (layer * PAGE + place) * WIDTH * each
        for c in range(i, WIDTH, THREADS):
            v = shared_f32(shared() + 4 * c)
            if kind == _F32:
                store_f32(at + 4 * c, v)
            else:
                store_u16(at + 2 * c, half_bits(v))
    else:
        base = page + layer * PAGE * (WIDTH + 2 * GROUPS)
        at = base + place * WIDTH
        d = base + PAGE * WIDTH + 2 * GROUPS * place
        for g in range(i // 32, GROUPS, THREADS // 32):
            if g < LATENT_GROUPS:
                first = GROUP * g
                n = min(GROUP, LATENT - first)
            else:
                first = LATENT + GROUP * (g - LATENT_GROUPS)
                n = min(GROUP, WIDTH - first)
            _store_group(at + first, d + 2 * g, i % 32, first, n)
