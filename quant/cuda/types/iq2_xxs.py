"""IQ2_XXS in VRAM: steps = 2.

16 bytes a lane   for each step: 4 numbers of words (8 bits each); signs of 7 (books.py), scale (4)
4 bytes a chunk   d of both steps
"""

from __future__ import annotations

import numpy as np

from quant.cuda import books
from quant.cuda.books import put_signs, signed, with_parity
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u16,
    shl,
    shr,
    store_u16,
    store_u32,
    u32,
    weight_2,
    weight_4,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

EIGHTH = np.float32(0.125)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    numbers, fields = (a, b) if j == 0 else (c, d)
    book, signs = books.iq2_xxs(), with_parity(fields)
    a, b = weight_2(book + 8 * (numbers & u32(255)))
    c, d = weight_2(book + 8 * (shr(numbers, 8) & u32(255)))
    e, f = weight_2(book + 8 * (shr(numbers, 16) & u32(255)))
    g, h = weight_2(book + 8 * shr(numbers, 24))
    words = (
        signed(a, signs, 0), signed(b, signs, 1), signed(c, signs, 2), signed(d, signs, 3),
        signed(e, signs, 4), signed(f, signs, 5), signed(g, signs, 6), signed(h, signs, 7),
    )  # fmt: skip
    d = half(shr(weight_u32(base + 128 * rows * chunks + 4 * at), 16 * j)) * EIGHTH
    return words, d * f32(shr(fields, 27) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for j in range(2):
        source, there = block + 66 * j + 2 + 8 * lane, 256 * j < count
        numbers = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
        fields = load_u16(source + 4) | shl(load_u16(source + 6), 16) if there else u32(0)
        signs = fields & u32(0xF0000000)
        for k in range(4):
            signs = signs | put_signs(shr(fields, 7 * k) & u32(127), k)
        store_u32(base + 128 * at + 16 * lane + 8 * j, numbers)
        store_u32(base + 128 * at + 16 * lane + 8 * j + 4, signs)
    if lane < 2:
        d = load_u16(block + 66 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 128 * rows * chunks + 4 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ2_XXS,
    group_columns=32,
    steps=2,
    chunk_bytes=132,
    group=group,
    repack=repack,
)
