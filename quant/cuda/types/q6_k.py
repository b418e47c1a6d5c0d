"""Q6_K in VRAM: steps = 2.

16 bytes a lane   byte c: lower half of column c of the group, step j in nibble j
8 bytes a lane    upper bit pairs: word k of step j in the pairs 2 (k % 2) + j of word k // 2
4 bytes a chunk   d of both steps
2 bytes a lane    scales of both steps
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
    weight_u16,
    weight_u32,
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
    low, upper = u32(0x0F0F0F0F), u32(0x30303030)
    words = (
        shr(a, 4 * j) & low | moved(first, 4 - 2 * j) & upper,
        shr(b, 4 * j) & low | shr(first, 2 * j) & upper,
        shr(c, 4 * j) & low | moved(last, 4 - 2 * j) & upper,
        shr(d, 4 * j) & low | shr(last, 2 * j) & upper,
    )
    d = half(half_of(weight_u32(base + 384 * all_ + 4 * at), j))
    scales = weight_u16(base + 388 * all_ + 32 * at + 2 * lane)
    return words, f32(i32(shl(scales, 24 - 8 * j)) >> 24) * d, f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    nibble = 64 * (lane >> 3) + 16 * (lane & 3)
    pair = 128 + 32 * (lane >> 3) + 16 * (lane & 1)
    for k in range(4):
        word = u32(0)
        for j in range(2):
            if 256 * j < count:
                four = shr(word_at(block + 210 * j + nibble + 4 * k), 4 * (lane >> 2 & 1))
                word = word | shl(four & u32(0x0F0F0F0F), 4 * j)
        store_u32(base + 256 * at + 16 * lane + 4 * k, word)
    for h in range(2):
        word = u32(0)
        for j in range(2):
            if 256 * j < count:
                for k in range(2):
                    four = shr(word_at(block + 210 * j + pair + 8 * h + 4 * k), lane & 6)
                    word = word | shl(four & u32(0x03030303), 4 * k + 2 * j)
        store_u32(base + 256 * all_ + 128 * at + 8 * lane + 4 * h, word)
    for j in range(2):
        scale = load_u8(block + 210 * j + 192 + lane) if 256 * j < count else u32(0)
        store_u8(base + 388 * all_ + 32 * at + 2 * lane + j, scale)
    if lane < 2:
        d = load_u16(block + 210 * lane + 208) if 256 * lane < count else u32(0)
        store_u16(base + 384 * all_ + 4 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q6_K,
    group_columns=16,
    steps=2,
    chunk_bytes=420,
    zero=32,
    group=group,
    repack=repack,
)
