"""Packed layouts: nothing is lost, and products are those of the native bytes bit for bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import libggml
import numpy as np
import pytest
from cpu_types import EVERY_TYPE, SOME
from test_quant import moderate_blocks, normal

from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType
from quant.kernels import Job
from quant.packed import (
    iq1_m as packed_iq1_m,
)
from quant.packed import (
    iq1_s as packed_iq1_s,
)
from quant.packed import (
    q2_k as packed_q2_k,
)
from quant.packed import (
    q3_k as packed_q3_k,
)
from quant.packed import (
    tq1_0 as packed_tq1_0,
)
from quant.packed import (
    tq2_0 as packed_tq2_0,
)
from quant.packed.registry import PACKED_TYPES, PackedType, packed_type, run_pack
from quant.run import activations, driver
from quant.run.pool import Pool
from quant.tile.panels import Panel

TESTS = Path(__file__).parent
DEFINITIONS: dict[GGMLType, Callable[[np.ndarray], tuple[np.ndarray, ...]]] = {
    module.PACKED.ggml_type: module.weights
    for module in (
        packed_iq1_m,
        packed_iq1_s,
        packed_q2_k,
        packed_q3_k,
        packed_tq1_0,
        packed_tq2_0,
    )
}
HALVES = {  # where a block has its d and dmin
    GGMLType.IQ1_M: range(48, 56),
    GGMLType.IQ1_S: range(2),
    GGMLType.Q2_K: range(80, 84),
    GGMLType.Q3_K: range(108, 110),
    GGMLType.TQ1_0: range(52, 54),
    GGMLType.TQ2_0: range(64, 66),
}
ROWS, N_COLS = 131, 2304  # neither a multiple of a row group nor of the columns of a tile
some_packed_types = pytest.mark.parametrize(
    "t", [t for t in PACKED_TYPES if t in SOME], ids=lambda t: t.name
)


def job(kernel: int, w: np.ndarray, row_bytes: int, n_rows: int, n_cols: int, **more: int) -> Any:
    table = driver.job_table(1)
    fields = {"KERNEL": kernel, "W": w.ctypes.data, "ROW_BYTES": row_bytes}
    for name, value in (fields | {"N_ROWS": n_rows, "N_COLS": n_cols} | more).items():
        table[0, Job[name]] = value
    return table


def pack(p: PackedType, data: np.ndarray, n_cols: int) -> np.ndarray:
    """The packed matrix of native rows, (groups, steps, group_bytes) uint8; written once."""
    rows = len(data)
    shape = p.groups(rows), n_cols // 256, p.group_bytes
    both = []
    for before in (0x00, 0xFF):
        out = np.full(shape, before, np.uint8)
        pool = Pool(1)
        table = job(p.address("pack"), data, data.strides[0], rows, n_cols, OUT=out.ctypes.data)
        run_pack(pool, table, p.groups(rows))
        pool.close()
        both.append(out)
    assert np.array_equal(*both)
    return both[0]


def unpack(p: PackedType, matrix: np.ndarray, rows: int) -> np.ndarray:
    """The weights as float32 (rows, n_cols), by the readable definition."""
    out = np.empty((matrix.shape[0], p.group_rows, matrix.shape[1], 256), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for g, group in enumerate(matrix):
            for step, block in enumerate(group):
                q, s, *o = DEFINITIONS[p.ggml_type](block)
                out[g, :, step] = q * np.repeat(s, p.source.group, axis=1)
                if o:
                    out[g, :, step] += np.repeat(o[0], p.source.group, axis=1)
    return out.reshape(-1, matrix.shape[1] * 256)[:rows]


def products(
    kernel: int,
    w: np.ndarray,
    stride: int,
    rows: int,
    records: np.ndarray,
    panel: Panel | None = None,
) -> np.ndarray:
    """(tokens, rows) by one kernel; what surrounds them in memory is left alone.

    panel: for kernels that want one.
    """
    room = np.full((len(records), rows + 2), 7, np.float32)
    table = job(
        kernel, w, stride, rows, N_COLS,
        X=records.ctypes.data, X_STRIDE=records.strides[0], N_TOKENS=len(records),
        OUT=room.ctypes.data + 4, OUT_STRIDE=room.strides[0],
    )  # fmt: skip
    pool = Pool(2)
    if panel is not None:
        starts = np.array([0, len(records)])
        table[:, Job.PANELS], _room = driver.make_panels(pool, panel, records, N_COLS, starts)
    driver.run_jobs(pool, table, 192)
    pool.close()
    assert np.all(room[:, 0] == 7)
    assert np.all(room[:, -1] == 7)
    return room[:, 1:-1].copy()


def assert_same_bits(x: np.ndarray, y: np.ndarray) -> None:
    assert np.array_equal(x.view(np.uint32), y.view(np.uint32))


@cache
def matrix(t: GGMLType) -> tuple[np.ndarray, np.ndarray]:
    """(native rows, packed matrix) of ROWS x N_COLS ordinary weights."""
    data = moderate_blocks(t, ROWS * N_COLS // 256).reshape(ROWS, -1)
    return data, pack(PACKED_TYPES[t], data, N_COLS)


# --- the layout -----------------------------------------------------------------------------------


@some_packed_types
@pytest.mark.parametrize("rows", [1, 50, 131])
def test_packed_bytes_hold_the_same_weights_for_any_bytes(t: GGMLType, rows: int) -> None:
    rng = np.random.default_rng([int(t), rows])
    data = rng.integers(0, 256, (rows, 2 * BLOCK[t].n_bytes), np.uint8)
    want = libggml.dequantize(t, data, 512)
    got = unpack(PACKED_TYPES[t], pack(PACKED_TYPES[t], data, 512), rows)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan], want[~nan])


@some_packed_types
def test_packed_bytes_hold_the_same_weights_for_every_byte(t: GGMLType) -> None:
    """Every byte in every place of a block but the scales', which are those of a sane block."""
    block = moderate_blocks(t, 1)[0]
    data = np.tile(block, (256, 1))
    for at in set(range(BLOCK[t].n_bytes)) - set(HALVES[t]):
        data[:, at] = (np.arange(256) + 37 * at) % 256
    got = unpack(PACKED_TYPES[t], pack(PACKED_TYPES[t], data, 256), 256)
    assert np.array_equal(got, libggml.dequantize(t, data, 256))


