"""IQ4_NL in VRAM: steps = 1.

16 bytes a lane   nibbles in the order of columns
2 bytes a lane    d
"""

from __future__ import annotations

from quant.cuda.books import levels_8, nibbles_8, tables_of
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u16,
    store_u16,
    store_u32,
    u32,
    weight_4,
    weight_u16,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType
from quant.types.iq4_nl import LEVELS

TABLES = tables_of(LEVELS)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    e, f, g, h = levels_8(a, TABLES), levels_8(b, TABLES), levels_8(c, TABLES), levels_8(d, TABLES)
    s = half(weight_u16(base + 128 * rows * chunks + 16 * at + 2 * lane))
    return (e[0], e[1], f[0], f[1], g[0], g[1], h[0], h[1]), s, f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    source, there = block + 18 * lane, 32 * lane < count
    for k in range(4):
        word = nibbles_8(source + 2 + 8 * (k & 1), k >> 1) if there else u32(0)
        store_u32(base + 128 * at + 16 * lane + 4 * k, word)
    d = load_u16(source) if there else u32(0)
    store_u16(base + 128 * rows * chunks + 16 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ4_NL,
    group_columns=32,
    steps=1,
    chunk_bytes=144,
    group=group,
    repack=repack,
)
