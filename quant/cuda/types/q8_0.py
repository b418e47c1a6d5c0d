"""Q8_0 in VRAM: steps = 1.

16 bytes a lane   columns 0 .. 15 of its group
16 bytes a lane   columns 16 .. 31, behind those of all lanes
2 bytes a lane    d
"""

from __future__ import annotations

from quant.cuda.intrinsics import f32, half, load_u16, store_u16, u32, weight_4, weight_u16
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import copy
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    first = base + 256 * at + 16 * lane
    d = weight_u16(base + 256 * rows * chunks + 16 * at + 2 * lane)
    return weight_4(first) + weight_4(first + 128), half(d), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 34 * lane, 32 * lane < count
    copy(base + 256 * at + 16 * lane, source + 2, there)
    copy(base + 256 * at + 128 + 16 * lane, source + 18, there)
    d = load_u16(source) if there else u32(0)
    store_u16(base + 256 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.Q8_0,
    group_columns=32,
    steps=1,
    chunk_bytes=272,
    group=group,
    repack=repack,
)
