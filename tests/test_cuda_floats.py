"""Float32 activations on a GPU: exact weights, no error but float32's, alone as together."""

from __future__ import annotations

import numpy as np
import pytest
from test_cuda_types import in_planes, weights
from vram import Vram

from quant import products
from quant.cuda.kernels import FLOATS, of_type, plane_type
from quant.ggml import GGMLType as G

Array = np.ndarray
# groups of 4, 8, 16 and 32; chunks ahead, alone and in part; several steps; offsets; zero
SHAPES = [
    (G.F32, 5, 1252), (G.F32, 5, 99), (G.F16, 9, 684), (G.BF16, 9, 100),
    (G.Q8_0, 18, 160), (G.Q4_K, 18, 512), (G.Q6_K, 9, 768),
]  # fmt: skip
HEADS = 3


def numbers(kind: G, n_rows: int, n_cols: int, seed: int) -> Array:
    """(n_rows, row_bytes) uint8 of a float type."""
    x = np.random.default_rng(seed).standard_normal((n_rows, n_cols)).astype(np.float32)
    if kind == G.F16:
        return x.astype(np.float16).view(np.uint8)
    return x.view(np.uint16)[:, 1::2].copy().view(np.uint8) if kind == G.BF16 else x.view(np.uint8)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_cols", [99, 256])
def test_rows_are_the_numbers(kind: G, n_cols: int) -> None:
    vram = Vram()
    data = numbers(kind, 5, n_cols, 0)
    planes = plane_type(kind)
    w = in_planes(vram, kind, data, n_cols)
    ids = np.array([4, 0, 3, 3])
    out = vram.room(4 * 4 * n_cols)
    kernel = of_type(kind)["rows"]
    grid = -(-planes.lanes * planes.chunks(n_cols) // kernel.threads), len(ids)
    vram.run(kernel, grid, w, 5, planes.chunks(n_cols), vram.put(ids), n_cols, out, 4 * n_cols)
    expected = products.dequantize(kind, data, n_cols)[ids]
    np.testing.assert_array_equal(vram.get(out, (4, n_cols)), expected)


@pytest.mark.parametrize(("kind", "n_rows", "n_cols"), SHAPES, ids=lambda x: getattr(x, "name", x))
def test_heads(kind: G, n_rows: int, n_cols: int) -> None:
    """As exact as float32; a token's numbers do not depend on who comes with it."""
    vram = Vram()
    planes = plane_type(kind)
    make = numbers if kind in FLOATS else weights
    data = [make(kind, n_rows, n_cols, seed) for seed in range(HEADS)]
    size = planes.n_bytes(n_rows, n_cols)
    w = vram.room(HEADS * size)
    for head, one in enumerate(data):
        vram.view(w + head * size, size)[:] = vram.view(in_planes(vram, kind, one, n_cols), size)
    tokens, width = 11, -(-n_cols // 4) * 4  # of a head's activations: multiples of 16 bytes
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, HEADS, width)).astype(np.float32)
    before = rng.standard_normal((tokens, HEADS, n_rows)).astype(np.float32)
    exact = np.stack([products.dequantize(kind, one, n_cols).astype(np.float64) for one in data])
    exact = np.einsum("hrc,thc->thr", exact, x[..., :n_cols].astype(np.float64))

    def run(at_a_time: int, count: int, add: bool) -> Array:
        out = vram.put(before)
        kernel = of_type(kind)[f"heads_{at_a_time}"]
        grid = -(-n_rows * planes.lanes // kernel.threads), HEADS, -(-count // at_a_time)
        vram.run(
            kernel, grid, w, size, n_rows, planes.chunks(n_cols), vram.put(x[:count]),
            x[0].nbytes, 4 * width, n_cols, count, out, before[0].nbytes, 4 * n_rows, int(add),
        )  # fmt: skip
        found = vram.get(out, before.shape)
        np.testing.assert_array_equal(found[count:], before[count:])
        return found[:count]

    alone = run(1, tokens, False)
    assert np.linalg.norm(alone - exact) < 1e-6 * np.linalg.norm(exact)
    for count in (1, 3, 8, 11):
        np.testing.assert_array_equal(run(8, count, False), alone[:count])
    np.testing.assert_array_equal(run(8, 3, True), before[:3] + alone[:3])
