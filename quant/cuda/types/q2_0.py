"""Q2_0 in VRAM: steps = 2.

16 bytes a lane   byte c: columns c (first) and 16 + c of the group, step j in the nibble j
4 bytes a block   d of both steps, of these 2 lanes
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    shl,
    store_u16,
    store_u32,
    u32,
    weight_4,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of, pairs
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    words = pairs(weight_4(base + 128 * at + 16 * lane), j)
    both = weight_u32(base + 128 * rows * chunks + 16 * at + 4 * (lane >> 1))
    return words, half(half_of(both, j)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for k in range(4):
        word = u32(0)
        for j in range(2):
            if 256 * j + 32 * lane < count:
                for h in range(2):
                    source = block + 18 * (4 * j + (lane >> 1)) + 2 + 8 * (lane & 1)
                    x = load_u8(source + 4 * h + k)
                    x = (x | shl(x, 6) | shl(x, 12) | shl(x, 18)) & u32(0x03030303)
                    word = word | shl(x, 4 * j + 2 * h)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    number = 4 * (lane & 1) + (lane >> 1)
    d = load_u16(block + 18 * number) if 64 * number < count else u32(0)
    store_u16(base + 128 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q2_0,
    group_columns=32,
    steps=2,
    chunk_bytes=144,
    zero=1,
    group=group,
    repack=repack,
)
