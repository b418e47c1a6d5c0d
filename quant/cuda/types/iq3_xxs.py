"""IQ3_XXS in VRAM: steps = 2.

16 bytes a lane   for each step: 8 numbers of words
8 bytes a lane    for each step: signs of 7 (books.py), scale (4)
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

QUARTER = np.float32(0.25)


@device
def word(numbers, signs, k):
    """Word k of a group; its number is byte k % 4 of `numbers`."""
    number = shr(numbers, 8 * (k % 4)) & u32(255)
    return signed(weight_u32(books.iq3_xxs() + 4 * number), signs, k)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    first, second = (a, b) if j == 0 else (c, d)
    e, f = weight_2(base + 128 * rows * chunks + 64 * at + 8 * lane)
    fields = e if j == 0 else f
    signs = with_parity(fields)
    words = (
        word(first, signs, 0), word(first, signs, 1), word(first, signs, 2), word(first, signs, 3),
        word(second, signs, 4), word(second, signs, 5), word(second, signs, 6),
        word(second, signs, 7),
    )  # fmt: skip
    d = half(shr(weight_u32(base + 192 * rows * chunks + 4 * at), 16 * j)) * QUARTER
    return words, d * f32(shr(fields, 27) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for j in range(2):
        there = 256 * j < count
        for k in range(2):
            source = block + 98 * j + 2 + 8 * lane + 4 * k
            numbers = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
            store_u32(base + 128 * at + 16 * lane + 8 * j + 4 * k, numbers)
        source = block + 98 * j + 66 + 4 * lane
        fields = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
        signs = fields & u32(0xF0000000)
        for k in range(4):
            signs = signs | put_signs(shr(fields, 7 * k) & u32(127), k)
        store_u32(base + 128 * rows * chunks + 64 * at + 8 * lane + 4 * j, signs)
    if lane < 2:
        d = load_u16(block + 98 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 192 * rows * chunks + 4 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ3_XXS,
    group_columns=32,
    steps=2,
    chunk_bytes=196,
    group=group,
    repack=repack,
)
