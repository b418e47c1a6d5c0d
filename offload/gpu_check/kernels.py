"""Each kernel of each quant type against the CPU's: products bit for bit.

The CPU's side runs in processes of its own, as many as there are cores: on a machine that has never
run this its kernels must be compiled first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np

from offload.gpu_check.bench import Bench, every_type, launch
from offload.gpu_check.expected import EXPERTS, ITEMS, Expected, expected, records
from offload.gpu_check.report import Row, missing, near, same_bits
from offload.gpu_check.rows import row_kernels
from quant.cuda import gemm
from quant.cuda.kernels import of_type, plane_type
from quant.cuda.plane_type import PlaneType
from quant.cuda.records import columns, record_bytes
from quant.ggml import BLOCK, GGMLType

Array = np.ndarray
AT_ONCE = 16  # processes
UP_ROWS = 32  # of a block


def kernels(bench: Bench) -> Iterator[Row]:
    """All of them, a type when its reference is there."""
    setup = bench.setup
    kinds = every_type(setup)
    shape = setup.check_rows, setup.check_columns, setup.check_rows - 53, setup.check_tokens
    workers = min(AT_ONCE, os.cpu_count() or 1, len(kinds))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {pool.submit(expected, kind, *shape): kind for kind in kinds}
        for done in as_completed(waiting):
            with bench.scope():
                yield from of(bench, waiting[done], done.result())
    yield from row_kernels(bench)


def of(bench: Bench, kind: GGMLType, exact: Expected) -> Iterator[Row]:
    """The kernels of a type that are there."""
    there = of_type(kind)
    case = Case(bench, kind, exact, there)
    groups: tuple[tuple[str, Callable[[str], Row]], ...] = (
        ("rows", case.rows),
        *((f"dense_{t}", case.dense) for t in bench.setup.at_once),
        *((f"chosen_{t}", case.chosen) for t in bench.setup.at_once),
        *((f"up_{t}", case.up) for t in bench.setup.at_once),
        *((f"heads_{t}", case.heads) for t in bench.setup.at_once),
        ("many_dense", case.many_dense),
        ("many_chosen", case.many_chosen),
    )
    for name, check in groups:
        if exact.dense is None and name.split("_")[0] not in ("rows", "heads"):
            continue
        if name in there:
            yield check(name)
        else:
            yield missing(f"{kind.name} {name}", "no such kernel in this version")


def row_blocks(kind: GGMLType, kernel: Any, n_rows: int) -> int:
    """Blocks that have a thread for each lane of each row."""
    blocks: int = -(-n_rows * plane_type(kind).lanes // kernel.threads)
    return blocks


def tiles(kind: GGMLType, n_rows: int, tokens: int) -> tuple[int, int]:
    """Blocks of a product on tensor cores: of rows, of tokens."""
    planes = plane_type(kind)
    assert isinstance(planes, PlaneType)
    return -(-n_rows // gemm.tile_rows(planes)), -(-tokens // gemm.tile_tokens(planes))


class Case:
    """A type's matrices and activations in the GPU's memory."""

    def __init__(
        self, bench: Bench, kind: GGMLType, exact: Expected, there: Mapping[str, Any]
    ) -> None:
        self.bench, self.kind, self.exact, self.there = bench, kind, exact, there
        self.planes = plane_type(kind)
        self.n_cols = exact.x.shape[1]
        self.chunks = self.planes.chunks(self.n_cols)
        self.experts = [self.matrix(one, self.n_cols) for one in exact.data]
        if exact.down_data is None:
            return
        self.slot_tokens = exact.tokens()
        counts = [len(tokens) for tokens in self.slot_tokens]
        self.slots = sum(counts)
        put = bench.put
        self.table = put(np.array(self.experts))
        self.turned = put(np.array([self.experts[(i + 1) % EXPERTS] for i in range(EXPERTS)]))
        self.items = put(np.array(ITEMS, np.uint32)), put(np.array([len(ITEMS)], np.uint32))
        self.starts = put(np.concatenate(([0], np.cumsum(counts))).astype(np.uint32))
        self.index = put(np.concatenate(self.slot_tokens).astype(np.uint32))
        self.q8 = put(records(exact.x, 1)), record_bytes(self.n_cols, 1)
        self.q16 = put(records(exact.x, 2)), record_bytes(self.n_cols, 2)

    def name(self, kernel: str) -> str:
        """Of a check."""
        return f"{self.kind.name} {kernel}"

    def matrix(self, data: Array, n_cols: int) -> int:
        """Address of the planes of (rows, row_bytes), brought there in two parts."""
        n_rows, chunks = len(data), self.planes.chunks(n_cols)
        to = self.bench.room(self.planes.n_bytes(n_rows, n_cols))
        repack, half = self.there["repack"], (n_rows + 1) // 2
        for first, part in ((0, data[:half]), (half, data[half:])):
            threads = len(part) * chunks * self.planes.lanes
            self.bench.run(
                launch(
                    repack, (-(-threads // repack.threads),), self.bench.put(part), data.shape[1],
                    first, len(part), n_cols, *BLOCK[self.kind], to, n_rows, chunks, 0, 0,
                )
            )  # fmt: skip
        return to

    def rows(self, name: str) -> Row:
        """Dequantised, by number."""
        ids = np.array([3, 0, 5, 5, 4])
        out, kernel = self.bench.room(4 * len(ids) * self.n_cols), self.there[name]
        threads = self.planes.lanes * self.planes.steps * self.chunks
        self.bench.run(
            launch(
                kernel, (-(-threads // kernel.threads), len(ids)), self.experts[0],
                self.exact.data.shape[1], self.chunks, self.bench.put(ids), self.n_cols, out,
                4 * self.n_cols,
            )
        )  # fmt: skip
        found = self.bench.get(out, (len(ids), self.n_cols))
        return same_bits(self.name("repack, rows"), found, self.exact.values[0, ids])

    def dense(self, name: str) -> Row:
        """As many tokens as the kernel takes, added to what is there."""
        return self._dense(name, int(name[-1]))

    def many_dense(self, name: str) -> Row:
        """All tokens."""
        assert self.exact.dense is not None
        tokens, n_rows = self.exact.dense.shape
        return self._dense(name, tokens, tiles(self.kind, n_rows, tokens))

    def _dense(self, name: str, tokens: int, grid: tuple[int, ...] = ()) -> Row:
        exact = self.exact.dense
        assert exact is not None
        n_rows, kernel = exact.shape[1], self.there[name]
        tokens = min(tokens, len(exact))
        w = self.matrix(self.exact.data[0, :n_rows], self.n_cols)
        before = np.random.default_rng(0).standard_normal((tokens, n_rows)).astype(np.float32)
        out = self.bench.put(before)
        self.bench.run(
            launch(
                kernel, grid or (row_blocks(self.kind, kernel, n_rows),), w, n_rows, self.chunks,
                *self.q16, columns(self.n_cols), tokens, out, 4 * n_rows, 1,
            )
        )  # fmt: skip
        found = self.bench.get(out, before.shape)
        return same_bits(self.name(name), found, before + exact[:tokens])

    def chosen(self, name: str) -> Row:
        """Two experts, of which one has more tokens than go through at a time; then `down`."""
        kernel = self.there[name]
        found = self._chosen(kernel, row_blocks(self.kind, kernel, self.exact.data.shape[1]))
        assert self.exact.chosen is not None
        return same_bits(self.name(name), found, self.exact.chosen)

    def many_chosen(self, name: str) -> Row:
        """The same on tensor cores."""
        assert self.exact.chosen is not None
        blocks, depth = tiles(self.kind, self.exact.data.shape[1], len(self.exact.x))
        found = self._chosen(self.there[name], blocks, depth)
        return same_bits(self.name(name), found, self.exact.chosen)

    def _chosen(self, kernel: Any, blocks: int, depth: int = 1) -> Array:
        n_rows = self.exact.data.shape[1]
        out = self.bench.room(4 * self.slots * n_rows)
        self.bench.run(
            launch(
                kernel, (blocks, len(ITEMS) + 1, depth), self.table, *self.items, self.starts,
                self.index, n_rows, self.chunks, *self.q8, columns(self.n_cols), out, 4 * n_rows,
            )
        )  # fmt: skip
        return self.bench.get(out, (self.slots, n_rows))

    def up(self, name: str) -> Row:
        """An expert block: gate, up and SwiGLU, then down; both results."""
        exact_act, exact_down = self.exact.act, self.exact.down
        assert self.exact.down_data is not None
        assert exact_act is not None
        assert exact_down is not None
        width = self.exact.data.shape[1]
        act = self.bench.room(self.slots * record_bytes(width, 1))
        down = [self.matrix(one, width) for one in self.exact.down_data]
        n_rows = self.exact.down_data.shape[1]
        out = self.bench.room(4 * self.slots * n_rows)
        kernel, last = self.there[name], self.there[f"chosen_{name[-1]}"]
        record = record_bytes(width, 1)
        self.bench.run(
            launch(
                kernel, (-(-width // UP_ROWS), len(ITEMS) + 1), self.table, self.turned,
                *self.items, self.starts, self.index, width, self.chunks, *self.q8,
                columns(self.n_cols), act, record,
            ),
            launch(
                last, (row_blocks(self.kind, last, n_rows), len(ITEMS) + 1),
                self.bench.put(np.array(down)), *self.items, self.starts, 0, n_rows,
                self.planes.chunks(width), act, record, columns(width), out, 4 * n_rows,
            ),
        )  # fmt: skip
        found = self.bench.get(act, exact_act.shape, np.uint8)
        if not np.array_equal(found, exact_act):
            return same_bits(self.name(f"{name} (records)"), found, exact_act)
        found = self.bench.get(out, exact_down.shape)
        return same_bits(self.name(f"expert block of {name}"), found, exact_down)

    def heads(self, name: str) -> Row:
        """A head for each matrix, float32 activations."""
        kernel, at_once = self.there[name], int(name[-1])
        heads, tokens = 2, min(11, len(self.exact.x))
        n_rows, n_cols = self.exact.data.shape[1], self.n_cols
        x = np.random.default_rng(0).standard_normal((tokens, heads, n_cols)).astype(np.float32)
        stride = self.experts[1] - self.experts[0]
        out = self.bench.room(4 * tokens * heads * n_rows)
        grid = row_blocks(self.kind, kernel, n_rows), heads, -(-tokens // at_once)
        self.bench.run(
            launch(
                kernel, grid, self.experts[0], stride, n_rows, self.chunks, self.bench.put(x),
                4 * heads * n_cols, 4 * n_cols, n_cols, tokens, out, 4 * heads * n_rows,
                4 * n_rows, 0,
            )
        )  # fmt: skip
        found = self.bench.get(out, (tokens, heads, n_rows))
        exact = np.einsum("thc,hrc->thr", x.astype(np.float64), self.exact.values)
        return near(self.name(name), found, exact, 1e-6)
