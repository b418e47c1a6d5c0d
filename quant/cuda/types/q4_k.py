"""Q4_K in VRAM: steps = 1.

16 bytes a lane   columns 0 .. 15 of its group in the low nibbles, 16 .. 31 in the high ones
8 bytes a step    the upper two bits of every lane's scale and minimum; d, dmin
1 byte a lane     the lower four bits of its scale (low nibble) and minimum
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    shl,
    shr,
    store_u8,
    store_u32,
    u32,
    weight_2,
    weight_4,
    weight_u8,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of, nibbles, word_at
from quant.ggml import GGMLType


@device
def scales(bytes_8, byte, lane):
    """(s, o) from the planes of scales at these addresses (Q4_K and Q5_K)."""
    upper, both = weight_2(bytes_8)
    upper = shr(upper, 4 * lane)
    lower = weight_u8(byte)
    scale = lower & u32(15) | shl(upper, 4) & u32(48)
    least = shr(lower, 4) | shl(upper, 2) & u32(48)
    return half(half_of(both, 0)) * f32(scale), -(half(half_of(both, 1)) * f32(least))


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    words = nibbles(weight_4(base + 128 * at + 16 * lane))
    s, o = scales(base + 128 * all_ + 8 * at, base + 136 * all_ + 8 * at + lane, lane)
    return words, s, o


@device
def pack_nibbles(to, runs, lane):
    """A lane's 16 bytes from the block's 128 (Q4_K and Q5_K)."""
    low = u32(0x0F0F0F0F)
    source = runs + 32 * (lane >> 1)
    bits = 4 * (lane & 1)
    for k in range(4):
        first, last = word_at(source + 4 * k), word_at(source + 4 * k + 16)
        store_u32(to + 4 * k, shr(first, bits) & low | shl(shr(last, bits) & low, 4))


@device
def pack_scales(bytes_8, byte, block, lane):
    """The planes that `scales` reads, of the block with this address (Q4_K and Q5_K)."""
    lower = load_u8(block + 8 + lane)
    if lane < 4:
        lower = load_u8(block + 4 + lane) & u32(15) | shl(lower & u32(15), 4)
    store_u8(byte, lower)
    if lane == 0:
        upper = u32(0)
        for k in range(4):
            scale, least = load_u8(block + 4 + k), load_u8(block + 8 + k)
            four = shr(scale, 4) & u32(3) | shr(least, 2) & u32(12)
            upper = upper | shl(four, 4 * k)
            four = shr(scale, 6) | shr(least, 4) & u32(12)
            upper = upper | shl(four, 4 * k + 16)
        store_u32(bytes_8, upper)
        store_u32(bytes_8 + 4, word_at(block))


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at, all_ = row * chunks + chunk, rows * chunks
    pack_nibbles(base + 128 * at + 16 * lane, block + 16, lane)
    pack_scales(base + 128 * all_ + 8 * at, base + 136 * all_ + 8 * at + lane, block, lane)


PLANES = PlaneType(
    ggml_type=GGMLType.Q4_K,
    group_columns=32,
    steps=1,
    chunk_bytes=144,
    offsets=True,
    group=group,
    repack=repack,
)
