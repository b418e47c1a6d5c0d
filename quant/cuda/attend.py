"""Absorbed MLA attention over the pages of a latent cache: kernels of a shape, launched in order.

    append   (cache_rows.py)     each token's row into its page
    query                        queries in latent space -> scaled, with their turned k_rope part
    attend_f32, _f16, _q8_0      strands of positions -> partial results; of tokens of that kind
    merge                        partial results -> z

Split i, positions SPLIT i .. SPLIT i + SPLIT - 1, belongs to strand i mod STRANDS of its token,
whatever else is computed: what a token gets depends on its sequence alone, and prefill equals
decoding to the bit. partials: (tokens, heads, strands, latent + 4) float32, a row being

    [ z: latent, not divided | maximum, as a power of 2's exponent | total | - | - ]

SPLIT and STRANDS: 64 strands of 32 heads of Kimi's 64 fill 128 multiprocessors from 8K positions
on, and what they leave behind (8 MiB a token) stays in the L2 cache. Smaller splits would fill them
earlier, and prompts would spend more on what comes and goes with a strand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from quant.compiler.jit import OPEN, bind
from quant.cuda import attend_floats, attend_halves, attend_tiles, cache_rows
from quant.cuda.attend_halves import LOWEST
from quant.cuda.cache_rows import POSITION, RECORD, groups
from quant.cuda.intrinsics import (
    as_f32,
    as_u32,
    block_x,
    block_y,
    f32,
    fma,
    larger,
    load_4,
    load_f32,
    load_i64,
    power_of_2,
    put_shared_4,
    put_shared_f32,
    quotient,
    shared,
    shared_4,
    shared_f32,
    store_4,
    store_f32,
    swap_f32,
    sync,
    thread,
    u32,
)
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import device
from quant.run.cache_rows import RowKind

SPLIT = 128  # positions; a page is a multiple of it
STRANDS = 64
QUERY_THREADS = 128
SHARES = 4
HEADS: int = OPEN
RANK: int = OPEN
ROPE: int = OPEN
LATENT: int = OPEN
WIDTH: int = OPEN
PADDED_STRANDS: int = OPEN  # a multiple of 32
COLUMN_THREADS: int = OPEN  # that share the columns of z, four each


def head_groups(kind: RowKind, heads: int) -> int:
    """Blocks that the heads of a token are shared out to: the grid's second number."""
    if kind == RowKind.F32:
        return -(-heads // attend_floats.HEADS_AT_ONCE)
    return -(-heads // (16 * attend_halves.head_tiles(heads)))


def partial_bytes(heads: int, latent: int, strands: int) -> int:
    """Bytes of a token's partial results."""
    return 4 * heads * strands * (latent + 4)


def strands_of(positions: int) -> int:
    """Strands that sequences of at most so many positions need."""
    return min(STRANDS, -(-positions // SPLIT))


def query(
    wide: int, wide_stride: int, q: int, q_stride: int, q_head: int, nope: int, cos: int, sin: int,
    scale_bits: int,
) -> None:  # fmt: skip
    """Finish queries: [ absorbed: RANK | 0 | turned k_rope part | 0 ], times the scale.

    wide: (HEADS, WIDTH) float32 a token, whose first RANK columns are there; q: heads q_head bytes
    apart, ROPE floats behind `nope` others; cos, sin: (tokens, ROPE / 2). Grid: heads, tokens.
    """
    h, t = block_x(), block_y()
    scale = as_f32(u32(scale_bits))
    to = wide + t * wide_stride + 4 * WIDTH * h
    rope = q + t * q_stride + h * q_head + 4 * nope
    for c in range(thread(), WIDTH, QUERY_THREADS):
        v = f32(0)
        if c < RANK:
            v = load_f32(to + 4 * c)
        elif c >= LATENT and c < LATENT + ROPE:
            pair, odd = (c - LATENT) // 2, (c - LATENT) % 2
            a, b = load_f32(rope + 8 * pair), load_f32(rope + 8 * pair + 4)
            angle = 2 * ROPE * t + 4 * pair
            co, si = load_f32(cos + angle), load_f32(sin + angle)
            v = a * si + b * co if odd else a * co - b * si
        store_f32(to + 4 * c, v * scale)


def merge(rows: int, partials: int, strands: int, z: int, z_stride: int) -> None:
    """Partial results -> z, (HEADS, LATENT) float32 a token. Grid: heads, tokens.

    SHARES groups of threads take every SHARES-th strand, and then their sums are added in order.
    """
    h, t, i = block_x(), block_y(), thread()
    n = load_i64(rows + RECORD * t + POSITION) + 1
    count = min(STRANDS, (n + SPLIT - 1) // SPLIT)
    step = 4 * (LATENT + 4)
    part = partials + (HEADS * t + h) * strands * step
    best, total = LOWEST, f32(0)
    for s in range(i % 32, count, 32):
        best = larger(best, load_f32(part + s * step + 4 * LATENT))
    for k in range(5):
        best = larger(best, swap_f32(best, 1 << k))
    weights = shared()
    for s in range(i % 32, PADDED_STRANDS, 32):
        weight = f32(0)
        if s < count:
            top = part + s * step + 4 * LATENT
            weight = power_of_2(load_f32(top) - best)
            total = fma(weight, load_f32(top + 4), total)
        if i < 32:
            put_shared_f32(weights + 4 * s, weight)
    for k in range(5):
        total = total + swap_f32(total, 1 << k)
    sync()
    share, c = i // COLUMN_THREADS, 4 * (i % COLUMN_THREADS)
    v0, v1, v2, v3 = f32(0), f32(0), f32(0), f32(0)
    sums = shared() + 4 * PADDED_STRANDS + 4 * c
    if c < LATENT:
        for s in range(share, count, 4 * SHARES):
            for u in range(4):  # behind the last: the last, with weight 0
                weight = shared_f32(weights + 4 * (s + SHARES * u))
                at = part + min(s + SHARES * u, count - 1) * step + 4 * c
                a, b, d, e = load_4(at)
                v0 = fma(weight, as_f32(a), v0)
                v1 = fma(weight, as_f32(b), v1)
                v2 = fma(weight, as_f32(d), v2)
                v3 = fma(weight, as_f32(e), v3)
        if share > 0:
            to = sums + 4 * LATENT * (share - 1)
            put_shared_4(to, as_u32(v0), as_u32(v1), as_u32(v2), as_u32(v3))
    sync()
    if share == 0 and c < LATENT:
        for k in range(SHARES - 1):
            a, b, d, e = shared_4(sums + 4 * LATENT * k)
            v0, v1 = v0 + as_f32(a), v1 + as_f32(b)
            v2, v3 = v2 + as_f32(d), v3 + as_f32(e)
        by = quotient(f32(1), total)
        to = z + t * z_stride + 4 * (LATENT * h + c)
        store_4(to, as_u32(v0 * by), as_u32(v1 * by), as_u32(v2 * by), as_u32(v3 * by))


@cache
def of_shape(
    heads: int, rank: int, rope: int, latent: int, width: int, *, split: int = SPLIT,
    strands: int = STRANDS,
) -> dict[str, Kernel]:  # fmt: skip
    """The kernels of a shape. latent, width - latent: multiples of 16, rank and rope at least."""
    of_latent, of_row = groups(latent, width)
    names: dict[str, Any] = {
        "HEADS": heads, "RANK": rank, "ROPE": rope, "LATENT": latent, "WIDTH": width,
        "LATENT_GROUPS": of_latent, "GROUPS": of_row, "SPLIT": split, "STRANDS": strands,
        "COLUMN_THREADS": -(-latent // 128) * 32, "PADDED_STRANDS": -(-strands // 32) * 32,
    }  # fmt: skip
    kernels = [
        _kernel(cache_rows.append, "append", names, cache_rows.THREADS, 4 * width + 16),
        _kernel(query, "query", names, QUERY_THREADS),
        _kernel(
            merge,
            "merge",
            names,
            SHARES * names["COLUMN_THREADS"],
            4 * (names["PADDED_STRANDS"] + (SHARES - 1) * latent),
        ),  # fmt: skip
    ]
    for kind in (RowKind.F16, RowKind.Q8_0):
        is_q8 = kind == RowKind.Q8_0
        shape = attend_halves.shapes(heads, latent, width, of_row, is_q8)
        bound = names | shape | {"Q8": is_q8, "OWN_KIND": int(kind)}
        for part in (attend_tiles.bring, attend_tiles.widen, *attend_halves.PARTS):
            bound[part.__name__] = device(bind(part, part.__name__, **bound))
        name = f"attend_{kind.name.lower()}"
        kernels.append(
            _kernel(attend_halves.attend, name, bound, attend_halves.THREADS, shape["SHARED"])
        )
    shares = -(-latent // attend_floats.THREADS)
    bound = names | {"SHARES": shares, "Z_FLOATS": shares * attend_floats.HEADS_AT_ONCE}
    n_bytes = attend_floats.shared_bytes(width)
    kernels.append(
        _kernel(attend_floats.attend, "attend_f32", bound, attend_floats.THREADS, n_bytes)
    )
    return {kernel.name: kernel for kernel in kernels}


def _kernel(
    template: Callable[..., None], name: str, names: dict[str, Any], threads: int, shared: int = 0
) -> Kernel:
    return Kernel(name=name, function=bind(template, name, **names), threads=threads, shared=shared)
