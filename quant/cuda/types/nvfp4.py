"""NVFP4 in VRAM: steps = 2.

16 bytes a lane   for each step: nibbles in the order of columns
2 bytes a lane    for each step: scale
"""

from __future__ import annotations

import numpy as np

from quant.cuda.books import levels_8, nibbles_8
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    shl,
    shr,
    store_u8,
    store_u32,
    u32,
    weight_4,
    weight_u16,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.types.mxfp4 import TABLES
from quant.ggml import GGMLType

BIAS = np.float32(128)  # 2^(15 - 7) of a half's exponents, and half of it


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 256 * at + 16 * lane)
    first, second = (a, b) if j == 0 else (c, d)
    e, f = levels_8(first, TABLES), levels_8(second, TABLES)
    scale = shr(weight_u16(base + 256 * rows * chunks + 32 * at + 2 * lane), 8 * j) & u32(255)
    bits = shl(scale & u32(127), 7) if scale != 127 else u32(0)
    return (e[0], e[1], f[0], f[1]), half(bits) * BIAS, f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for j in range(2):
        there = 256 * j + 16 * lane < count
        source = block + 144 * j + 36 * (lane >> 2)
        for k in range(2):
            word = nibbles_8(source + 4 + 8 * (lane & 3), k) if there else u32(0)
            store_u32(base + 256 * at + 16 * lane + 8 * j + 4 * k, word)
        scale = load_u8(source + (lane & 3)) if there else u32(0)
        store_u8(base + 256 * rows * chunks + 32 * at + 2 * lane + j, scale)


PLANES = PlaneType(
    ggml_type=GGMLType.NVFP4,
    group_columns=16,
    steps=2,
    chunk_bytes=288,
    group=group,
    repack=repack,
)
