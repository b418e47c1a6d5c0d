"""Launches of matrices' kernels for test_cuda_simulator.py."""

from __future__ import annotations

import numpy as np
from cudasim_record import Launch, Recorder
from test_cuda_floats import numbers
from test_cuda_types import in_planes, records, weights

from quant.cuda.kernels import FLOATS, of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import BLOCK
from quant.ggml import GGMLType as G

OFFSETS = G.Q4_K  # and 8 lanes
ZERO = G.Q6_K  # 16 lanes, two steps
BOOK = G.IQ2_XXS  # whose weights stand in a table
KINDS = OFFSETS, ZERO, BOOK, G.F16
ROWS = 6


def a_matrix(vram: Recorder, kind: G, n_cols: int) -> int:
    make = numbers if kind == G.F16 else weights
    return in_planes(vram, kind, make(kind, ROWS, n_cols, 1), n_cols)


def repack(kind: G, n_cols: int) -> Launch:
    """Two matrices by one launch."""

    def launch(vram: Recorder) -> None:
        make, planes = numbers if kind == G.F16 else weights, plane_type(kind)
        source, size = make(kind, 2 * ROWS, n_cols, 2), planes.n_bytes(ROWS, n_cols)
        at, to = vram.put(source), vram.room(2 * size)
        vram.run(
            of_type(kind)["repack"], (1, 2), at, source.shape[1], 0, ROWS, n_cols, *BLOCK[kind],
            to, ROWS, planes.chunks(n_cols), source.nbytes // 2, size,
        )  # fmt: skip

    return launch


def rows(kind: G, n_cols: int) -> Launch:
    def launch(vram: Recorder) -> None:
        planes = plane_type(kind)
        w, ids = a_matrix(vram, kind, n_cols), vram.put(np.array([ROWS - 1, 0]))
        out = vram.room(8 * n_cols)
        vram.run(
            of_type(kind)["rows"], (1, 2), w, ROWS, planes.chunks(n_cols), ids, n_cols, out,
            4 * n_cols,
        )  # fmt: skip

    return launch


def product(kind: G, name: str, tokens: int, n_cols: int) -> Launch:
    """dense_T, many_dense: +=."""

    def launch(vram: Recorder) -> None:
        planes, kernel = plane_type(kind), of_type(kind)[name]
        w = a_matrix(vram, kind, n_cols)
        x = np.random.default_rng(1).standard_normal((tokens, n_cols)).astype(np.float32)
        out = vram.put(np.ones((tokens, ROWS), np.float32))
        vram.run(
            kernel, (1,), w, ROWS, planes.chunks(n_cols), vram.put(records(x, 2)),
            record_bytes(n_cols, 2), columns(n_cols), tokens, out, 4 * ROWS, 1,
            shared=kernel.shared,
        )  # fmt: skip

    return launch


def chosen(kind: G, name: str) -> Launch:
    """chosen_T, many_chosen: two experts of which one has more tokens than go together."""

    def launch(vram: Recorder) -> None:
        n_cols, planes, kernel = 256, plane_type(kind), of_type(kind)[name]
        x = np.random.default_rng(1).standard_normal((3, n_cols)).astype(np.float32)
        at, stride, n = vram.put(records(x, 1)), record_bytes(n_cols, 1), columns(n_cols)
        if kind in FLOATS:
            at, stride, n = vram.put(x), x[0].nbytes, n_cols
        vram.run(
            kernel, (1, 3), a_table(vram, kind, n_cols), *choices(vram), ROWS,
            planes.chunks(n_cols), at, stride, n, vram.room(4 * 11 * ROWS), 4 * ROWS,
            shared=kernel.shared,
        )  # fmt: skip

    return launch


def a_table(vram: Recorder, kind: G, n_cols: int) -> int:
    experts = a_matrix(vram, kind, n_cols), 0, a_matrix(vram, kind, n_cols)
    return vram.put(np.array(experts))


def choices(vram: Recorder) -> tuple[int, int, int, int]:
    """items, used, starts, index: 1 slot of expert 2 and 10 of expert 0, of 3 tokens."""
    items, starts = np.array([2, 0], np.uint32), np.array([0, 1, 11], np.uint32)
    used, index = np.array([2], np.uint32), np.arange(11, dtype=np.uint32) % 3
    return vram.put(items), vram.put(used), vram.put(starts), vram.put(index)


def up(vram: Recorder) -> None:
    n_cols, planes, kernel = 256, plane_type(OFFSETS), of_type(OFFSETS)["up_8"]
    x = np.random.default_rng(2).standard_normal((3, n_cols)).astype(np.float32)
    tables = [a_table(vram, OFFSETS, n_cols) for _ in range(2)]
    size = record_bytes(ROWS, 1)
    vram.run(
        kernel, (1, 3), *tables, *choices(vram), ROWS, planes.chunks(n_cols),
        vram.put(records(x, 1)), record_bytes(n_cols, 1), columns(n_cols), vram.room(11 * size),
        size, shared=kernel.shared,
    )  # fmt: skip


def heads(kind: G, n_cols: int) -> Launch:
    """Two heads of the same matrix, two tokens."""

    def launch(vram: Recorder) -> None:
        planes, width = plane_type(kind), -(-n_cols // 4) * 4
        w = a_matrix(vram, kind, n_cols)
        x = np.random.default_rng(1).standard_normal((2, 2, width)).astype(np.float32)
        out = vram.put(np.ones((2, 2, ROWS), np.float32))
        vram.run(
            of_type(kind)["heads_8"], (1, 2, 1), w, 0, ROWS, planes.chunks(n_cols), vram.put(x),
            x[0].nbytes, 4 * width, n_cols, 2, out, 8 * ROWS, 4 * ROWS, 1,
        )  # fmt: skip

    return launch


MATRICES: dict[str, Launch] = {
    "repack": repack(OFFSETS, 256),
    "rows": rows(OFFSETS, 256),
    "rows, book": rows(BOOK, 256),
    "repack, float": repack(G.F16, 99),
    "rows, float": rows(G.F16, 99),
    "dense": product(OFFSETS, "dense_8", 3, 256),
    "dense, zero": product(ZERO, "dense_1", 1, 256),
    "chosen": chosen(OFFSETS, "chosen_8"),
    "chosen, float": chosen(G.F16, "chosen_8"),
    "up": up,
    "many_dense, zero": product(ZERO, "many_dense", 18, 512),
    "many_chosen": chosen(OFFSETS, "many_chosen"),
    "heads": heads(OFFSETS, 256),
    "heads, float": heads(G.F16, 99),
}
