"""Q4_K in VRAM: steps = 1.

16 bytes a lane   columns 0 .. 15 of its group in the low nibbles, 16 .. 31 in the high ones
12 bytes a step   the scales and minima as they stand in the block
4 bytes a step    d, dmin
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    shl,
    shr,
    store_u32,
    u32,
    weight_4,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    low = u32(0x0F0F0F0F)
    words = (
        a & low, b & low, c & low, d & low,
        shr(a, 4) & low, shr(b, 4) & low, shr(c, 4) & low, shr(d, 4) & low,
    )  # fmt: skip
    at = base + 128 * rows * chunks + 12 * at
    first, second, third = weight_u32(at), weight_u32(at + 4), weight_u32(at + 8)
    k = 8 * (lane & 3)
    scale, least = shr(first, k), shr(second, k)
    if lane < 4:
        scale, least = scale & u32(63), least & u32(63)
    else:
        more = shr(third, k)
        scale = more & u32(15) | shr(scale, 2) & u32(48)
        least = shr(more, 4) & u32(15) | shr(least, 2) & u32(48)
    both = weight_u32(base + 140 * rows * chunks + 4 * (row * chunks + chunk))
    s = half(both & u32(0xFFFF)) * f32(scale)
    o = -(half(shr(both, 16)) * f32(least))
    return words, s, o


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    there = count > 0
    for k in range(4):
        word = u32(0)
        for i in range(4):
            source = block + 16 + 32 * (lane >> 1) + 4 * k + i
            pair = load_u8(source) | shl(load_u8(source + 16), 8) if there else u32(0)
            pair = shr(pair, 4 * (lane & 1)) & u32(0x0F0F)
            word = word | shl((pair | shr(pair, 4)) & u32(0xFF), 8 * i)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    if lane < 3:
        source = block + 4 + 4 * lane
        word = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
        store_u32(base + 128 * rows * chunks + 12 * at + 4 * lane, word)
    if lane == 0:
        word = load_u16(block) | shl(load_u16(block + 2), 16) if there else u32(0)
        store_u32(base + 140 * rows * chunks + 4 * at, word)


PLANES = PlaneType(
    ggml_type=GGMLType.Q4_K,
    group_columns=32,
    steps=1,
    chunk_bytes=144,
    offsets=True,
    group=group,
    repack=repack,
)
