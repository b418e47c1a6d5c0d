"""Absorbed MLA attention over the pages of a latent cache: kernels of a shape, launched in order.

    append   (cache_rows.py)     each token's row into its page
    query                        queries in latent space -> scaled, with their turned k_rope part
    attend_f32, _f16, _q8_0      strands of positions -> partial results; of tokens of that kind
    merge                        partial results -> z

Split i, positions SPLIT i .. SPLIT i + SPLIT - 1, belongs to strand i mod STRANDS of its token,
whatever else is computed: what a token gets depends on its sequence alone, and prefill equals
decoding to the bit. partials: (tokens, heads, strands, latent + 4) float32, a row being

    [ z: latent, not divided | maximum, as a power of 2's exponent | total | - | - ]

SPLIT and STRANDS: 64 strands of 32 heads of Kimi's 64 fill 128 multiprocessors from 4K positions
on, and what they leave behind (8 MiB a token) stays in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from quant.compiler.jit import OPEN, bind
from quant.cuda import attend_floats, attend_halves, cache_rows
from quant.cuda.attend_halves import LOWEST
from quant.cuda.cache_rows import POSITION, RECORD, groups
from quant.cuda.intrinsics import (
    as_f32,
    block_x,
    block_y,
    f32,
    fma,
    larger,
    load_f32,
    load_i64,
    power_of_2,
    quotient,
    store_f32,
    thread,
    u32,
)
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import device
from quant.run.cache_rows import RowKind

SPLIT = 64  # positions; a page is a multiple of it
STRANDS = 64
QUERY_THREADS = 128
HEADS: int = OPEN
RANK: int = OPEN
ROPE: int = OPEN
LATENT: int = OPEN
WIDTH: int = OPEN
MERGE_THREADS: int = OPEN


def partial_bytes(heads: int, latent: int, strands: int) -> int:
    """Bytes of a token's partial results."""
    return 4 * heads * strands * (latent + 4)


def head_groups(name: str, heads: int) -> int:
    """Blocks that share the heads of a token in the kernel of this name."""
    at_once = 8 if name == "attend_f32" else 32 if heads > 16 else 16
    return -(-heads // at_once)


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
    """Partial results -> z, (HEADS, LATENT) float32 a token. Grid: heads, tokens."""
    h, t = block_x(), block_y()
    n = load_i64(rows + RECORD * t + POSITION) + 1
    count = min(STRANDS, (n + SPLIT - 1) // SPLIT)
    step = 4 * (LATENT + 4)
    part = partials + (HEADS * t + h) * strands * step
    best = LOWEST
    for s in range(count):
        best = larger(best, load_f32(part + s * step + 4 * LATENT))
    total = f32(0)
    for s in range(count):
        top = part + s * step + 4 * LATENT
        total = fma(power_of_2(load_f32(top) - best), load_f32(top + 4), total)
    inverse = quotient(f32(1), total)
    for c in range(thread(), LATENT, MERGE_THREADS):
        v = f32(0)
        for s in range(count):
            at = part + s * step
            v = fma(power_of_2(load_f32(at + 4 * LATENT) - best), load_f32(at + 4 * c), v)
        store_f32(z + t * z_stride + 4 * (LATENT * h + c), v * inverse)


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
        "MERGE_THREADS": min(512, -(-latent // 32) * 32),
    }  # fmt: skip
    kernels = [
        _kernel(cache_rows.append, "append", names, cache_rows.THREADS, 4 * width + 16),
        _kernel(query, "query", names, QUERY_THREADS),
        _kernel(merge, "merge", names, names["MERGE_THREADS"]),
    ]
    for kind in (RowKind.F16, RowKind.Q8_0):
        is_q8 = kind == RowKind.Q8_0
        shape = attend_halves.shapes(heads, latent, width, of_row, is_q8)
        bound = names | shape | {"Q8": is_q8, "OWN_KIND": int(kind)}
        for part in ("bring", "widen", "fetch", "multiply", "soften", "mix"):
            bound[part] = device(bind(getattr(attend_halves, part), part, **bound))
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
