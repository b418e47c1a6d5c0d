"""Decode attention: near exact, then its time as a share of what reading the cache would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from offload.gpu.base import Launch
from offload.gpu_check.bench import Bench, launch
from offload.gpu_check.rates import copy_rate, random_bytes
from offload.gpu_check.report import Row, at_least, fact, near
from quant.cuda.attend import head_groups, of_shape, partial_bytes, strands_of
from quant.cuda.cache_rows import PAGE, to_layer
from quant.run.cache_rows import RowKind, decode, encode, row_bytes

Array = np.ndarray
POSITIONS = 333
TOLERANCE = {RowKind.F32: 2e-6, RowKind.F16: 3e-4, RowKind.Q8_0: 3e-4}
GOAL, GOAL_CONTEXT = 0.60, 1 << 15


def attention(bench: Bench) -> Iterator[Row]:
    """All kinds of rows, then f16 and q8_0 by context."""
    for kind in RowKind:
        with bench.scope():
            yield _near(bench, kind)
    with bench.scope():
        slab = random_bytes(bench, bench.setup.slab_bytes)
        copy = copy_rate(bench, slab, bench.setup.slab_bytes)
        yield fact("copy within memory, read and written", copy / 1e9, "GB/s")
        for kind in (RowKind.F16, RowKind.Q8_0):
            for context in bench.setup.contexts:
                with bench.scope():
                    yield from _share(bench, kind, context, slab, copy)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One token at the end of a context. pages: addresses, of one layer's rows each."""

    kind: RowKind
    positions: int
    pages: list[int]
    wide: int


def _launches(bench: Bench, sequence: Sequence) -> tuple[list[Launch], int]:
    """Attend and merge; where z (heads, latent) is then."""
    heads, rank, rope, latent, width = bench.setup.attention
    kernels = of_shape(heads, rank, rope, latent, width)
    strands = strands_of(sequence.positions)
    pages = bench.put(np.array(sequence.pages, np.int64))
    record = np.array([0, sequence.positions - 1, pages, int(sequence.kind)], np.int64)
    rows, partials = bench.put(record), bench.room(partial_bytes(heads, latent, strands))
    z = bench.room(4 * heads * latent)
    name = f"attend_{sequence.kind.name.lower()}"
    return [
        launch(
            kernels[name], (strands, head_groups(sequence.kind, heads), 1), rows, 0, sequence.wide,
            4 * heads * width, strands, partials,
        ),
        launch(kernels["merge"], (heads, 1), rows, partials, strands, z, 4 * heads * latent),
    ], z  # fmt: skip


def _near(bench: Bench, kind: RowKind) -> Row:
    """Against float64 over rows as they are stored."""
    heads, _, _, latent, width = bench.setup.attention
    rng = np.random.default_rng(int(kind))
    rows = rng.standard_normal((POSITIONS, width)).astype(np.float32)
    wide = (2 * rng.standard_normal((heads, width)) / np.sqrt(width)).astype(np.float32)
    stored = encode(kind, rows, latent)
    pages = []
    for first in range(0, POSITIONS, PAGE):
        page = np.zeros((PAGE, stored.shape[1]), np.uint8)
        part = stored[first : first + PAGE]
        page[: len(part)] = part
        pages.append(bench.put(to_layer(kind, page, width)))
    sequence = Sequence(kind=kind, positions=POSITIONS, pages=pages, wide=bench.put(wide))
    launches, z = _launches(bench, sequence)
    bench.run(*launches)
    cache = decode(kind, stored, latent, width - latent).astype(np.float64)
    scores = wide.astype(np.float64) @ cache.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    exact = (p / p.sum(axis=1, keepdims=True)) @ cache[:, :latent]
    return near(f"{kind.name}", bench.get(z, (heads, latent)), exact, TOLERANCE[kind])


def _share(bench: Bench, kind: RowKind, context: int, slab: int, copy: float) -> Iterator[Row]:
    """As many sequences in turn as the slab holds, so that no cache has their rows."""
    heads, _, _, latent, width = bench.setup.attention
    rng = np.random.default_rng(0)
    wide = bench.put((rng.standard_normal((heads, width)) / width).astype(np.float32))
    size = PAGE * row_bytes(kind, latent, width - latent)
    count = -(-context // PAGE)
    fits = bench.setup.slab_bytes // size
    _fill(bench, kind, slab, fits)
    turns = max(1, min(fits, 4 * bench.setup.launch_bytes // size) // count)
    launches: list[Launch] = []
    for turn in range(turns):
        pages = [slab + (turn * count + i) % fits * size for i in range(count)]
        some, _ = _launches(bench, Sequence(kind=kind, positions=context, pages=pages, wide=wide))
        launches += some
    seconds = bench.time(launches) / turns
    label = f"{kind.name} at {context}"
    yield fact(label, 1e6 * seconds, "us")
    share = context * size / PAGE / seconds / copy
    if context == GOAL_CONTEXT:
        yield at_least(label, share, "of a copy's rate", GOAL)
    else:
        yield fact(label, share, "of a copy's rate")


def _fill(bench: Bench, kind: RowKind, slab: int, pages: int) -> None:
    """Rows of numbers in every page: a tensor core's power depends on them."""
    _, _, _, latent, width = bench.setup.attention
    rows = np.random.default_rng(1).standard_normal((PAGE, width)).astype(np.float32)
    page = to_layer(kind, encode(kind, rows, latent), width)
    bench.gpu.upload(slab, page)
    for i in range(1, pages):
        bench.gpu.copy(slab + i * page.nbytes, slab, page.nbytes)
