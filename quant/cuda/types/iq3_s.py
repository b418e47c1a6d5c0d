"""IQ3_S in VRAM: steps = 2.

16 bytes a lane   for each step: low 8 bits of 8 words' numbers
8 bytes a lane    for each step: signs (books.py)
4 bytes a chunk   d of both steps
2 bytes a lane    for each step: the numbers' highest bits
1 byte a lane     both scales
"""

from __future__ import annotations

from quant.cuda import books
from quant.cuda.books import put_signs, signed
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    shl,
    shr,
    store_u8,
    store_u16,
    store_u32,
    u32,
    weight_2,
    weight_4,
    weight_u8,
    weight_u16,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType


@device
def word(numbers, high, signs, k):
    """Word k of a group; its number is byte k % 4 of `numbers` and bit 8 + k of `high`."""
    number = shr(numbers, 8 * (k % 4)) & u32(255) | shr(high, k) & u32(256)
    return signed(weight_u32(books.iq3_s() + 4 * number), signs, k)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    first, second = (a, b) if j == 0 else (c, d)
    e, f = weight_2(base + 128 * rows * chunks + 64 * at + 8 * lane)
    signs = e if j == 0 else f
    high = weight_u16(base + 196 * rows * chunks + 16 * at + 2 * lane)
    high = shl(high, 8) if j == 0 else high
    words = (
        word(first, high, signs, 0), word(first, high, signs, 1),
        word(first, high, signs, 2), word(first, high, signs, 3),
        word(second, high, signs, 4), word(second, high, signs, 5),
        word(second, high, signs, 6), word(second, high, signs, 7),
    )  # fmt: skip
    d = half(shr(weight_u32(base + 192 * rows * chunks + 4 * at), 16 * j))
    scales = shr(weight_u8(base + 212 * rows * chunks + 8 * at + lane), 4 * j) & u32(15)
    return words, d * f32(shl(scales, 1) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    scales = u32(0)
    for j in range(2):
        there = 256 * j < count
        for k in range(2):
            source = block + 110 * j + 2 + 8 * lane + 4 * k
            numbers = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
            store_u32(base + 128 * at + 16 * lane + 8 * j + 4 * k, numbers)
        source = block + 110 * j + 74 + 4 * lane
        signs = u32(0)
        for k in range(4):
            if there:
                signs = signs | put_signs(load_u8(source + k), k)
        store_u32(base + 128 * rows * chunks + 64 * at + 8 * lane + 4 * j, signs)
        high = load_u8(block + 110 * j + 66 + lane) if there else u32(0)
        store_u8(base + 196 * rows * chunks + 16 * at + 2 * lane + j, high)
        if there:
            scale = shr(load_u8(block + 110 * j + 106 + (lane >> 1)), 4 * (lane & 1))
            scales = scales | shl(scale & u32(15), 4 * j)
    store_u8(base + 212 * rows * chunks + 8 * at + lane, scales)
    if lane < 2:
        d = load_u16(block + 110 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 192 * rows * chunks + 4 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ3_S,
    group_columns=32,
    steps=2,
    chunk_bytes=220,
    group=group,
    repack=repack,
)
