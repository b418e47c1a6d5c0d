"""IQ2_S in VRAM: steps = 4.

16 bytes a lane   for steps 0 and 1, then 2 and 3: low 8 bits of 4 words' numbers; signs (books.py)
8 bytes a chunk   d of every step
4 bytes a lane    for every step: the numbers' highest bits (4 bits); then 4 scales
"""

from __future__ import annotations

import numpy as np

from quant.cuda import books
from quant.cuda.books import put_signs, signed
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
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

EIGHTH = np.float32(0.125)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 256 * at + 16 * lane)
    numbers, signs = (a, b) if j < 2 else (c, d)
    more = weight_u32(base + 264 * rows * chunks + 64 * at + 4 * lane)
    book, k, high = books.iq2_s(), 2 * (j & 1), shr(more, 4 * j)
    first = shr(numbers, 8 * k) & u32(255) | shl(high, 8) & u32(768)
    second = shr(numbers, 8 * k + 8) & u32(255) | shl(high, 6) & u32(768)
    a, b = weight_2(book + 8 * first)
    c, d = weight_2(book + 8 * second)
    k = 2 * k
    words = (
        signed(a, signs, k), signed(b, signs, k + 1),
        signed(c, signs, k + 2), signed(d, signs, k + 3),
    )  # fmt: skip
    first, second = weight_2(base + 256 * rows * chunks + 8 * at)
    d = half(shr(first if j < 2 else second, 16 * (j & 1))) * EIGHTH
    return words, d * f32(shr(more, 15 + 4 * j) & u32(30) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    more = u32(0)
    for pair in range(2):
        numbers, signs = u32(0), u32(0)
        for k in range(4):
            j = 2 * pair + (k >> 1)
            if 256 * j < count:
                source = block + 82 * j + 2 + 2 * lane + (k & 1)
                numbers = numbers | shl(load_u8(source), 8 * k)
                signs = signs | put_signs(load_u8(source + 32), k)
        store_u32(base + 256 * at + 16 * lane + 8 * pair, numbers)
        store_u32(base + 256 * at + 16 * lane + 8 * pair + 4, signs)
    for j in range(4):
        if 256 * j < count:
            source = block + 82 * j + 66 + (lane >> 1)
            high = shr(load_u8(source), 4 * (lane & 1)) & u32(15)
            scale = shr(load_u8(source + 8), 4 * (lane & 1)) & u32(15)
            more = more | shl(high, 4 * j) | shl(scale, 16 + 4 * j)
    store_u32(base + 264 * rows * chunks + 64 * at + 4 * lane, more)
    if lane < 4:
        d = load_u16(block + 82 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 256 * rows * chunks + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ2_S,
    group_columns=16,
    steps=4,
    chunk_bytes=328,
    group=group,
    repack=repack,
)
