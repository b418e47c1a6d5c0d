"""Q5_0 in VRAM: steps = 1.

16 bytes a lane   nibbles as they stand in the block
4 bytes a lane    fifth bits, by words
2 bytes a lane    d
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u16,
    store_u16,
    store_u32,
    u32,
    weight_4,
    weight_u16,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import by_words, copy, nibbles, with_fifth, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    low = nibbles(weight_4(base + 128 * at + 16 * lane))
    words = with_fifth(low, weight_u32(base + 128 * rows * chunks + 32 * at + 4 * lane))
    d = weight_u16(base + 160 * rows * chunks + 16 * at + 2 * lane)
    return words, half(d), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 22 * lane, 32 * lane < count
    copy(base + 128 * at + 16 * lane, source + 6, there)
    bits = by_words(word_at(source + 2)) if there else u32(0)
    store_u32(base + 128 * rows * chunks + 32 * at + 4 * lane, bits)
    d = load_u16(source) if there else u32(0)
    store_u16(base + 160 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q5_0,
    group_columns=32,
    steps=1,
    chunk_bytes=176,
    zero=16,
    group=group,
    repack=repack,
)
