"""IQ1_M in VRAM: steps = 4. A weight stands for 8 * (word + delta) + 9, see quant/types/iq1_m.py.

8 bytes a lane   for every step: low 8 bits of two words' numbers
8 bytes a step   d, the 16 lanes' scales: the lowest bit of each; the two others of each
4 bytes a lane   for every step: nibbles of two words as they stand in the block
"""

from __future__ import annotations

import numpy as np

from quant.cuda.books import trits_8
from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    shl,
    shr,
    store_u16,
    store_u32,
    u32,
    weight_2,
    weight_u32,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

EIGHTH = np.float32(0.125)


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b = weight_2(base + 128 * at + 8 * lane)
    numbers = shr(a if j < 2 else b, 16 * (j & 1))
    nibbles = shr(weight_u32(base + 160 * rows * chunks + 64 * at + 4 * lane), 8 * j)
    low, high = numbers & u32(255), shr(numbers, 8) & u32(255)
    a, b = trits_8(low | shl(nibbles, 8) & u32(0x700), shr(nibbles, 3) & u32(1))
    c, d = trits_8(high | shl(nibbles, 4) & u32(0x700), shr(nibbles, 7) & u32(1))
    first, second = weight_2(base + 128 * rows * chunks + 32 * at + 8 * j)
    scale = shl(shr(second, 2 * lane) & u32(3), 2) | shl(shr(first, 16 + lane) & u32(1), 1)
    return (a, b, c, d), half(first) * EIGHTH * f32(scale | u32(1)), f32(0)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    nibbles = u32(0)
    for j in range(4):
        there = 256 * j < count
        numbers = load_u16(block + 56 * j + 2 * lane) if there else u32(0)
        store_u16(base + 128 * at + 8 * lane + 2 * j, numbers)
        if there:
            nibbles = nibbles | shl(load_u8(block + 56 * j + 32 + lane), 8 * j)
    store_u32(base + 160 * rows * chunks + 64 * at + 4 * lane, nibbles)
    if lane < 4:
        first, second = u32(0), u32(0)
        if 256 * lane < count:
            for k in range(4):
                word = load_u16(block + 56 * lane + 48 + 2 * k)
                first = first | shl(shr(word, 12), 4 * k)
                for i in range(4):
                    scale = shr(word, 3 * i)
                    first = first | shl(scale & u32(1), 16 + 4 * k + i)
                    second = second | shl(shr(scale, 1) & u32(3), 8 * k + 2 * i)
        to = base + 128 * rows * chunks + 32 * at + 8 * lane
        store_u32(to, first)
        store_u32(to + 4, second)


PLANES = PlaneType(
    ggml_type=GGMLType.IQ1_M,
    group_columns=16,
    steps=4,
    chunk_bytes=224,
    zero=9,
    group=group,
    repack=repack,
)
