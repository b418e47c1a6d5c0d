"""First half of experts: records of silu(gate . x) * (up . x), to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from test_cuda_types import in_planes, records, weights
from vram import Vram

from quant import products
from quant.compiler.jit import kernel
from quant.cuda.expert_up import ROWS
from quant.cuda.kernels import TOKENS, of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import GGMLType as G
from quant.simd.floats import V_BYTES, load_v, silu_v, store_v


@kernel()
def swiglu(gate: int, up: int, n: int) -> None:
    for i in range(0, 4 * n, V_BYTES):
        store_v(gate + i, silu_v(load_v(gate + i)) * load_v(up + i))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", [G.Q4_K, G.Q2_K], ids=lambda kind: kind.name)
def test_records_have_the_bits_of_the_cpu(kind: G, tokens: int) -> None:
    """Experts with 9, 0 and 2 tokens; the last block's rows end early, zeros lie behind."""
    vram = Vram()
    rows, n_cols, experts, counts = 80, 512, [4, 0, 1], [9, 0, 2]
    planes = plane_type(kind)
    pairs = {e: [weights(kind, rows, n_cols, 10 * e + i) for i in range(2)] for e in experts}
    tables = np.zeros((2, 5), np.int64)
    for e, pair in pairs.items():
        tables[:, e] = [in_planes(vram, kind, one, n_cols) for one in pair]
    starts = np.cumsum([0, *counts]).astype(np.uint32)
    index = (np.arange(starts[-1], dtype=np.uint32) * 3 + 1) % 5
    x = np.random.default_rng(3).standard_normal((5, n_cols)).astype(np.float32) * 3
    x[2] = 0
    gate, up = (
        np.concatenate([
            products.matmul(kind, pairs[e][i], x)[index[first:end]]
            for e, first, end in zip(experts, starts[:-1], starts[1:], strict=True)
        ])
        for i in range(2)
    )  # fmt: skip
    swiglu(gate.ctypes.data, up.ctypes.data, gate.size)
    stride = record_bytes(rows, 1) + 256
    act = vram.room(11 * stride)
    one = of_type(kind)[f"up_{tokens}"]
    gates, ups = (vram.put(table) for table in tables)
    vram.run(
        one, (-(-rows // ROWS), 4), gates, ups, vram.put(np.array(experts, np.uint32)),
        vram.put(np.array([3], np.uint32)), vram.put(starts), vram.put(index), rows,
        planes.chunks(n_cols), vram.put(records(x, 1)), record_bytes(n_cols, 1), columns(n_cols),
        act, stride, shared=one.shared,
    )  # fmt: skip
    found = vram.get(act, (11, stride), np.uint8)[:, : record_bytes(rows, 1)]
    assert gate.any(axis=1).sum() == np.count_nonzero(index != 2)
    np.testing.assert_array_equal(found, records(gate, 1))
