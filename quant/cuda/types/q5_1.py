"""Q5_1 in VRAM: steps = 1.

16 bytes a lane   nibbles as they stand in the block
4 bytes a lane    fifth bits, by words
4 bytes a lane    d, m
"""

from __future__ import annotations

from quant.cuda.intrinsics import half, store_u32, u32, weight_4, weight_u32
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import by_words, copy, half_of, nibbles, with_fifth, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    low = nibbles(weight_4(base + 128 * at + 16 * lane))
    words = with_fifth(low, weight_u32(base + 128 * rows * chunks + 32 * at + 4 * lane))
    both = weight_u32(base + 160 * rows * chunks + 32 * at + 4 * lane)
    return words, half(half_of(both, 0)), half(half_of(both, 1))


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 24 * lane, 32 * lane < count
    copy(base + 128 * at + 16 * lane, source + 8, there)
    bits = by_words(word_at(source + 4)) if there else u32(0)
    store_u32(base + 128 * rows * chunks + 32 * at + 4 * lane, bits)
    both = word_at(source) if there else u32(0)
    store_u32(base + 160 * rows * chunks + 32 * at + 4 * lane, both)


PLANES = PlaneType(
    ggml_type=GGMLType.Q5_1,
    group_columns=32,
    steps=1,
    chunk_bytes=192,
    offsets=True,
    group=group,
    repack=repack,
)
