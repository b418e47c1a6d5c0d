"""Matrix-vector kernels as a share of the rate of a copy within the GPU's memory.

Weights are random bytes: a product's time does not depend on them. Each launch goes through others,
so that no cache has them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from offload.gpu.base import Launch
from offload.gpu_check.bench import Bench, every_type, launch
from offload.gpu_check.kernels import UP_ROWS, row_blocks
from offload.gpu_check.report import Row, at_least, fact
from quant.cuda.kernels import of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import GGMLType

GOAL = 0.70
GOAL_BOOKS = 0.60  # weights are looked up in tables
GOAL_BLOCK = 0.60
SLOTS = 8
SEED_BYTES = 16 << 20
COPY_SECONDS = 4  # times Setup.seconds


def rates(bench: Bench) -> Iterator[Row]:
    """All types."""
    with bench.scope():
        slab = random_bytes(bench, bench.setup.slab_bytes)
        copy = copy_rate(bench, slab, bench.setup.slab_bytes)
        yield fact("copy within memory, read and written", copy / 1e9, "GB/s")
        for kind in every_type(bench.setup):
            with bench.scope():
                yield from of(bench, Weights(bench, kind, slab), copy)


def random_bytes(bench: Bench, n_bytes: int) -> int:
    """Address of so many."""
    at = bench.room(n_bytes)
    seed = np.random.default_rng(0).integers(0, 256, min(SEED_BYTES, n_bytes), np.uint8)
    bench.gpu.upload(at, seed)
    done = seed.size
    while done < n_bytes:
        part = min(done, n_bytes - done)
        bench.gpu.copy(at + done, at, part)
        done += part
    return at


def copy_rate(bench: Bench, slab: int, n_bytes: int) -> float:
    """Bytes read and written per second, copying one half of a slab to the other."""
    half = n_bytes // 512 * 256

    def seconds(times: int) -> float:
        bench.gpu.wait()
        began = time.perf_counter()
        for _ in range(times):
            bench.gpu.copy(slab + half, slab, half)
        bench.gpu.wait()
        return time.perf_counter() - began

    seconds(1)
    times = max(1, int(COPY_SECONDS * bench.setup.seconds / seconds(1)))
    return 2 * half * times / min(seconds(times) for _ in range(bench.setup.repeats))


def of(bench: Bench, weights: Weights, copy: float) -> Iterator[Row]:
    """The kernels of a type that are there."""
    kind, there = weights.kind, of_type(weights.kind)
    goal = GOAL_BOOKS if kind.name.startswith("IQ") else GOAL
    for name in ("dense", "chosen", "heads"):
        for tokens in bench.setup.at_once:
            if f"{name}_{tokens}" not in there:
                continue
            launches, n_bytes = getattr(weights, name)(tokens)
            share = n_bytes / bench.time(launches) / copy
            label = f"{kind.name} {name}_{tokens}"
            if tokens == 1 and (name != "heads" or "dense_1" not in there):
                yield at_least(label, share, "of a copy's rate", goal)
            else:
                yield fact(label, share, "of a copy's rate")
    if "up_1" in there:
        launches, n_bytes = weights.block()
        share = n_bytes / bench.time(launches) / copy
        yield at_least(f"{kind.name} block of 8 slots", share, "of a copy's rate", GOAL_BLOCK)


class Weights:
    """A slab that is taken for matrices of a type, and room for activations and results."""

    def __init__(self, bench: Bench, kind: GGMLType, slab: int) -> None:
        self.bench, self.kind, self.slab = bench, kind, slab
        self.planes, self.there = plane_type(kind), of_type(kind)
        setup = bench.setup
        self.hidden, self.width = setup.hidden, setup.width
        self.expert_bytes = self.planes.n_bytes(self.width, self.hidden)
        self.experts = setup.slab_bytes // self.expert_bytes
        rows = setup.launch_bytes // max(1, self.planes.n_bytes(256, self.hidden) // 256)
        self.rows = max(32, rows // 32 * 32)
        self.x = random_bytes(bench, SLOTS * max(record_bytes(self.hidden, 2), 4 * self.hidden))
        slots = SLOTS * max(SLOTS, -(-setup.launch_bytes // self.expert_bytes))
        self.out = bench.room(4 * max(SLOTS * self.rows, slots * max(self.width, self.hidden)))
        self.act = bench.room(slots * record_bytes(self.width, 1))

    def dense(self, tokens: int) -> tuple[Sequence[Launch], int]:
        """Launches, and the bytes of weights that they go through, as of all that follow."""
        kernel, size = self.there[f"dense_{tokens}"], self.planes.n_bytes(self.rows, self.hidden)
        count = max(1, self.bench.setup.slab_bytes // size)
        return [
            launch(
                kernel, (row_blocks(self.kind, kernel, self.rows),), self.slab + i * size,
                self.rows, self.planes.chunks(self.hidden), self.x, record_bytes(self.hidden, 2),
                columns(self.hidden), tokens, self.out, 4 * self.rows, 0,
            )
            for i in range(count)
        ], count * size  # fmt: skip

    def heads(self, tokens: int) -> tuple[Sequence[Launch], int]:
        """One head."""
        kernel, size = self.there[f"heads_{tokens}"], self.planes.n_bytes(self.rows, self.hidden)
        count = max(1, self.bench.setup.slab_bytes // size)
        return [
            launch(
                kernel, (row_blocks(self.kind, kernel, self.rows),), self.slab + i * size, 0,
                self.rows, self.planes.chunks(self.hidden), self.x, 4 * self.hidden, 0,
                self.hidden, tokens, self.out, 4 * self.rows, 0, 0,
            )
            for i in range(count)
        ], count * size  # fmt: skip

    def chosen(self, tokens: int) -> tuple[Sequence[Launch], int]:
        """As many experts as make a launch, each with some tokens."""
        kernel = self.there[f"chosen_{tokens}"]
        items = max(1, min(-(-self.bench.setup.launch_bytes // self.expert_bytes), self.experts))
        lists = self._items(items, tokens)
        index = self.bench.put(np.arange(items * tokens, dtype=np.uint32) % SLOTS)
        return [
            self._chosen(kernel, table, lists, items, index, self.width, self.hidden)
            for table in self._tables(items, self.expert_bytes)
        ], self.experts // items * items * self.expert_bytes  # fmt: skip

    def block(self) -> tuple[Sequence[Launch], int]:
        """Gate and up, then down, of eight experts with a token each."""
        up, down = self.there["up_1"], self.there["chosen_1"]
        down_bytes = self.planes.n_bytes(self.hidden, self.width)
        size = max(self.expert_bytes, down_bytes)
        sets = max(1, self.bench.setup.slab_bytes // (3 * SLOTS * size))
        lists = self._items(SLOTS, 1)
        index = self.bench.put(np.zeros(SLOTS, np.uint32))
        tables = self._tables(SLOTS, size)[: 3 * sets]
        found = []
        for gates, ups, downs in zip(tables[::3], tables[1::3], tables[2::3], strict=True):
            found.append(
                launch(
                    up, (-(-self.width // UP_ROWS), SLOTS), gates, ups, *lists, index, self.width,
                    self.planes.chunks(self.hidden), self.x, record_bytes(self.hidden, 1),
                    columns(self.hidden), self.act, record_bytes(self.width, 1),
                )
            )  # fmt: skip
            found.append(self._chosen(down, downs, lists, SLOTS, 0, self.hidden, self.width))
        return found, len(found) // 2 * SLOTS * (2 * self.expert_bytes + down_bytes)

    def _chosen(
        self, kernel: Any, table: int, lists: tuple[int, int, int], items: int, index: int,
        n_rows: int, n_cols: int,
    ) -> Launch:  # fmt: skip
        """With an index: of self.x; without: of what `up` left."""
        return launch(
            kernel, (row_blocks(self.kind, kernel, n_rows), items), table, *lists, index, n_rows,
            self.planes.chunks(n_cols), self.x if index else self.act, record_bytes(n_cols, 1),
            columns(n_cols), self.out, 4 * n_rows,
        )  # fmt: skip

    def _items(self, items: int, tokens: int) -> tuple[int, int, int]:
        """Addresses of the items' numbers, of their count, of where their slots start."""
        put = self.bench.put
        return (
            put(np.arange(items, dtype=np.uint32)),
            put(np.array([items], np.uint32)),
            put(tokens * np.arange(items + 1, dtype=np.uint32)),
        )

    def _tables(self, items: int, size: int) -> list[int]:
        """Addresses of tables of so many matrices each; together they are the whole slab."""
        count = self.bench.setup.slab_bytes // size
        at = self.slab + size * np.arange(count, dtype=np.int64)
        table = self.bench.put(at)
        return [table + 8 * first for first in range(0, count - items + 1, items)]
