"""Q2_K in VRAM: steps = 4.

16 bytes a lane   byte c: column c of the group, step j in the bits 2 j and 2 j + 1
4 bytes a lane    byte j: scale (low nibble) and minimum of step j
16 bytes a chunk  d, dmin of every step
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    shl,
    shr,
    store_u32,
    u32,
    weight_4,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of, pick, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 256 * at + 16 * lane)
    two = u32(0x03030303)
    words = (
        shr(a, 2 * j) & two, shr(b, 2 * j) & two, shr(c, 2 * j) & two, shr(d, 2 * j) & two
    )  # fmt: skip
    scales = shr(weight_u32(base + 256 * rows * chunks + 64 * at + 4 * lane), 8 * j)
    both = pick(weight_4(base + 320 * rows * chunks + 16 * at), j)
    s = half(half_of(both, 0)) * f32(scales & u32(15))
    o = f32(shr(scales, 4) & u32(15)) * -half(half_of(both, 1))
    return words, s, o


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    # columns 16 lane ..: run of 128, half of 32, bits
    first = 16 + 32 * (lane >> 3) + 16 * (lane & 1)
    bits = 2 * (lane >> 1 & 3)
    for k in range(4):
        word = u32(0)
        for j in range(4):
            if 256 * j < count:
                four = shr(word_at(block + 84 * j + first + 4 * k), bits) & u32(0x03030303)
                word = word | shl(four, 2 * j)
        store_u32(base + 256 * at + 16 * lane + 4 * k, word)
    word = u32(0)
    for j in range(4):
        if 256 * j < count:
            word = word | shl(load_u8(block + 84 * j + lane), 8 * j)
    store_u32(base + 256 * rows * chunks + 64 * at + 4 * lane, word)
    if lane < 4:
        source = block + 84 * lane + 80
        there = 256 * lane < count
        word = word_at(source) if there else u32(0)
        store_u32(base + 320 * rows * chunks + 16 * at + 4 * lane, word)


PLANES = PlaneType(
    ggml_type=GGMLType.Q2_K,
    group_columns=16,
    steps=4,
    chunk_bytes=336,
    offsets=True,
    group=group,
    repack=repack,
)
