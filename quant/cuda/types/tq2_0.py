"""TQ2_0 in VRAM: steps = 2.

16 bytes a lane   byte c: columns c (first) and 16 + c of the group, step j in the nibble j
4 bytes a chunk   d of both steps
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u16,
    shl,
    shr,
    store_u16,
    store_u32,
    u32,
    weight_4,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of, pairs, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    words = pairs(weight_4(base + 128 * at + 16 * lane), j)
    both = weight_u32(base + 128 * rows * chunks + 4 * at)
    return words, half(half_of(both, j)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for k in range(4):
        word = u32(0)
        for j in range(2):
            if 256 * j < count:
                for h in range(2):
                    source = block + 66 * j + 32 * (lane >> 2) + 16 * h + 4 * k
                    four = shr(word_at(source), 2 * (lane & 3)) & u32(0x03030303)
                    word = word | shl(four, 4 * j + 2 * h)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    if lane < 2:
        d = load_u16(block + 66 * lane + 64) if 256 * lane < count else u32(0)
        store_u16(base + 128 * rows * chunks + 4 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.TQ2_0,
    group_columns=32,
    steps=2,
    chunk_bytes=132,
    zero=1,
    group=group,
    repack=repack,
)
