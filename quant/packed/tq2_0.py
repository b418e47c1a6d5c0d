"""TQ2_0 packed: 64 rows x 256 columns in 4,224 bytes, 66 a row as in the file.

    | 64 halves: d | 64 vectors of 4 columns, 64 bytes each |        weight = d * (pair - 1)

Vectors: fours.py.
"""

from __future__ import annotations

import numpy as np

from quant.compiler import isa
from quant.compiler.jit import inline
from quant.packed.fours import (
    ROWS,
    SECTION,
    add_fields,
    field_dots,
    four_floats,
    four_halves,
    pack_pairs,
    pairs,
    store_four,
)
from quant.packed.kernels import AHEAD
from quant.packed.packed_type import PackedType
from quant.simd.packed import (
    HALVES,
    LANES,
    WIDE,
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
from quant.simd.vectors import alloca, i64, prefetch_far, u16
from quant.tile.panels import storage
from quant.types import tq2_0

VECTORS = 128  # where they begin
GROUP_BYTES = VECTORS + 4 * SECTION
ZERO = storage(tq2_0.QUANT.weights).zero - 1  # of a tile, for pairs as they are


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
    floats = alloca(256)  # d
    prefetch_far(p + AHEAD)
    prefetch_far(p + AHEAD + 64)
    for rows in range(0, 64, 4 * LANES):
        d = four_halves(p + rows // 2)
        if not WIDE:
            store_four(floats + rows, d)
    for g in range(8):
        for rows in range(0, 64, 4 * LANES):
            at = p + VECTORS + 512 * g
            x = y + 32 * g
            if not WIDE:
                d = four_floats(floats + rows)
            a, b, c, e = zero_sums(), zero_sums(), zero_sums(), zero_sums()
            for k in range(8):
                if k % HALVES == 0:
                    prefetch_far(at + AHEAD + 64 * k // HALVES + 8 * rows)
                a, b, c, e = add_fields(at + rows + 64 * k, x + 4 * k, a, b, c, e)
            dot0, dot1, dot2, dot3 = field_dots(a, b, c, e)
            isum = splat_int(isums + 4 * g)
            scale = splat_float(ys + 4 * g)
            to = acc + 4 * ROWS * g + rows
            store_floats(to, fma(to_floats(dot0 - isum), d[0] * scale, load_floats(to)))
            store_floats(to + 64, fma(to_floats(dot1 - isum), d[1] * scale, load_floats(to + 64)))
            store_floats(to + 128, fma(to_floats(dot2 - isum), d[2] * scale, load_floats(to + 128)))
            store_floats(to + 192, fma(to_floats(dot3 - isum), d[3] * scale, load_floats(to + 192)))


@inline
def fill_plane(p: int, plane: int, w: int, w_stride: int, s: int, o: int, s_stride: int) -> None:
    """Contract in packed_kernels.py."""
    for rows in range(0, 64, 4 * LANES):
        d = load_halves(p + 32 * plane + rows // 2)
        for g in range(8):
            store_floats(s + g * s_stride + rows, d)
            for k in range(8):
                v = load_bytes(p + VECTORS + 512 * g + 64 * k + rows) >> 2 * plane & 3
                store_bytes(w + g * w_stride + 128 * k + rows, v + ZERO)


PACKED = PackedType(
    source=tq2_0.QUANT,
    group_rows=ROWS,
    group_bytes=GROUP_BYTES,
    pack_group=pack_group,
    add_step=add_step,
    fill_plane=fill_plane,
    few=18 if isa.PAIRS else 32,
    looped=4,
)
