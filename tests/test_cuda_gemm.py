"""Matrix x many activations on tensor cores: the CPU's bits, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from test_cuda_types import in_planes, records, weights
from vram import Vram

from quant import products
from quant.cuda.gemm import tile_rows, tile_tokens
from quant.cuda.kernels import of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import GGMLType as G

KINDS = pytest.mark.parametrize("kind", [G.Q4_K, G.Q2_K], ids=lambda kind: kind.name)


@KINDS
@pytest.mark.parametrize(
    ("rows", "n_cols", "tokens", "add"), [(3, 256, 1, 0), (70, 1280, 37, 0), (64, 512, 16, 1)]
)
def test_dense_has_the_bits_of_the_cpu(
    kind: G, rows: int, n_cols: int, tokens: int, add: int
) -> None:
    vram = Vram()
    planes = plane_type(kind)
    data = weights(kind, rows, n_cols)
    w = in_planes(vram, kind, data, n_cols)
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, n_cols)).astype(np.float32)
    there = rng.standard_normal((tokens, rows)).astype(np.float32)
    out = vram.put(there)
    kernel = of_type(kind)["many_dense"]
    vram.run(
        kernel, (-(-rows // tile_rows(planes)), -(-tokens // tile_tokens(planes))), w, rows,
        planes.chunks(n_cols), vram.put(records(x, 2)), record_bytes(n_cols, 2), columns(n_cols),
        tokens, out, 4 * rows, add, shared=kernel.shared,
    )  # fmt: skip
    exact = products.matmul(kind, data, x, planes=2)
    expected = there + exact if add else exact
    np.testing.assert_array_equal(vram.get(out, (tokens, rows)), expected)


@KINDS
@pytest.mark.parametrize("shared_by", [1, 2])
def test_chosen_has_the_bits_of_the_cpu(kind: G, shared_by: int) -> None:
    """Experts with 70, 0, 1 and 17 tokens; more blocks than experts in use."""
    vram = Vram()
    rows, n_cols, experts = 66, 512, [5, 3, 0, 2]
    planes = plane_type(kind)
    data = {e: weights(kind, rows, n_cols, e) for e in experts}
    table = np.zeros(6, np.int64)
    for e, one in data.items():
        table[e] = in_planes(vram, kind, one, n_cols)
    counts = [70, 0, 1, 17]
    starts = np.cumsum([0, *counts]).astype(np.uint32)
    x = np.random.default_rng(3).standard_normal((9, n_cols)).astype(np.float32)
    index = np.arange(starts[-1], dtype=np.uint32) % 9
    exact = np.concatenate([
        products.matmul(kind, data[e], x)[index[first:end]]
        for e, first, end in zip(experts, starts[:-1], starts[1:], strict=True)
    ])  # fmt: skip
    out = vram.room(exact.nbytes)
    kernel = of_type(kind)["many_chosen"]
    vram.run(
        kernel, (-(-rows // tile_rows(planes)), 5, shared_by), vram.put(table),
        vram.put(np.array(experts, np.uint32)), vram.put(np.array([4], np.uint32)),
        vram.put(starts), vram.put(index), rows, planes.chunks(n_cols), vram.put(records(x, 1)),
        record_bytes(n_cols, 1), columns(n_cols), out, 4 * rows, shared=kernel.shared,
    )  # fmt: skip
    np.testing.assert_array_equal(vram.get(out, exact.shape), exact)
