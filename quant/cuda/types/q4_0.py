"""Q4_0 in VRAM: steps = 1.

16 bytes a lane   as they stand in the block
2 bytes a lane    d
"""

from __future__ import annotations

from quant.cuda.intrinsics import f32, half, load_u16, store_u16, u32, weight_4, weight_u16
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import copy, nibbles
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    words = nibbles(weight_4(base + 128 * at + 16 * lane))
    d = weight_u16(base + 128 * rows * chunks + 16 * at + 2 * lane)
    return words, half(d), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 18 * lane, 32 * lane < count
    copy(base + 128 * at + 16 * lane, source + 2, there)
    d = load_u16(source) if there else u32(0)
    store_u16(base + 128 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q4_0,
    group_columns=32,
    steps=1,
    chunk_bytes=144,
    zero=8,
    group=group,
    repack=repack,
)