@some_packed_types
def test_sizes_are_those_of_the_layout(t: GGMLType) -> None:
    p = PACKED_TYPES[t]
    assert packed_type(t) is p
    assert p.groups(p.group_rows + 1) == 2
    assert p.matrix_bytes(p.group_rows + 1, 512) == 4 * p.group_bytes
    growth = p.group_bytes / p.group_rows / BLOCK[t].n_bytes
    limit = {GGMLType.TQ1_0: 1.025, GGMLType.IQ1_S: 1.187, GGMLType.IQ1_M: 1.167}
    assert 1 <= growth <= limit.get(t, 1)


def test_types_without_a_packed_layout_have_none() -> None:
    assert packed_type(GGMLType.Q8_0) is None


# --- products -------------------------------------------------------------------------------------


@some_packed_types
@pytest.mark.parametrize("rows", [1, 17, 48, 64, 131])
def test_packed_matvec_equals_native_bit_for_bit(t: GGMLType, rows: int) -> None:
    (data, packed), p = matrix(t), PACKED_TYPES[t]
    records = activations.quantize(normal(2, N_COLS))
    want = products(p.source.address("matvec"), data, data.strides[0], rows, records)
    got = products(p.address("matvec"), packed, p.row_stride(N_COLS), rows, records)
    assert_same_bits(got, want)


@some_packed_types
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_packed_matmul_equals_matvec_bit_for_bit(t: GGMLType, tokens: int) -> None:
    (_, packed), p = matrix(t), PACKED_TYPES[t]
    records = activations.quantize(normal(tokens, N_COLS, seed=tokens))
    for rows in (33, 131) if tokens == 7 else (131,):
        want = products(p.address("matvec"), packed, p.row_stride(N_COLS), rows, records)
        got = products(p.address("matmul"), packed, p.row_stride(N_COLS), rows, records, p.panel())
        assert_same_bits(got, want)


