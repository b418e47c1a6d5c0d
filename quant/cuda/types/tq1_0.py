"""TQ1_0 in VRAM: steps = 4; the trits of a lane's 32 words of 4 weights, 1 too large.

16 bytes a lane   words 0 .. 19: byte i of every 4 has weight i of five words in turn
8 bytes a lane    words 20 .. 29, likewise
8 bytes a chunk   d of every step
2 bytes a lane    words 30 and 31: byte i has weights i and i + 2 of either, in turn

A byte is n / 243 of 256, rounded up, n a number of five digits in base 3: times 3 the first digit
is what goes beyond the byte, and the rest is a number of the remaining ones.
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    f32,
    half,
    load_u8,
    load_u16,
    mul32,
    permute,
    shl,
    shr,
    store_u16,
    store_u32,
    u32,
    weight_2,
    weight_4,
    weight_u16,
)
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType


@device
def words_5(word):
    """The five words of 4 weights in 4 bytes."""
    low = u32(0x00FF00FF)
    even, odd = mul32(word & low, 3), mul32(permute(word, u32(0), u32(0x4341)), 3)
    a = permute(even, odd, u32(0x7351))
    even, odd = mul32(even & low, 3), mul32(odd & low, 3)
    b = permute(even, odd, u32(0x7351))
    even, odd = mul32(even & low, 3), mul32(odd & low, 3)
    c = permute(even, odd, u32(0x7351))
    even, odd = mul32(even & low, 3), mul32(odd & low, 3)
    d = permute(even, odd, u32(0x7351))
    even, odd = mul32(even & low, 3), mul32(odd & low, 3)
    return a, b, c, d, permute(even, odd, u32(0x7351))


@device
def words_2(pair):
    """The two words of 4 weights in 2 bytes."""
    low = u32(0x00FF00FF)
    first = mul32(permute(pair, u32(0), u32(0x4140)), 3)
    second = mul32(first & low, 3)
    third = mul32(second & low, 3)
    fourth = mul32(third & low, 3)
    return permute(first, second, u32(0x7531)), permute(third, fourth, u32(0x7531))


@device
def group(base, rows, chunks, row, chunk, j, lane):
    at = row * chunks + chunk
    a, b, c, d = weight_4(base + 128 * at + 16 * lane)
    e, f = weight_2(base + 128 * rows * chunks + 64 * at + 8 * lane)
    g = weight_u16(base + 200 * rows * chunks + 16 * at + 2 * lane)
    first, second = weight_2(base + 192 * rows * chunks + 8 * at)
    if j == 0:
        v, w = words_5(a), words_5(b)
        words = v[0], v[1], v[2], v[3], v[4], w[0], w[1], w[2]
    elif j == 1:
        v, w, x = words_5(b), words_5(c), words_5(d)
        words = v[3], v[4], w[0], w[1], w[2], w[3], w[4], x[0]
    elif j == 2:
        v, w = words_5(d), words_5(e)
        words = v[1], v[2], v[3], v[4], w[0], w[1], w[2], w[3]
    else:
        v, w, z = words_5(e), words_5(f), words_2(g)
        words = v[4], w[0], w[1], w[2], w[3], w[4], z[0], z[1]
    s = half(shr(first if j < 2 else second, 16 * (j & 1)))
    return words, s, f32(0)


@device
def trit(block, count, lane, word, i):
    """Weight i of the lane's word in the GGML blocks of the chunk."""
    j, column = word >> 3, 32 * lane + 4 * (word & 7) + i
    if 256 * j >= count:
        return u32(1)
    if column < 160:
        n, byte = column >> 5, column & 31
    elif column < 240:
        n, byte = (column - 160) >> 4, 32 + (column & 15)
    else:
        n, byte = (column - 240) >> 2, 48 + (column & 3)
    value = load_u8(block + 54 * j + byte)
    for _ in range(n):
        value = value * u32(3) & u32(255)
    return shr(value * u32(3), 8)


@device
def packed(number):
    """A byte of five trits."""
    return (number * u32(256) + u32(242)) // u32(243)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for k in range(6):
        word = u32(0)
        for i in range(4):
            number = u32(0)
            for n in range(5):
                number = u32(number * u32(3) + trit(block, count, lane, 5 * k + n, i))
            word = word | shl(packed(number), 8 * i)
        to = base + 128 * at + 16 * lane + 4 * k
        if k >= 4:
            to = base + 128 * rows * chunks + 64 * at + 8 * lane + 4 * (k - 4)
        store_u32(to, word)
    pair = u32(0)
    for i in range(2):
        number = u32(0)
        for n in range(4):
            number = u32(number * u32(3) + trit(block, count, lane, 30 + n // 2, i + 2 * (n & 1)))
        pair = pair | shl(packed(u32(number * u32(3))), 8 * i)
    store_u16(base + 200 * rows * chunks + 16 * at + 2 * lane, pair)
    if lane < 4:
        d = load_u16(block + 54 * lane + 52) if 256 * lane < count else u32(0)
        store_u16(base + 192 * rows * chunks + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.TQ1_0,
    group_columns=32,
    steps=4,
    chunk_bytes=216,
    zero=1,
    group=group,
    repack=repack,
)
