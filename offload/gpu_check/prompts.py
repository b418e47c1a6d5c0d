"""The matrix product of prompts, beside what the card does with halves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload.errors import reason
from offload.gpu_check import cublas
from offload.gpu_check.bench import Bench, every_type, launch
from offload.gpu_check.kernels import tiles
from offload.gpu_check.rates import random_bytes
from offload.gpu_check.report import Row, at_least, fact, missing
from quant.cuda.kernels import of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import GGMLType

KINDS = (GGMLType.Q4_K, GGMLType.Q2_K, GGMLType.TQ1_0)
GOAL = 0.40  # of cuBLAS' rate


def prompts(bench: Bench) -> Iterator[Row]:
    """Two planes (dense layers), and one (routed experts), by tokens."""
    hidden, width = bench.setup.hidden, bench.setup.width
    for tokens in bench.setup.prompts:
        work = 2e-12 * hidden * width * tokens
        with bench.scope():
            row, halves = _halves(bench, tokens, work)
            yield row
        for kind in KINDS:
            if kind not in every_type(bench.setup) or "many_dense" not in of_type(kind):
                yield missing(f"{kind.name}, {tokens} tokens", "no such kernel in this version")
                continue
            with bench.scope():
                for name, seconds in _quantised(bench, kind, tokens):
                    label = f"{kind.name} {name}, {tokens} tokens"
                    yield fact(label, work / seconds, "TFLOP/s")
                    if halves is not None:
                        share = work / seconds / halves
                        yield at_least(label, share, "of cuBLAS' rate", GOAL)


def _halves(bench: Bench, tokens: int, work: float) -> tuple[Row, float | None]:
    """A row, and the rate of cuBLAS in TFLOP/s where it could be measured."""
    name = f"cuBLAS f16, {tokens} tokens"
    found = cublas.library()
    if found is None:
        rate = cublas.published(bench.gpu.name)
        known = "nothing is published here" if rate is None else f"{rate} TFLOP/s are published"
        return missing(name, f"no library; {known} for {bench.gpu.name}"), None
    hidden, width = bench.setup.hidden, bench.setup.width
    try:
        blas = cublas.Blas(bench, found)
        seconds = blas.seconds(
            _normal(bench, width * hidden), _normal(bench, tokens * hidden),
            bench.room(2 * tokens * width), width, hidden, tokens,
        )  # fmt: skip
        blas.close()
    except (RuntimeError, OSError, AttributeError) as exc:
        return missing(name, reason(exc)), None
    return fact(name, work / seconds, "TFLOP/s"), work / seconds


def _normal(bench: Bench, count: int) -> int:
    """Address of halves that are numbers: a tensor core's power, so its clock, depends on them."""
    x = np.random.default_rng(0).standard_normal(min(count, 1 << 20)).astype(np.float16)
    return bench.put(np.resize(x, count))


def _quantised(bench: Bench, kind: GGMLType, tokens: int) -> Iterator[tuple[str, float]]:
    planes, there = plane_type(kind), of_type(kind)
    n_cols, n_rows = bench.setup.hidden, bench.setup.width
    w = random_bytes(bench, planes.n_bytes(n_rows, n_cols))
    x = random_bytes(bench, tokens * record_bytes(n_cols, 2))
    out = bench.room(4 * tokens * n_rows)
    blocks, depth = tiles(kind, n_rows, tokens)
    dense = launch(
        there["many_dense"], (blocks, depth), w, n_rows, planes.chunks(n_cols), x,
        record_bytes(n_cols, 2), columns(n_cols), tokens, out, 4 * n_rows, 0,
    )  # fmt: skip
    yield "many_dense", bench.time([dense])
    lists = (
        np.array([w]), np.zeros(1, np.uint32), np.ones(1, np.uint32),
        np.array([0, tokens], np.uint32), np.arange(tokens, dtype=np.uint32),
    )  # fmt: skip
    chosen = launch(
        there["many_chosen"], (blocks, 1, depth), *map(bench.put, lists), n_rows,
        planes.chunks(n_cols), x, record_bytes(n_cols, 1), columns(n_cols), out, 4 * n_rows,
    )  # fmt: skip
    yield "many_chosen", bench.time([chosen])
