"""Q1_0 in VRAM: steps = 4.

16 bytes a lane      word j: bits of step j, by words
8 bytes a half step  d of every step, of these 4 lanes
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
    weight_2,
    weight_4,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import by_words, half_of, pick, word_at
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    bits = pick(weight_4(base + 128 * at + 16 * lane), j)
    two = u32(0x02020202)
    words = (
        shl(bits, 1) & two, bits & two, shr(bits, 1) & two, shr(bits, 2) & two,
        shr(bits, 3) & two, shr(bits, 4) & two, shr(bits, 5) & two, shr(bits, 6) & two,
    )  # fmt: skip
    first, last = weight_2(base + 128 * rows * chunks + 16 * at + 8 * (lane >> 2))
    return words, half(half_of(last if j >= 2 else first, j % 2)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for j in range(4):
        source = block + 18 * (2 * j + (lane >> 2)) + 2 + 4 * (lane & 3)
        word = by_words(word_at(source)) if 256 * j + 32 * lane < count else u32(0)
        store_u32(base + 128 * at + 16 * lane + 4 * j, word)
    number = 2 * (lane & 3) + (lane >> 2)
    d = load_u16(block + 18 * number) if 128 * number < count else u32(0)
    store_u16(base + 128 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q1_0,
    group_columns=32,
    steps=4,
    chunk_bytes=144,
    zero=1,
    group=group,
    repack=repack,
)
