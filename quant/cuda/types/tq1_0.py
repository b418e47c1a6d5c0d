"""TQ1_0 in VRAM: steps = 4; a lane's 32 words of 4 weights.

16 bytes a lane   words 0 .. 19: byte i of every 4 has weight i of five words in turn
8 bytes a lane    words 20 .. 29, likewise
8 bytes a chunk   d of every step
2 bytes a lane    words 30 and 31: byte i has weights i and i + 2 of either, in turn

A byte v is n / 243 of 256, n a number of five digits in base 3: times 3 the first digit is what
goes beyond the byte, and the rest is a number of the others. Two bytes are multiplied at once, in
the halves of a word, and 255 is added to their upper bytes, so that digits are weights there. What
that carries out of the lower half, 1 where its weight is not -1, the upper half's v accounts for:

    256 n <= 243 v + carried < 256 (n + 1)     carried: five digits in base 3, too
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    add32,
    f32,
    half,
    i32,
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
def digits(halves):
    """The first digit of both halves as a weight in their upper bytes, and the rest."""
    return add32(mul32(halves, 3), u32(0xFF00FF00))


@device
def rest(halves):
    """Without the upper bytes; no mask, which the compiler would take apart step by step."""
    return permute(halves, u32(0), u32(0x4240))


@device
def words_5(word):
    """The five words of 4 weights in 4 bytes."""
    even, odd = digits(rest(word)), digits(permute(word, u32(0), u32(0x4341)))
    a = permute(even, odd, u32(0x7351))
    even, odd = digits(rest(even)), digits(rest(odd))
    b = permute(even, odd, u32(0x7351))
    even, odd = digits(rest(even)), digits(rest(odd))
    c = permute(even, odd, u32(0x7351))
    even, odd = digits(rest(even)), digits(rest(odd))
    d = permute(even, odd, u32(0x7351))
    even, odd = digits(rest(even)), digits(rest(odd))
    return a, b, c, d, permute(even, odd, u32(0x7351))


@device
def words_2(pair):
    """The two words of 4 weights in 2 bytes."""
    first = digits(permute(pair, u32(0), u32(0x4140)))
    second = digits(rest(first))
    third = digits(rest(second))
    fourth = digits(rest(third))
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
    """Weight i of the lane's word in the GGML blocks of the chunk, 1 too large."""
    j, column = word >> 3, 32 * lane + 4 * (word & 7) + i
    if 256 * j >= count:
        return 1
    if column < 160:
        n, byte = column >> 5, column & 31
    elif column < 240:
        n, byte = (column - 160) >> 4, 32 + (column & 15)
    else:
        n, byte = (column - 240) >> 2, 48 + (column & 3)
    value = i32(load_u8(block + 54 * j + byte))
    for _ in range(n):
        value = 3 * value & 255
    return 3 * value >> 8


@device
def byte_of(block, count, lane, k, i):
    """Byte i of 4 bytes (k < 6) or of the last 2."""
    n = carried = 0
    for digit in range(5):
        word, place, upper, lower = 5 * k + digit, i, i >= 2, i - 2
        if k == 6:
            word, place, upper = 30 + (digit >> 1), i + 2 * (digit & 1), i == 1
            lower = place - 1
        there = word < 32  # the last bytes have four digits
        n = 3 * n + (trit(block, count, lane, word, place) if there else 0)
        beside = trit(block, count, lane, word, lower) if there and upper else 0
        carried = 3 * carried + (1 if beside > 0 else 0)
    return u32((256 * n - carried + 242) // 243)


@device
def repack(block, count, base, rows, chunks, row, chunk, lane):
    at = row * chunks + chunk
    for k in range(7):
        word = u32(0)
        for i in range(4 if k < 6 else 2):
            word = word | shl(byte_of(block, count, lane, k, i), 8 * i)
        if k < 4:
            store_u32(base + 128 * at + 16 * lane + 4 * k, word)
        elif k < 6:
            store_u32(base + 128 * rows * chunks + 64 * at + 8 * lane + 4 * (k - 4), word)
        else:
            store_u16(base + 200 * rows * chunks + 16 * at + 2 * lane, word)
    if lane < 4:
        d = load_u16(block + 54 * lane + 52) if 256 * lane < count else u32(0)
        store_u16(base + 192 * rows * chunks + 8 * at + 2 * lane, d)


PLANES = PlaneType(
    ggml_type=GGMLType.TQ1_0,
    group_columns=32,
    steps=4,
    chunk_bytes=216,
    group=group,
    repack=repack,
)
