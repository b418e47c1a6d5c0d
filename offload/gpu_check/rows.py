"""The kernels that are of no quant type: norms, records, SwiGLU, router, sorting, sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offload.gpu.base import Launch
from offload.gpu_check.bench import Bench
from offload.gpu_check.expected import records, swiglu
from offload.gpu_check.report import Row, fused, near, same_bits
from quant.cuda.norms import NORM, NORM_SHARED, RECORD, SWIGLU
from quant.cuda.records import columns, record_bytes
from quant.cuda.router import COMBINE, ROUTE, SORT, route_shared, sort_shared
from quant.run import layer_ops

Array = np.ndarray
ROWS, EXPERTS, TOP_K = 5, 384, 8
EPS = 1e-6


def row_kernels(bench: Bench) -> Iterator[Row]:
    """All of them, on rows of the hidden size."""
    rng = np.random.default_rng(2)
    for part in (_norm, _record, _swiglu, _route, _sort, _combine):
        with bench.scope():
            yield from part(bench, rng)


def bits(x: float) -> int:
    """Of a float32."""
    return int(np.float32(x).view(np.uint32))


def _run(bench: Bench, kernel: Any, grid: tuple[int, int], shared: int, *arguments: int) -> None:
    bench.run(Launch(kernel, (*grid, 1), arguments, shared))


def _rows(bench: Bench, rng: np.random.Generator) -> Array:
    return rng.standard_normal((ROWS, bench.setup.hidden)).astype(np.float32)


def _norm(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x, n = _rows(bench, rng), bench.setup.hidden
    weight = rng.uniform(0.5, 2, n).astype(np.float32)
    out, q16 = bench.room(x.nbytes), bench.room(ROWS * record_bytes(n, 2))
    _run(
        bench, NORM, (ROWS, 1), NORM_SHARED, bench.put(x), 4 * n, bench.put(weight), n, bits(EPS),
        out, 4 * n, 0, 0, q16, record_bytes(n, 2),
    )  # fmt: skip
    found = bench.get(out, x.shape)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * weight
    yield near("norm", found, exact, 2e-7)
    made = bench.get(q16, (ROWS, record_bytes(n, 2)), np.uint8)
    yield same_bits("norm, records of its rows", made, records(found, 2))


def _record(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x, n = _rows(bench, rng), bench.setup.hidden
    for planes in (1, 2):
        size = record_bytes(n, planes)
        out = bench.room(ROWS * size)
        _run(bench, RECORD, (ROWS, 1), 0, bench.put(x), 4 * n, n, planes, out, size)
        found = bench.get(out, (ROWS, size), np.uint8)
        yield same_bits(f"to_record, {planes} planes", found, records(x, planes))


def _swiglu(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    gate, up, n = 4 * _rows(bench, rng), _rows(bench, rng), bench.setup.hidden
    exact, size = swiglu(gate, up), record_bytes(n, 2)
    plain, record = bench.room(exact.nbytes), bench.room(ROWS * size)
    _run(
        bench, SWIGLU, (columns(n) // 1024, ROWS), 0, bench.put(gate), bench.put(up), 4 * n, n,
        plain, 4 * n, record, size, 2,
    )  # fmt: skip
    yield same_bits("swiglu", bench.get(plain, exact.shape), exact)
    found = bench.get(record, (ROWS, size), np.uint8)
    yield same_bits("swiglu, records", found, records(exact, 2))


def _route(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    logits = (3 * rng.standard_normal((ROWS, EXPERTS))).astype(np.float32)
    logits[1] = rng.integers(-2, 2, EXPERTS)  # ties
    bias = (rng.standard_normal(EXPERTS) / 5).astype(np.float32)
    for sigmoid, groups, used in ((1, 1, 1), (0, 8, 4)):
        ids, weights = np.empty((ROWS, TOP_K), np.int64), np.empty((ROWS, TOP_K), np.float32)
        layer_ops.route(logits, bias, bool(sigmoid), groups, used, True, 2.5, ids, weights)
        to_ids, to_weights = bench.room(ids.nbytes), bench.room(weights.nbytes)
        _run(
            bench, ROUTE, (ROWS, 1), route_shared(EXPERTS), bench.put(logits), 4 * EXPERTS,
            EXPERTS, bench.put(bias), sigmoid, groups, used, 1, bits(2.5), TOP_K, to_ids,
            to_weights,
        )  # fmt: skip
        label = "route, sigmoid" if sigmoid else "route, softmax in groups"
        yield same_bits(f"{label}, experts", bench.get(to_ids, ids.shape, np.int64), ids)
        yield same_bits(f"{label}, weights", bench.get(to_weights, weights.shape), weights)


def _sort(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    rows = 200
    ids = np.argsort(rng.random((rows, EXPERTS)), axis=1)[:, :TOP_K].copy()
    experts, counts = np.unique(ids, return_counts=True)
    order = np.argsort(ids.reshape(-1), kind="stable")
    slots = np.empty(ids.size, np.int64)
    slots[order] = np.arange(ids.size)
    exact = (
        ("experts", experts), ("starts", np.concatenate(([0], np.cumsum(counts)))),
        ("tokens", order // TOP_K), ("slots", slots), ("used", np.array([len(experts)])),
    )  # fmt: skip
    to = [bench.room(4 * part.size) for _, part in exact]
    _run(bench, SORT, (1, 1), sort_shared(EXPERTS), bench.put(ids), rows, TOP_K, EXPERTS, *to)
    for (name, part), at in zip(exact, to, strict=True):
        found = bench.get(at, part.shape, np.uint32)
        yield same_bits(f"sort_choices, {name}", found, part.astype(np.uint32))


def _combine(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x, n = _rows(bench, rng), bench.setup.hidden
    parts = rng.standard_normal((ROWS * TOP_K, n)).astype(np.float32)
    slots = rng.permutation(ROWS * TOP_K).reshape(ROWS, TOP_K)
    weights = rng.random((ROWS, TOP_K)).astype(np.float32)
    exact = x.copy()
    for k in range(TOP_K):
        exact = fused(weights[:, k, None], parts[slots[:, k]], exact)
    out = bench.put(x)
    _run(
        bench, COMBINE, (-(-n // 256), ROWS), 0, bench.put(parts), 4 * n,
        bench.put(slots.astype(np.uint32)), bench.put(weights), TOP_K, 0, 0, n, out, 4 * n,
    )  # fmt: skip
    yield same_bits("combine", bench.get(out, x.shape), exact)
