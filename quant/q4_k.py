"""Q4_K: 256 weights in 144 bytes; 8 sub-blocks of 32 with a 6-bit scale and minimum each.

    | d: half | dmin: half | scales: 12 bytes | 128 bytes of nibbles |

    weight = (d * scale[j]) * nibble - dmin * min[j],   j = i // 32
    nibbles: 4 runs of 32 bytes; run k holds sub-block 2k in the low and 2k+1 in the high nibbles
    scales (bit 7 .. 0), a/b = scale/min, number = sub-block, capital = its upper two bits:
        byte 0-3:  A4 A4 a0 a0 a0 a0 a0 a0    (5, 6, 7 and 1, 2, 3 in the next bytes)
        byte 4-7:  B4 B4 b0 b0 b0 b0 b0 b0
        byte 8-11: b4 b4 b4 b4 a4 a4 a4 a4    (lower four bits of sub-blocks 4..7)

Source: block_q4_K and get_scale_min_k4 in llama.cpp (MIT).
"""

from __future__ import annotations

import numba

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import as_i8, f16, load_u8, put_f32, store_i8, u8


@inline
def scale_min(p: int, j: int) -> tuple[int, int]:
    """6-bit scale and minimum of sub-block j; p: the 12 scale bytes (Q4_K and Q5_K)."""
    if j < 4:
        return u8(p + j) & 63, u8(p + j + 4) & 63
    mixed = u8(p + j + 4)
    return (mixed & 15) | (u8(p + j - 4) >> 6 << 4), (mixed >> 4) | (u8(p + j) >> 6 << 4)


@inline
def put_scales(p: int, s: int, o: int) -> None:
    """Scales d * scale and offsets -dmin * min of the 8 sub-blocks (2 x 16 weights each)."""
    d = f16(p)
    dmin = f16(p + 2)
    for j in range(8):
        sc, mn = scale_min(p + 4, j)
        scale = d * numba.float32(sc)
        offset = -(dmin * numba.float32(mn))
        put_f32(s + 8 * j, scale)
        put_f32(s + 8 * j + 4, scale)
        put_f32(o + 8 * j, offset)
        put_f32(o + 8 * j + 4, offset)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    put_scales(p, s, o)
    for k in range(4):
        v = load_u8(p + 16 + 32 * k)
        store_i8(q + 64 * k, as_i8(v & 15))
        store_i8(q + 64 * k + 32, as_i8(v >> 4))


QUANT = QuantType(ggml_type=GGMLType.Q4_K, decode=decode, offsets=True)
