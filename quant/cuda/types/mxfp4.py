"""MXFP4 in VRAM: steps = 1.

16 bytes a lane   nibbles in the order of columns
1 byte a lane     exponent
"""

from __future__ import annotations

from quant.cuda.books import levels_8, nibbles_8, tables_of
from quant.cuda.intrinsics import (
    as_f32,
    f32,
    load_u8,
    shl,
    store_u8,
    store_u32,
    u32,
    weight_4,
    weight_u8,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType
from quant.types.mxfp4 import LEVELS

TABLES = tables_of(LEVELS)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    g, h = levels_8(c, TABLES), levels_8(d, TABLES)
    c, d = levels_8(a, TABLES), levels_8(b, TABLES)
    e = weight_u8(base + 128 * rows * chunks + 8 * at + lane)
    s = as_f32(shl(e - 1, 23) if e > 1 else shl(u32(0x200000), e))  # 2^-128 and -127: subnormal
    return (c[0], c[1], d[0], d[1], g[0], g[1], h[0], h[1]), s, f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 17 * lane, 32 * lane < count
    for k in range(4):
        word = nibbles_8(source + 1 + 8 * (k & 1), k >> 1) if there else u32(0)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    e = load_u8(source) if there else u32(0)
    store_u8(base + 128 * rows * chunks + 8 * at + lane, e)


PLANES = PlaneType(
    ggml_type=GGMLType.MXFP4,
    group_columns=32,
    steps=1,
    chunk_bytes=136,
    group=group,
    repack=repack,
)
