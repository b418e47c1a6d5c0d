"""IQ1_S in VRAM: steps = 4. A weight stands for 8 * (word + delta) + 9, see quant/types/iq1_s.py.

16 bytes a lane   for every step: low 8 bits of 4 words' numbers
8 bytes a lane    for every step: shift and scale and high bits as they stand in the block
8 bytes a chunk   d of every step
"""

from __future__ import annotations

import numpy as np

from quant.cuda.books import trits_8
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
from quant.ggml import GGMLType

EIGHTH = np.float32(0.125)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    numbers = a if j == 0 else b if j == 1 else c if j == 2 else d
    a, b = weight_2(base + 128 * rows * chunks + 64 * at + 8 * lane)
    fields = shr(a if j < 2 else b, 16 * (j & 1))
    shift = shr(fields, 15) & u32(1)
    a, b = trits_8(numbers & u32(255) | shl(fields, 8) & u32(0x700), shift)
    c, d = trits_8(shr(numbers, 8) & u32(255) | shl(fields, 5) & u32(0x700), shift)
    e, f = trits_8(shr(numbers, 16) & u32(255) | shl(fields, 2) & u32(0x700), shift)
    g, h = trits_8(shr(numbers, 24) | shr(fields, 1) & u32(0x700), shift)
    first, second = weight_2(base + 192 * rows * chunks + 8 * at)
    s = half(shr(first if j < 2 else second, 16 * (j & 1))) * EIGHTH
    return (a, b, c, d, e, f, g, h), s * f32(shr(fields, 11) & u32(14) | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for j in range(4):
        source, there = block + 50 * j + 2 + 4 * lane, 256 * j < count
        numbers = load_u16(source) | shl(load_u16(source + 2), 16) if there else u32(0)
        store_u32(base + 128 * at + 16 * lane + 4 * j, numbers)
        fields = load_u16(block + 50 * j + 34 + 2 * lane) if there else u32(0)
        store_u16(base + 128 * rows * chunks + 64 * at + 8 * lane + 2 * j, fields)
    if lane < 4:
        d = load_u16(block + 50 * lane) if 256 * lane < count else u32(0)
        store_u16(base + 192 * rows * chunks + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ1_S,
    group_columns=32,
    steps=4,
    chunk_bytes=200,
    zero=9,
    group=group,
    repack=repack,
)
