"""Q3_K in VRAM: steps = 4.

16 bytes a lane   byte c: bit pair of column c of the group, step j in the bits 2 j and 2 j + 1
8 bytes a lane    third bits: word k of step j in the bits 4 (k % 2) + j of word k // 2
8 bytes a chunk   d of every step
2 bytes a lane    nibble j: scale of step j
1 byte a lane     bits 2 j and 2 j + 1: its upper two bits
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    i32,
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
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of, moved, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    a, b, c, d = weight_4(base + 256 * at + 16 * lane)
    first, last = weight_2(base + 256 * all_ + 128 * at + 8 * lane)
    two, third = u32(0x03030303), u32(0x04040404)
    words = (
        shr(a, 2 * j) & two | moved(first, 2 - j) & third,
        shr(b, 2 * j) & two | moved(first, -2 - j) & third,
        shr(c, 2 * j) & two | moved(last, 2 - j) & third,
        shr(d, 2 * j) & two | moved(last, -2 - j) & third,
    )
    first, last = weight_2(base + 384 * all_ + 8 * at)
    d = half(half_of(last if j >= 2 else first, j % 2))
    low = shr(weight_u16(base + 392 * all_ + 32 * at + 2 * lane), 4 * j) & u32(15)
    upper = shr(weight_u8(base + 424 * all_ + 16 * at + lane), 2 * j) & u32(3)
    return words, f32(i32(low | shl(upper, 4)) - 32) * d, f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    half_run = 16 * (lane & 1)
    bits = 2 * (lane >> 1 & 3)
    for k in range(4):
        word = u32(0)
        for j in range(4):
            if 256 * j < count:
                four = word_at(block + 110 * j + 32 + 32 * (lane >> 3) + half_run + 4 * k)
                word = word | shl(shr(four, bits) & u32(0x03030303), 2 * j)
        store_u32(base + 256 * at + 16 * lane + 4 * k, word)
    for h in range(2):
        word = u32(0)
        for j in range(4):
            if 256 * j < count:
                for k in range(2):
                    four = word_at(block + 110 * j + half_run + 8 * h + 4 * k)
                    word = word | shl(shr(four, lane >> 1) & u32(0x01010101), 4 * k + j)
        store_u32(base + 256 * all_ + 128 * at + 8 * lane + 4 * h, word)
    low = u32(0)
    upper = u32(0)
    for j in range(4):
        if 256 * j < count:
            scales = block + 110 * j + 96
            four = shr(load_u8(scales + (lane & 7)), 4 * (lane >> 3)) & u32(15)
            low = low | shl(four, 4 * j)
            two = shr(load_u8(scales + 8 + (lane & 3)), 2 * (lane >> 2)) & u32(3)
            upper = upper | shl(two, 2 * j)
    store_u16(base + 392 * all_ + 32 * at + 2 * lane, low)
    store_u8(base + 424 * all_ + 16 * at + lane, upper)
    if lane < 4:
        d = load_u16(block + 110 * lane + 108) if 256 * lane < count else u32(0)
        store_u16(base + 384 * all_ + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q3_K,
    group_columns=16,
    steps=4,
    chunk_bytes=440,
    zero=4,
    group=group,
    repack=repack,
)