@some_packed_types
def test_packed_products_of_the_largest_activations_are_exact(t: GGMLType) -> None:
    """127 everywhere: sums of 16 bits, where there are any, are filled to their brim."""
    (data, packed), p = matrix(t), PACKED_TYPES[t]
    for x in (np.ones(N_COLS, np.float32), np.tile(np.float32([1, -1]), N_COLS // 2)):
        records = activations.quantize(x[None])
        want = products(p.source.address("matvec"), data, data.strides[0], ROWS, records)
        got = products(p.address("matvec"), packed, p.row_stride(N_COLS), ROWS, records)
        assert_same_bits(got, want)
        weights = libggml.dequantize(t, data, N_COLS).astype(np.float64)
        assert np.all(np.abs(got[0] - weights @ x) <= 1e-5 * np.abs(weights).sum(axis=1))


@some_packed_types
@pytest.mark.parametrize("byte", [0x00, 0x55, 0xAA, 0xFF])
def test_packed_products_of_the_same_byte_everywhere_are_exact(t: GGMLType, byte: int) -> None:
    """Among them the largest weights: sums of 16 bits may overflow on the way, not at the end."""
    p = PACKED_TYPES[t]
    block = moderate_blocks(t, 1)[0]
    block[list(set(range(BLOCK[t].n_bytes)) - set(HALVES[t]))] = byte
    data = np.tile(block, (p.group_rows, N_COLS // 256))
    packed = pack(p, data, N_COLS)
    for x in (np.ones(N_COLS, np.float32), -np.ones(N_COLS, np.float32)):
        records = activations.quantize(x[None])
        want = products(p.source.address("matvec"), data, data.strides[0], len(data), records)
        got = products(p.address("matvec"), packed, p.row_stride(N_COLS), len(data), records)
        assert_same_bits(got, want)
        weights = libggml.dequantize(t, data, N_COLS).astype(np.float64)
        assert np.all(np.abs(got[0] - weights @ x) <= 1e-5 * np.abs(weights).sum(axis=1))


@some_packed_types
def test_packed_products_do_not_depend_on_where_they_start(t: GGMLType) -> None:
    (_, packed), p = matrix(t), PACKED_TYPES[t]
    records = activations.quantize(normal(3, N_COLS))
    want = products(p.address("matvec"), packed, p.row_stride(N_COLS), ROWS, records)
    later = packed[1:]
    for kind, panel in (("matvec", None), ("matmul", p.panel())):
        rows = ROWS - p.group_rows
        got = products(p.address(kind), later, p.row_stride(N_COLS), rows, records, panel)
        assert_same_bits(got, want[:, p.group_rows :])


# --- in processes of their own --------------------------------------------------------------------

# between them the two types use nearly all of simd_packed.py; compiling takes long
BOTH = "TQ1_0 Q3_K" if EVERY_TYPE else "TQ1_0"
PROVEN = {"avx512": "TQ1_0", "avxvnni": BOTH, "avx2": BOTH, "generic": "TQ1_0"}


def digest(names: str) -> str:
    """Of packed bytes and products of these types, as this process computes them."""
    parts = hashlib.sha256()
    for t in (GGMLType[name] for name in names.split()):
        _, packed = matrix(t)
        records = activations.quantize(normal(1, N_COLS))
        p = PACKED_TYPES[t]
        out = products(p.address("matvec"), packed, p.row_stride(N_COLS), ROWS, records)
        parts.update(packed.tobytes() + out.tobytes())
    return parts.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PROVEN if n != isa.ISA])
def test_other_instruction_sets_pack_and_multiply_the_same(name: str) -> None:
    try:
        isa.choose(name)
    except ValueError as unable:
        pytest.skip(str(unable))
    done = subprocess.run(
        [sys.executable, "-c", f"import test_packed; print(test_packed.digest({PROVEN[name]!r}))"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KIMI_OFFLOAD_ISA": name,
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest(PROVEN[name])]
