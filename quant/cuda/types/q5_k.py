"""Q5_K in VRAM: steps = 1.

16 bytes a lane   nibbles as Q4_K's
4 bytes a lane    fifth bits, by words
8 bytes a step    as Q4_K's, and
1 byte a lane
"""

from __future__ import annotations

from quant.cuda.intrinsics import shl, shr, store_u32, u32, weight_4, weight_u32
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.types.q4_k import pack_nibbles, pack_scales, scales
from quant.cuda.unpack import nibbles, with_fifth, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    low = nibbles(weight_4(base + 128 * at + 16 * lane))
    words = with_fifth(low, weight_u32(base + 128 * all_ + 32 * at + 4 * lane))
    s, o = scales(base + 160 * all_ + 8 * at, base + 168 * all_ + 8 * at + lane, lane)
    return words, s, o


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    pack_nibbles(base + 128 * at + 16 * lane, block + 48, lane)
    bits = u32(0)
    for k in range(8):
        four = shr(word_at(block + 16 + 4 * k), lane) & u32(0x01010101)
        bits = bits | shl(four, k)
    store_u32(base + 128 * all_ + 32 * at + 4 * lane, bits)
    pack_scales(base + 160 * all_ + 8 * at, base + 168 * all_ + 8 * at + lane, block, lane)


PLANES = PlaneType(
    ggml_type=GGMLType.Q5_K,
    group_columns=32,
    steps=1,
    chunk_bytes=176,
    offsets=True,
    group=group,
    repack=repack,
)
