"""TQ2_0 packed: 64 rows x 256 columns in 4,224 bytes, 66 a row as in the file.

    | 64 halves: d | 64 vectors of 4 columns, 64 bytes each |        weight = d * (pair - 1)

Vectors: packed_pairs.py.
"""

from __future__ import annotations

import numpy as np

from quant import tq2_0
from quant.jit import inline
from quant.packed_kernels import AHEAD
from quant.packed_pairs import ROWS, SECTION, add_fields, field_dots, pack_pairs, pairs
from quant.packed_type import PackedType
from quant.simd import i64, prefetch_far, u16
from quant.simd_packed import (
    LANES,
    fma,
    load_bytes,
    load_floats,
    load_halves,
    put_u16,
    splat_float,
    splat_int,
    store_bytes,
    store_floats,
    to_floats,
    zero_sums,
)
from quant.tile import ZERO

VECTORS = 128  # where they begin
GROUP_BYTES = VECTORS + 4 * SECTION


def weights(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4224,) uint8 -> q (64, 256) int8, scales (64, 8) float32: the readable definition."""
    d = group[:VECTORS].view(np.float16).astype(np.float32)
    q = pairs(group[VECTORS:].reshape(64, 64)).astype(np.int8) - np.int8(1)
    return q, np.repeat(d[:, None], 8, axis=1)


@inline
def pack_group(blocks: int, q: int, out: int) -> None:
    """Contract in packed_kernels.py."""
    for r in range(ROWS):
        put_u16(out + 2 * r, u16(i64(blocks + 8 * r) + 64))
    for i in range(0, 256 * ROWS, 4 * LANES):
        store_bytes(q + i, load_bytes(q + i) + 1)
    pack_pairs(q, out + VECTORS, SECTION)


@inline
def add_step(p: int, y: int, ys: int, isums: int, sums: int, acc: int) -> None:
    """Contract in packed_kernels.py."""
    for rows in range(0, 64, 4 * LANES):
        d0 = load_halves(p + rows // 2)
        d1 = load_halves(p + 32 + rows // 2)
        d2 = load_halves(p + 64 + rows // 2)
        d3 = load_halves(p + 96 + rows // 2)
        at = p + VECTORS + rows
        to = acc + rows
        if rows == 0:
            prefetch_far(p + AHEAD)
            prefetch_far(p + AHEAD + 64)
        for g in range(8):
            x = y + 32 * g
            a = zero_sums()
            b = zero_sums()
            c = zero_sums()
            d = zero_sums()
            for k in range(8):
                if rows == 0:
                    prefetch_far(at + AHEAD + 64 * k)
                a, b, c, d = add_fields(at + 64 * k, x + 4 * k, a, b, c, d)
            dot0, dot1, dot2, dot3 = field_dots(a, b, c, d)
            isum = splat_int(isums + 4 * g)
            scale = splat_float(ys + 4 * g)
            store_floats(to, fma(to_floats(dot0 - isum), d0 * scale, load_floats(to)))
            store_floats(to + 64, fma(to_floats(dot1 - isum), d1 * scale, load_floats(to + 64)))
            store_floats(to + 128, fma(to_floats(dot2 - isum), d2 * scale, load_floats(to + 128)))
            store_floats(to + 192, fma(to_floats(dot3 - isum), d3 * scale, load_floats(to + 192)))
            at += 512
            to += 4 * ROWS


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    for rows in range(0, 64, 4 * LANES):
        d = load_halves(p + 32 * plane + rows // 2)
        for g in range(8):
            store_floats(s + g * s_stride + rows, d)
            for k in range(8):
                v = load_bytes(p + VECTORS + 512 * g + 64 * k + rows) >> 2 * plane & 3
                store_bytes(w + g * w_stride + 128 * k + rows, v - 1 ^ ZERO)


PACKED = PackedType(
    source=tq2_0.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=32,
)
