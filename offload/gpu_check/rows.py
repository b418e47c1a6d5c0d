"""The kernels of no quant type: norms, records, SwiGLU, router, sorting, sums, exchange."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offload.gpu.base import Launch, Mapped
from offload.gpu_check.bench import Bench
from offload.gpu_check.expected import records, swiglu
from offload.gpu_check.report import Row, fused, near, same_bits
from quant.cuda.exchange import EXCHANGE
from quant.cuda.norms import NORM, NORM_SHARED, RECORD, SWIGLU
from quant.cuda.records import columns, record_bytes
from quant.cuda.router import ALL_HERE, COMBINE, ROUTE, SORT, route_shared, sort_shared
from quant.run import layer_ops

Array = np.ndarray
ROWS, EXPERTS, TOP_K = 5, 384, 8
EPS = 1e-6


def row_kernels(bench: Bench) -> Iterator[Row]:
    """All of them, on rows of the hidden size."""
    rng = np.random.default_rng(2)
    for part in (_norm, _record, _swiglu, _route, _sort, _combine, _exchange):
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
    for label, table in (("", None), (", some here", rng.integers(0, 2, EXPERTS))):
        rank = np.arange(EXPERTS)
        if table is not None:
            rank = np.argsort(np.argsort(table == 0, kind="stable"))
        of_choice = rank[ids.reshape(-1)]
        found, counts = np.unique(of_choice, return_counts=True)
        experts = np.argsort(rank)[found]
        starts = np.concatenate(([0], np.cumsum(counts)))
        order = np.argsort(of_choice, kind="stable")
        slots = np.empty(ids.size, np.int64)
        slots[order] = np.arange(ids.size)
        here = len(experts) if table is None else np.count_nonzero(table[experts])
        exact = (
            ("experts", experts), ("starts", starts), ("tokens", order // TOP_K),
            ("slots", slots), ("used", np.array([here, starts[here]])),
        )  # fmt: skip
        to = [bench.room(4 * part.size) for _, part in exact]
        at = 0 if table is None else bench.put(table)
        _run(
            bench, SORT, (1, 1), sort_shared(EXPERTS), bench.put(ids), rows, TOP_K, EXPERTS, at,
            *to,
        )  # fmt: skip
        for (name, part), room in zip(exact, to, strict=True):
            made = bench.get(room, part.shape, np.uint32)
            yield same_bits(f"sort_choices{label}, {name}", made, part.astype(np.uint32))


def _combine(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x, n = _rows(bench, rng), bench.setup.hidden
    parts = rng.standard_normal((ROWS * TOP_K, n)).astype(np.float32)
    slots = rng.permutation(ROWS * TOP_K).reshape(ROWS, TOP_K)
    weights = rng.random((ROWS, TOP_K)).astype(np.float32)
    exact = x.copy()
    for k in range(TOP_K):
        exact = fused(weights[:, k, None], parts[slots[:, k]], exact)
    here = len(parts) // 2
    inputs = bench.put(parts[:here]), 4 * n, bench.put(slots.astype(np.uint32)), bench.put(weights)
    host, number = _mapped(bench, parts[here:]), bench.put(np.array([here], np.uint32))
    elsewhere = number, host.address, 4 * n, bench.put(slots - here), 8 * TOP_K
    all_here = bench.put(parts), *inputs[1:]
    for label, given, more in (
        ("combine", all_here, ALL_HERE), ("combine, some parts in mapped memory", inputs, elsewhere)
    ):  # fmt: skip
        out = bench.put(x)
        _run(
            bench, COMBINE, (-(-n // 256), ROWS), 0, *given, TOP_K, 0, 0, n, out, 4 * n, *more
        )  # fmt: skip
        yield same_bits(label, bench.get(out, x.shape), exact)


def _exchange(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    """To mapped memory and back, rows at multiples of 16 bytes and others; then the flag."""
    x = _rows(bench, rng)
    there, back = bench.gpu.mapped(x.nbytes + 4 * ROWS), bench.room(x.nbytes)
    flag, number = bench.gpu.mapped(8), bench.put(np.array([7]))
    for label, gap in (("16", 0), ("4", 4)):
        stride = x[0].nbytes + gap
        there.array[:] = 0
        to = bench.put(np.array([bench.put(x), x[0].nbytes, there.address, stride, x[0].nbytes]))
        fro = bench.put(np.array([there.address, stride, back, x[0].nbytes, x[0].nbytes]))
        bench.gpu.clear(back, x.nbytes)
        _run(bench, EXCHANGE, (1, 1), 0, to, 1, ROWS, flag.address, number)
        found = there.array[: stride * ROWS].reshape(ROWS, stride)[:, : x[0].nbytes]
        made = np.ascontiguousarray(found).view(np.float32)
        yield same_bits(f"exchange, {label} bytes at a time, to mapped memory", made, x)
        _run(bench, EXCHANGE, (ROWS, 1), 0, fro, 1, ROWS, 0, 0)
        yield same_bits(f"exchange, {label} bytes at a time, back", bench.get(back, x.shape), x)
    yield same_bits("exchange, its flag", flag.array.view(np.int64), np.array([7]))


def _mapped(bench: Bench, array: Array) -> Mapped:
    """A copy that the GPU reads in the host's memory."""
    found = bench.gpu.mapped(array.nbytes)
    found.array[:] = array.reshape(-1).view(np.uint8)
    return found
