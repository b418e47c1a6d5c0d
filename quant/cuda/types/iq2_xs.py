"""IQ2_XS in VRAM: steps = 4.

16 bytes a lane   for steps 0 and 1, then 2 and 3: low 8 bits of 4 words' numbers; signs of 7
                  (books.py), the numbers' highest bits (4)
8 bytes a chunk   d of every step
2 bytes a lane    4 scales
"""

from __future__ import annotations

import numpy as np

from quant.cuda import books
from quant.cuda.books import put_signs, signed, with_parity
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    shl,
    shr,
    store_u16,
    store_u32,
    u32,
    weight_2,
    weight_4,
    weight_u16,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

EIGHTH = np.float32(0.125)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 256 * at + 16 * lane)
    numbers, fields = (a, b) if j < 2 else (c, d)
    book, signs, k = books.iq2_xs(), with_parity(fields), 2 * (j & 1)
    first = shr(numbers, 8 * k) & u32(255) | shr(fields, 20 + k) & u32(256)
    second = shr(numbers, 8 * k + 8) & u32(255) | shr(fields, 21 + k) & u32(256)
    a, b = weight_2(book + 8 * first)
    c, d = weight_2(book + 8 * second)
    k = 2 * k
    words = (
        signed(a, signs, k), signed(b, signs, k + 1),
        signed(c, signs, k + 2), signed(d, signs, k + 3),
    )  # fmt: skip
    first, second = weight_2(base + 256 * rows * chunks + 8 * at)
    d = half(shr(first if j < 2 else second, 16 * (j & 1))) * EIGHTH
    scales = shr(weight_u16(base + 264 * rows * chunks + 32 * at + 2 * lane), 4 * j)
    return words, d * f32(shl(scales & u32(15), 1) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    scales = u32(0)
    for pair in range(2):
        numbers, fields = u32(0), u32(0)
        for k in range(4):
            j = 2 * pair + (k >> 1)
            source = block + 74 * j + 2 + 4 * lane + 2 * (k & 1)
            word = load_u16(source) if 256 * j < count else u32(0)
            numbers = numbers | shl(word & u32(255), 8 * k)
            fields = fields | put_signs(shr(word, 9), k) | shl(shr(word, 8) & u32(1), 28 + k)
        store_u32(base + 256 * at + 16 * lane + 8 * pair, numbers)
        store_u32(base + 256 * at + 16 * lane + 8 * pair + 4, fields)
    for j in range(4):
        if 256 * j < count:
            scale = shr(load_u8(block + 74 * j + 66 + (lane >> 1)), 4 * (lane & 1))
            scales = scales | shl(scale & u32(15), 4 * j)
    store_u16(base + 264 * rows * chunks + 32 * at + 2 * lane, scales)
    if lane < 4:
        d = load_u16(block + 74 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 256 * rows * chunks + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ2_XS,
    group_columns=16,
    steps=4,
    chunk_bytes=296,
    group=group,
    repack=repack,
)
