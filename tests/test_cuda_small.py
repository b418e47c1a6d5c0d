"""The GPU's small kernels: records, SwiGLU, router, sums have the CPU's bits, norms its error."""

from __future__ import annotations

import numpy as np
import pytest
from vram import Vram

from quant.compiler.jit import kernel
from quant.cuda.norms import NORM, NORM_SHARED, RECORD, SWIGLU
from quant.cuda.records import columns, record_bytes
from quant.cuda.router import ALL_HERE, COMBINE, ROUTE, SORT, route_shared, sort_shared
from quant.run import layer_ops
from quant.run.activations import quantize
from quant.simd.floats import V_BYTES, load_v, silu_v, store_v

Array = np.ndarray


def bits(x: float) -> int:
    """Of a float32."""
    return int(np.float32(x).view(np.uint32))


def padded(x: Array) -> Array:
    """With zeros up to a record's columns."""
    wide = np.zeros((len(x), columns(x.shape[1])), np.float32)
    wide[:, : x.shape[1]] = x
    return wide


def assert_records(found: Array, x: Array, planes: int) -> None:
    """found (T, record_bytes): the CPU's records of x; where its scale is no number, no number."""
    n = columns(x.shape[1])
    expected = quantize(padded(x), planes)[:, : found.shape[1]]
    start = planes * n
    bad = np.isnan(np.ascontiguousarray(expected[:, start : start + n // 8]).view(np.float32))
    for at, size, many, dtype in (
        *((n * plane, n, 32, np.int8) for plane in range(planes)),
        (start, n // 8, 1, np.float32),
        (start + n // 8, n // 8, 1, np.float32),
        (start + n // 4, n // 4, 2, np.float32),
        (start + n // 2, n // 8, 1, np.int32),
        (start + n // 8 * 5, n // 4, 2, np.int32),
    ):
        gpu, cpu = (np.ascontiguousarray(r[:, at : at + size]) for r in (found, expected))
        here = np.repeat(bad, many, axis=1)
        assert here.shape == gpu.view(dtype).shape
        if dtype == np.float32:
            assert np.isnan(gpu.view(dtype)[here]).all()
            gpu, cpu = gpu.view(np.uint32), cpu.view(np.uint32)
        else:
            gpu, cpu = gpu.view(dtype), cpu.view(dtype)
        np.testing.assert_array_equal(gpu[~here], cpu[~here])


def odd_rows(rng: np.random.Generator, rows: int, n_cols: int) -> Array:
    """Of all magnitudes, with zeros, ties, numbers around the least and the largest, and none."""
    x = rng.standard_normal((rows, n_cols)) * 10.0 ** rng.integers(-40, 30, (rows, n_cols // 32 + 1)
        ).repeat(32, axis=1)[:, :n_cols]  # fmt: skip
    x[0, :32] = 0
    x[0, 32:64] = np.arange(32) / 2 + 0.25
    x[0, 63] = 127
    x[0, 64:96] = -0.0
    x[0, 96:128] *= 1e-33 / np.abs(x[0, 96:128]).max()
    x[1, 5], x[1, 40], x[1, 70], x[1, 96:128] = np.nan, np.inf, -np.inf, 3.4e38
    x[1, 128:160] = np.nan
    return x.astype(np.float32)


@pytest.mark.parametrize("planes", [1, 2])
def test_records_have_the_bits_of_the_cpu(planes: int) -> None:
    vram = Vram()
    rng = np.random.default_rng(planes)
    for n_cols in (2048, 2021, 160):
        x = odd_rows(rng, 3, n_cols)
        stride = -(-n_cols // 4) * 16
        at = vram.room(3 * stride)
        vram.view(at, 3 * stride).reshape(3, stride)[:, : 4 * n_cols] = x.view(np.uint8)
        size = record_bytes(n_cols, planes)
        out = vram.room(3 * (size + 16))
        vram.run(RECORD, (3,), at, stride, n_cols, planes, out, size + 16)
        found = vram.get(out, (3, size + 16), np.uint8)
        assert_records(found[:, :size], x, planes)
        assert (found[:, size:] == 0xA5).all()


@kernel()
def swiglu_on_cpu(gate: int, up: int, n: int, out: int) -> None:
    for i in range(0, 4 * n, V_BYTES):
        store_v(out + i, silu_v(load_v(gate + i)) * load_v(up + i))


@pytest.mark.parametrize("n_cols", [1024, 1440])
def test_swiglu_has_the_bits_of_the_cpu(n_cols: int) -> None:
    vram = Vram()
    rng = np.random.default_rng(0)
    gate, up = (odd_rows(rng, 3, n_cols) for _ in range(2))
    gate[2], up[2] = rng.standard_normal((2, n_cols)) * 8
    exact = np.empty_like(gate)
    swiglu_on_cpu(gate.ctypes.data, up.ctypes.data, gate.size, exact.ctypes.data)
    inputs = vram.put(gate), vram.put(up), 4 * n_cols, n_cols
    grid = columns(n_cols) // 1024, 3
    for planes in (1, 2):
        size = record_bytes(n_cols, planes)
        plain, record = vram.room(exact.nbytes), vram.room(3 * size)
        vram.run(SWIGLU, grid, *inputs, plain, 4 * n_cols, record, size, planes)
        np.testing.assert_array_equal(vram.get(plain, exact.shape), exact)
        assert_records(vram.get(record, (3, size), np.uint8), exact, planes)
    vram.run(SWIGLU, grid, *inputs, plain, 4 * n_cols, 0, 0, 0)
    np.testing.assert_array_equal(vram.get(plain, exact.shape), exact)


@pytest.mark.parametrize("n_cols", [7168, 1536, 45])
def test_norm(n_cols: int) -> None:
    """Within the CPU's own error of the truth; records are those of the row it gives."""
    vram = Vram()
    rng = np.random.default_rng(n_cols)
    stride = -(-n_cols // 4) * 16
    x = np.zeros((5, stride // 4), np.float32)
    x[:, :n_cols] = rng.standard_normal((5, n_cols)) * [[1e-3], [1], [1], [1e15], [1e25]]
    x[1, :n_cols] += 30
    x[2, n_cols // 2] = np.nan
    weight = rng.uniform(0.5, 2, n_cols).astype(np.float32)
    sizes = [record_bytes(n_cols, planes) for planes in (1, 2)]
    at, weights = vram.put(x), vram.put(weight)
    out, q8, q16 = vram.room(5 * stride), vram.room(5 * sizes[0]), vram.room(5 * sizes[1])
    vram.run(
        NORM, (5,), at, stride, weights, n_cols, bits(1e-6), out, stride, q8, sizes[0], q16,
        sizes[1],
        shared=NORM_SHARED,
    )  # fmt: skip
    found = vram.get(out, x.shape)
    assert (found.view(np.uint8)[:, 4 * n_cols :] == 0xA5).all()
    found = found[:, :n_cols]
    wide = x[:, :n_cols].astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * weight
    for row in (0, 1, 3):
        np.testing.assert_allclose(found[row], exact[row], rtol=3e-7)
    assert np.isnan(found[[2, 4]]).all()  # not a number; squares above float32
    for planes, record, size in ((1, q8, sizes[0]), (2, q16, sizes[1])):
        assert_records(vram.get(record, (5, size), np.uint8), found, planes)
    # in place, alone
    vram.run(
        NORM, (1,), at + stride, stride, weights, n_cols, bits(1e-6), at + stride, stride,
        0, 0, 0, 0,
        shared=NORM_SHARED,
    )  # fmt: skip
    np.testing.assert_array_equal(vram.get(at + stride, (n_cols,)), found[1])


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize(
    ("n_experts", "top_k", "groups", "used"),
    [
        (384, 8, 1, 1),
        (256, 8, 8, 4),
        (72, 3, 36, 17),
        (1024, 16, 2, 1),
        (24, 6, 24, 6),
        (5, 5, 1, 1),
    ],
)
def test_route_has_the_bits_of_the_cpu(
    sigmoid: bool, n_experts: int, top_k: int, groups: int, used: int
) -> None:
    vram = Vram()
    rng = np.random.default_rng(n_experts)
    rows = 12
    logits = (rng.standard_normal((rows, n_experts)) * 3).astype(np.float32)
    logits[1] = 0  # ties
    logits[2:5] = rng.integers(-2, 2, (3, n_experts))
    logits[5] *= 40
    logits[6, :4] = -0.0
    logits[7] = -100  # no score
    for row, value in ((8, np.nan), (9, np.inf), (10, -np.inf)):
        logits[row, rng.integers(n_experts)] = value
    some = (rng.standard_normal(n_experts) * 0.2).astype(np.float32)
    none_of_it = some.copy()
    none_of_it[n_experts // 2] = np.nan
    stride = -(-n_experts // 4) * 16
    padded_logits = np.full((rows, stride // 4), np.nan, np.float32)
    padded_logits[:, :n_experts] = logits
    at = vram.put(padded_logits)
    for bias, normalise, scale in (
        (some, True, 2.827), (np.empty(0, np.float32), False, 1.0), (none_of_it, True, 1.0),
        (np.zeros(n_experts, np.float32), False, 16.0),
    ):  # fmt: skip
        ids, weights = np.empty((rows, top_k), np.int64), np.empty((rows, top_k), np.float32)
        layer_ops.route(logits, bias, sigmoid, groups, used, normalise, scale, ids, weights)
        to_ids, to_weights = vram.room(ids.nbytes), vram.room(weights.nbytes)
        vram.run(
            ROUTE, (rows,), at, stride, n_experts, vram.put(bias) if bias.size else 0, sigmoid,
            groups, used, normalise, bits(scale), top_k, to_ids, to_weights,
            shared=route_shared(n_experts),
        )  # fmt: skip
        np.testing.assert_array_equal(vram.get(to_ids, ids.shape, np.int64), ids)
        found, good = vram.get(to_weights, weights.shape), ~np.isnan(weights)
        assert np.isnan(found[~good]).all()
        np.testing.assert_array_equal(found[good].view(np.uint32), weights[good].view(np.uint32))


@pytest.mark.parametrize(
    ("rows", "top_k", "n_experts"),
    [(1, 8, 384), (5, 2, 2), (9, 8, 256), (301, 7, 384), (1024, 16, 1024), (1024, 8, 64)],
)
def test_sort_choices(rows: int, top_k: int, n_experts: int) -> None:
    vram = Vram()
    rng = np.random.default_rng(rows)
    ids = np.argsort(rng.random((rows, n_experts)), axis=1)[:, :top_k].copy()
    if rows == 9:
        ids[3] = 5  # an expert more than once: what is forced may be anything
        ids[:, 0] = 255
    n = rows * top_k
    experts, starts, tokens = (np.empty(n + 1, np.int64) for _ in range(3))
    slots = np.empty((rows, top_k), np.int64)
    used = layer_ops.group_by_expert(
        ids, np.empty(0, np.int64), n_experts, experts, starts, tokens, slots
    )
    expected = (
        experts[:used], starts[: used + 1], tokens[:n], slots.reshape(-1), np.array([used, n])
    )  # fmt: skip
    to = [vram.room(4 * len(part)) for part in expected]
    shared, at = sort_shared(n_experts), vram.put(ids)
    vram.run(SORT, (1,), at, rows, top_k, n_experts, 0, *to, shared=shared)
    for part, room in zip(expected, to, strict=True):
        np.testing.assert_array_equal(vram.get(room, part.shape, np.uint32), part)


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize(("rows", "top_k", "n_experts"), [(1, 8, 384), (8, 8, 60), (301, 7, 301)])
def test_experts_that_are_here_come_first(
    rows: int, top_k: int, n_experts: int, share: float
) -> None:
    vram = Vram()
    rng = np.random.default_rng(rows)
    ids = np.argsort(rng.random((rows, n_experts)), axis=1)[:, :top_k].copy()
    table = np.where(rng.random(n_experts) < share, rng.integers(1, 1 << 62, n_experts), 0)
    found, counts = np.unique(ids, return_counts=True)
    order = np.lexsort((found, table[found] == 0))
    experts, counts = found[order], counts[order]
    starts = np.concatenate(([0], np.cumsum(counts)))
    here = np.count_nonzero(table[experts])
    rank = np.argsort(experts)[np.searchsorted(found, ids.reshape(-1))]
    places = np.argsort(rank, kind="stable")
    slots = np.empty(ids.size, np.int64)
    slots[places] = np.arange(ids.size)
    expected = experts, starts, places // top_k, slots, np.array([here, starts[here]])
    to = [vram.room(4 * len(part)) for part in expected]
    vram.run(
        SORT, (1,), vram.put(ids), rows, top_k, n_experts, vram.put(table), *to,
        shared=sort_shared(n_experts),
    )  # fmt: skip
    for part, at in zip(expected, to, strict=True):
        np.testing.assert_array_equal(vram.get(at, part.shape, np.uint32), part)


combine_row = layer_ops.combine_row


@kernel()
def combine_on_cpu(
    parts: int, stride: int, slots: int, weights: int, k: int, n: int, x: int
) -> None:
    combine_row(parts, stride, slots, weights, k, n, x)


@pytest.mark.parametrize("top_k", [0, 1, 8, 11])
def test_combine_has_the_bits_of_the_cpu(top_k: int) -> None:
    vram = Vram()
    rng = np.random.default_rng(top_k)
    rows, n = 3, 584
    x, shared = rng.standard_normal((2, rows, n)).astype(np.float32)
    parts = rng.standard_normal((rows * top_k, n)).astype(np.float32)
    slots = rng.permutation(rows * top_k).reshape(rows, top_k)
    weights = rng.random((rows, top_k)).astype(np.float32)
    exact = x.copy()
    for t in range(rows):
        combine_on_cpu(
            parts.ctypes.data, 4 * n, slots[t].ctypes.data, weights[t].ctypes.data, top_k, n,
            exact[t].ctypes.data,
        )  # fmt: skip
    inputs = (
        (vram.put(parts), 4 * n, vram.put(slots.astype(np.uint32)), vram.put(weights))
        if top_k
        else (0, 0, 0, 0)
    )
    for also, stride, expected in ((0, 0, exact), (vram.put(shared), 4 * n, exact + shared)):
        for here in (None, 0, rows * top_k // 2, rows * top_k):
            elsewhere = ALL_HERE if here is None else _split(vram, parts, slots, here)
            at = vram.put(x)
            vram.run(COMBINE, (3, rows), *inputs, top_k, also, stride, n, at, 4 * n, *elsewhere)
            found = vram.get(at, x.shape)
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def _split(vram: Vram, parts: Array, slots: Array, here: int) -> tuple[int, ...]:
    """Arguments of COMBINE: from a slot on, the parts lie in memory of the host, reversed."""
    other = parts[::-1].copy()
    vram.machine.beside.append(other.view(np.uint8).reshape(-1))
    rows, top_k = slots.shape
    at = np.full((rows, top_k + 2), 1 << 40, np.int64)  # of one that is here: anything
    at[:, :top_k] = np.where(slots < here, 1 << 40, len(parts) - 1 - slots)
    number = vram.put(np.array([here], np.uint32))
    return number, other.ctypes.data, 4 * parts.shape[1], vram.put(at), 8 * (top_k + 2)
