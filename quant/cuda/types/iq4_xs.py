"""IQ4_XS in VRAM: steps = 1.

16 bytes a lane   nibbles in the order of columns
8 bytes a step    d, high scale bits; low scale nibbles: as they stand in the block
"""

from __future__ import annotations

from quant.cuda.books import levels_8, nibbles_8
from quant.cuda.intrinsics import (
    f32,
    half,
    i32,
    load_u16,
    shl,
    shr,
    store_u32,
    u32,
    weight_2,
    weight_4,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.types.iq4_nl import TABLES
from quant.ggml import GGMLType


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    e, f, g, h = levels_8(a, TABLES), levels_8(b, TABLES), levels_8(c, TABLES), levels_8(d, TABLES)
    first, low = weight_2(base + 128 * rows * chunks + 8 * at)
    high = shr(first, 16 + 2 * lane) & u32(3)
    scale = i32(shr(low, 4 * lane) & u32(15) | shl(high, 4)) - 32
    return (e[0], e[1], f[0], f[1], g[0], g[1], h[0], h[1]), half(first) * f32(scale), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    there = count > 0
    for k in range(4):
        source = block + 8 + 16 * lane + 8 * (k & 1)
        word = nibbles_8(source, k >> 1) if there else u32(0)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    if lane < 2:
        source = block + 4 * lane
        word = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
        store_u32(base + 128 * rows * chunks + 8 * at + 4 * lane, word)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ4_XS,
    group_columns=32,
    steps=1,
    chunk_bytes=136,
    group=group,
    repack=repack,
)
