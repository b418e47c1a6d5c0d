"""Quant types in VRAM: what lies there is what the file says, and products have the CPU's bits."""

from __future__ import annotations

import libggml
import numpy as np
import pytest
from vram import Vram

from quant import products
from quant.cuda.kernels import FLOATS, TOKENS, TYPES, of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import BLOCK, row_bytes
from quant.ggml import GGMLType as G
from quant.registry import QUANT_TYPES
from quant.run.activations import quantize

Array = np.ndarray
every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


def weights(kind: G, rows: int, n_cols: int, seed: int = 0) -> Array:
    """(rows, row_bytes) uint8: all bit patterns, but moderate values."""
    size, n_bytes = BLOCK[kind]
    rng = np.random.default_rng([seed, int(kind)])
    n = rows * n_cols // size
    found = np.empty((0, n_bytes), np.uint8)
    while len(found) < n:
        blocks = rng.integers(0, 256, (8 * n, n_bytes), np.uint8)
        top = np.abs(libggml.dequantize(kind, blocks, size)).max(axis=1)
        found = np.concatenate((found, blocks[(top > 2.0**-5) & (top < 0.5)]))
    return found[:n].reshape(rows, -1)


def in_planes(vram: Vram, kind: G, data: Array, n_cols: int) -> int:
    """Address of the planes of a matrix, brought there in two parts."""
    planes = plane_type(kind)
    n_rows = len(data)
    to = vram.room(planes.n_bytes(n_rows, n_cols))
    chunks = planes.chunks(n_cols)
    half = (n_rows + 1) // 2
    for first, count in ((0, half), (half, n_rows - half)):
        if count:
            source = vram.put(data[first : first + count])
            threads = count * chunks * planes.lanes
            repack = of_type(kind)["repack"]
            vram.run(
                repack, (-(-threads // repack.threads),), source, data.shape[1], first, count,
                n_cols, *BLOCK[kind], to, n_rows, chunks, 0, 0,
            )  # fmt: skip
    return to


def records(x: Array, planes: int) -> Array:
    """(T, record_bytes) uint8: the CPU's records, laid out for a GPU."""
    wide = np.zeros((len(x), columns(x.shape[1])), np.float32)
    wide[:, : x.shape[1]] = x
    return quantize(wide, planes)[:, : record_bytes(x.shape[1], planes)]


@every_type
@pytest.mark.parametrize("least", [1, 1280])
def test_rows_are_the_dequantised_weights(kind: G, least: int) -> None:
    """Of one block and of many."""
    vram = Vram()
    n_cols = max(least, BLOCK[kind].size)
    data = weights(kind, 5, n_cols)
    planes = plane_type(kind)
    w = in_planes(vram, kind, data, n_cols)
    ids = np.array([4, 0, 3, 3])
    out = vram.room(4 * 4 * n_cols)
    kernel = of_type(kind)["rows"]
    lanes = planes.lanes * planes.steps * planes.chunks(n_cols)
    grid = -(-lanes // kernel.threads), len(ids)
    vram.run(kernel, grid, w, 5, planes.chunks(n_cols), vram.put(ids), n_cols, out, 4 * n_cols)
    expected = libggml.dequantize(kind, data, n_cols)[ids]
    np.testing.assert_array_equal(vram.get(out, (4, n_cols)), expected)


@every_type
@pytest.mark.parametrize("tokens", TOKENS)
def test_dense_has_the_bits_of_the_cpu(kind: G, tokens: int) -> None:
    vram = Vram()
    n_rows, n_cols = 21, 1280
    data = weights(kind, n_rows, n_cols)
    planes = plane_type(kind)
    w = in_planes(vram, kind, data, n_cols)
    rng = np.random.default_rng(tokens)
    for count in {1, tokens - 1, tokens} - {0}:
        x = rng.standard_normal((count, n_cols)).astype(np.float32)
        exact = products.matmul(kind, data, x, planes=2)
        stride = record_bytes(n_cols, 2)
        there = rng.standard_normal((count, n_rows)).astype(np.float32)
        for add in (0, 1):
            out = vram.put(there)
            kernel = of_type(kind)[f"dense_{tokens}"]
            vram.run(
                kernel, (-(-n_rows * planes.lanes // kernel.threads),), w, n_rows,
                planes.chunks(n_cols), vram.put(records(x, 2)), stride, columns(n_cols), count,
                out, 4 * n_rows, add,
            )  # fmt: skip
            expected = there + exact if add else exact
            np.testing.assert_array_equal(vram.get(out, (count, n_rows)), expected)


@every_type
@pytest.mark.parametrize("tokens", TOKENS)
def test_chosen_has_the_bits_of_the_cpu(kind: G, tokens: int) -> None:
    """Experts 5 and 1 of which the second has more tokens than go through at a time; one block."""
    vram = Vram()
    n_rows, n_cols, n_experts = 7, BLOCK[kind].size, 6
    planes = plane_type(kind)
    data = [weights(kind, n_rows, n_cols, seed) for seed in range(n_experts)]
    table = np.array([in_planes(vram, kind, one, n_cols) for one in data])
    x = np.random.default_rng(3).standard_normal((4, n_cols)).astype(np.float32)
    starts, index = np.array([0, 2, 11], np.uint32), np.arange(11, dtype=np.uint32) % 4
    slots = [(5, 0), (5, 1), *((1, int(index[slot])) for slot in range(2, 11))]
    exact = np.concatenate([products.matmul(kind, data[e], x[t : t + 1]) for e, t in slots])
    out = vram.room(4 * 11 * n_rows)
    kernel = of_type(kind)[f"chosen_{tokens}"]
    vram.run(
        kernel, (-(-n_rows * planes.lanes // kernel.threads), 3), vram.put(table),
        vram.put(np.array([5, 1], np.uint32)), vram.put(np.array([2], np.uint32)),
        vram.put(starts), vram.put(index), n_rows, planes.chunks(n_cols),
        vram.put(records(x, 1)), record_bytes(n_cols, 1), columns(n_cols), out, 4 * n_rows,
    )  # fmt: skip
    np.testing.assert_array_equal(vram.get(out, (11, n_rows)), exact)


def test_planes_take_no_more_than_the_file() -> None:
    for kind in TYPES:
        planes = plane_type(kind)
        n_cols = 1024
        assert planes.n_bytes(64, n_cols) <= 64 * row_bytes(kind, n_cols) * 1.01


def test_every_type_is_there() -> None:
    """What the CPU has, a GPU has; a model of any type may run on either."""
    assert {*TYPES, *FLOATS} == {*QUANT_TYPES}
