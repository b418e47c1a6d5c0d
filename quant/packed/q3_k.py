"""Q3_K packed: 64 rows x 256 columns in 7,040 bytes, 110 a row as in the file.

    | 64 halves: d | 4 x 192 bytes of scales | 4 sections of 64 columns, 1,536 bytes each |
    section: 8 x | vector of 4 columns | vector of the next 4 | third bits of both |, 64 bytes each

    weight = d * scale * (pair + 4 * third bit - 4)
    third bits, byte 4 r + c:      rows  r   16 + r   32 + r   48 + r
             first vector, bit           2        1        6        5
             second vector, bit          0        3        4        7
    (one shift brings them above the pairs of two rows that stand in bits 0-1 and 4-5)
    scales, part j: | 2 x 64 bytes of nibbles | 64 bytes of pairs |, byte 4 r + i for row 16 j + r:
    columns 64 k + 16 i .. + 15 have their low 4 bits in nibble k % 2 of nibble vector k / 2, the
    upper 2 in bits 2 k, 2 k + 1 of the pairs; together a number of 6 bits, -32 .. 31

Vectors: fours.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.packed.fours import (
    ROWS,
    fetch_part,
    four_floats,
    four_halves,
    four_ints,
    pack_pairs,
    pairs,
    store_four,
)
from quant.packed.kernels import AHEAD
from quant.packed.packed_type import PackedType
from quant.simd.packed import (
    HALVES,
    LANES,
    VNNI,
    WIDE,
    add_products,
    bytes_as_ints,
    choose_bits,
    fma,
    four_columns,
    four_in_turn,
    load_bytes,
    load_floats,
    load_halves,
    opaque,
    put_u16,
    splat_float,
    splat_int,
    store_bytes,
    store_floats,
    to_floats,
    top_byte,
    total,
    without_upper,
    words_down,
    words_up,
    zero_sums,
)
from quant.simd.vectors import alloca, i64, prefetch_far, put_i32, u16, u32
from quant.tile.panels import storage
from quant.tile.tile import transpose_floats
from quant.types import q3_k

SCALES = 128  # where they begin
PART = 192
SECTIONS = SCALES + 4 * PART
STRIDE = 1536
GROUP_BYTES = SECTIONS + 4 * STRIDE
SHARE = STRIDE // HALVES  # bytes to fetch with each half of a section
UNIT = np.float32(2.0**-26)  # of a scale in the upper 6 bits of a word
ZERO = storage(q3_k.QUANT.weights).zero - 4  # of a tile, for pairs and third bits as they are


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(7040,) uint8 -> q (64, 256) int8, scales (64, 16) float32: the readable definition."""
    d = group[:SCALES].view(np.float16).astype(np.float32)
    parts = group[SCALES:SECTIONS].reshape(4, 3, 16, 4)  # j, vector, r, i
    low = np.stack([parts[:, k // 2] >> 4 * (k % 2) & 15 for k in range(4)], axis=2)
    high = np.stack([parts[:, 2] >> 2 * k & 3 for k in range(4)], axis=2)
    scale = ((low | high << 4).reshape(ROWS, 16).astype(np.int8) ^ 32) - 32
    vectors = group[SECTIONS:].reshape(32, 3, 64)
    q = pairs(vectors[:, :2].reshape(64, 64))
    third = vectors[:, 2].reshape(32, 16, 4)
    for plane, bits in enumerate(((2, 0), (1, 3), (6, 4), (5, 7))):
        both = np.stack([third >> k & 1 for k in bits], axis=1)  # pair, vector, r, c
        q[16 * plane : 16 * plane + 16] |= both.transpose(2, 0, 1, 3).reshape(16, 256) << 2
    return q.astype(np.int8) - np.int8(4), d[:, None] * scale.astype(np.float32)


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        p = i64(blocks + 8 * r)
        put_u16(out + 2 * r, u16(p + 108))
        low = u32(p + 96)  # nibbles: scales 0-3 and 8-11
        high = u32(p + 100)  # 4-7 and 12-15
        at = out + SCALES + r // 16 * PART + r % 16 * 4
        put_i32(at, low & 0x0F0F0F0F | (high & 0x0F0F0F0F) << 4)
        put_i32(at + 64, low >> 4 & 0x0F0F0F0F | high & 0xF0F0F0F0)
        put_i32(at + 128, u32(p + 104) ^ 0xAAAAAAAA)  # less 32: their top bit is the sign
    bits = alloca(4096)  # third bits as in a first vector, 16 rows x 256
    columns = alloca(4096)  # the same as 64 vectors of 4 columns
    for i in range(0, 4096, 4 * LANES):
        v = load_bytes(q + i) + 4
        third = v & 4
        store_bytes(q + i, v & 3)
        v = load_bytes(q + 4096 + i) + 4
        third = third | v >> 1 & 2
        store_bytes(q + 4096 + i, v & 3)
        v = load_bytes(q + 8192 + i) + 4
        third = third | (v & 4) << 4
        store_bytes(q + 8192 + i, v & 3)
        v = load_bytes(q + 12288 + i) + 4
        third = third | (v & 4) << 3
        store_bytes(q + 12288 + i, v & 3)
        store_bytes(bits + i, third)
    for k in range(4):
        transpose_floats(bits + 64 * k, 256, columns + 1024 * k, 1, 0, 64)
    for k in range(32):
        for rows in range(0, 64, 4 * LANES):
            first = load_bytes(columns + 128 * k + rows)
            second = load_bytes(columns + 128 * k + 64 + rows)
            v = first | (second & 0x44) >> 2 | (second & 0x22) << 2
            store_bytes(out + SECTIONS + 192 * k + 128 + rows, v)
    pack_pairs(q, columns, 1024)
    for k in range(32):
        for i in range(0, 128, 4 * LANES):
            store_bytes(out + SECTIONS + 192 * k + i, load_bytes(columns + 128 * k + i))


@inline
def add_fields(
    v: Any, even: Any, odd: Any, y: int, a: Any, b: Any, c: Any, d: Any
) -> tuple[Any, Any, Any, Any]:
    """Sums of the four rows grow by 4 columns; even, odd: third bits, moved to bits 2 and 6.

    Without VNNI a and b get 16 times what c and d get besides: a mask less (a product of two
    columns is at most 2 x 0x77 x 127, which 16 bits hold; the sum may overflow).
    """
    x = four_columns(y)
    if VNNI:
        first = choose_bits(v, even, 0x33)
        second = choose_bits(words_down(v, 2), odd, 0x33)
        a = add_products(a, first & 0x07, x)
        b = add_products(b, second & 0x07, x)
        c = add_products(c, first & 0x70, x)
        d = add_products(d, second & 0x70, x)
    else:
        first = v & 0x33 | even & 0x44
        second = words_down(v, 2) & 0x33 | odd & 0x44
        a = add_products(a, first, x)
        b = add_products(b, second, x)
        c = add_products(c, words_down(first, 4) & 0x07, x)
        d = add_products(d, words_down(second, 4) & 0x07, x)
    return a, b, c, d


@inline
def add_eight(p: int, y: int, a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """The same for the two vectors and their third bits at p."""
    bits = load_bytes(p + 128)
    a, b, c, d = add_fields(load_bytes(p), bits, words_up(bits, 1), y, a, b, c, d)
    even = words_up(bits, 2)
    return add_fields(load_bytes(p + 64), even, words_down(bits, 1), y + 4, a, b, c, d)


@inline
def section_scales(part: int, k: int) -> Any:
    """Byte 4 r + i: the scale of columns 64 k + 16 i .. in its upper 6 bits."""
    low = load_bytes(part + k // 2 * 64)
    if k % 2:
        low = words_down(low, 2)
    else:
        low = words_up(low, 2)
    high = words_up(load_bytes(part + 128), 6 - 2 * k)
    return low & 0x3C | high & 0xC0


@inline
def add_plane(numbers: Any, i: int, d: Any, dot: Any, ys: Any, to: int) -> None:
    """16 columns' product with 16 rows; byte i of `numbers`: their scales."""
    scale = to_floats(top_byte(numbers, i)) * d
    store_floats(to, fma(to_floats(dot), scale * ys, load_floats(to)))


@inline
def add_columns(
    i: int, p: int, scales: int, d: Any, floats: int, y: int, ys: int, isums: int, to: int
) -> None:
    """Columns 16 i .. 16 i + 15 of a section, its scales at `scales`; i is a constant, d by plane.

    With few registers d is read where it is used, at floats.
    """
    at = p + 384 * i
    x = y + 16 * i
    a, b, c, e = add_eight(at, x, zero_sums(), zero_sums(), zero_sums(), zero_sums())
    a, b, c, e = four_in_turn(a, b, c, e)
    a, b, c, e = add_eight(at + 192, x + 8, a, b, c, e)
    a, b, c, e = four_in_turn(a, b, c, e)
    up = 4 if VNNI else 0
    numbers = four_ints(scales)
    if not WIDE:
        d = four_floats(floats)
    if not VNNI:
        a = without_upper(a, c)
        b = without_upper(b, e)
    four = splat_int(isums + 4 * i) << 2
    scale = splat_float(ys + i // 2 * 4)
    to += 4 * ROWS * i
    add_plane(numbers[0], i, d[0], total(a) - four, scale, to)
    add_plane(numbers[1], i, d[1], total(b) - four, scale, to + 64)
    add_plane(numbers[2], i, d[2], (total(c) >> up) - four, scale, to + 128)
    add_plane(numbers[3], i, d[3], (total(e) >> up) - four, scale, to + 192)


@inline
def put_scales(part: int, to: int) -> None:
    """`section_scales` of the four sections, 256 bytes apart."""
    store_bytes(to, section_scales(part, 0))
    store_bytes(to + 256, section_scales(part, 1))
    store_bytes(to + 512, section_scales(part, 2))
    store_bytes(to + 768, section_scales(part, 3))


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    floats = alloca(256)  # d
    numbers = alloca(1024)  # scales: [section][plane][16 rows]
    for line in range(0, SECTIONS, 64):
        prefetch_far(p + AHEAD + line)
    for rows in range(0, 64, 4 * LANES):
        d0, d1, d2, d3 = four_halves(p + rows // 2)
        d = d0 * UNIT, d1 * UNIT, d2 * UNIT, d3 * UNIT
        if not WIDE:
            store_four(floats + rows, d)
        for j in range(4):
            put_scales(p + SCALES + PART * j + rows, numbers + 64 * j + rows)
    for k in range(4):
        for rows in range(0, 64, 4 * LANES):
            section = p + SECTIONS + STRIDE * k
            at = opaque(section + rows)
            scales = opaque(numbers + 256 * k + rows)
            own = opaque(floats + rows)
            x = opaque(y + 64 * k)
            scale = opaque(ys + 8 * k)
            isum = opaque(isums + 16 * k)
            to = opaque(acc + 16 * ROWS * k + rows)
            ahead = opaque(section + SHARE * (rows // 32))
            fetch_part(ahead, SHARE, 0)
            add_columns(0, at, scales, d, own, x, scale, isum, to)
            fetch_part(ahead, SHARE, 1)
            add_columns(1, at, scales, d, own, x, scale, isum, to)
            fetch_part(ahead, SHARE, 2)
            add_columns(2, at, scales, d, own, x, scale, isum, to)
            fetch_part(ahead, SHARE, 3)
            add_columns(3, at, scales, d, own, x, scale, isum, to)


@inline
def fill_section(
    k: int, p: int, rows: int, plane: int, d: Any, w: int, w_stride: int, s: int, s_stride: int
) -> None:
    """Columns 64 k .. of `fill_plane`."""
    numbers = bytes_as_ints(section_scales(p + SCALES + PART * plane + rows, k))
    upper = plane // 2 * 4
    for i in range(4):
        g = 4 * k + i
        store_floats(s + g * s_stride + rows, to_floats(top_byte(numbers, i)) * d)
        for j in range(2):
            at = p + SECTIONS + STRIDE * k + 384 * i + 192 * j + rows
            bits = load_bytes(at + 128)
            first = load_bytes(at) >> 2 * plane & 3
            first = first | (bits >> (upper + 2 - plane % 2) & 1) << 2
            second = load_bytes(at + 64) >> 2 * plane & 3
            second = second | (bits >> (upper + 3 * (plane % 2)) & 1) << 2
            to = w + g * w_stride + 256 * j + rows
            store_bytes(to, first + ZERO)
            store_bytes(to + 128, second + ZERO)


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    for rows in range(0, 64, 4 * LANES):
        d = load_halves(p + 32 * plane + rows // 2) * UNIT
        for k in range(4):
            fill_section(k, p, rows, plane, d, w, w_stride, s, s_stride)


PACKED = PackedType(
    source=q3_k.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=5 if isa.PAIRS else 8,
    looped=4,
)
