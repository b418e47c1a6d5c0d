"""Kernels for a few tokens have the bits of one token at a time, for any type and number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpu_types import EVERY_TYPE, SOME
from test_quant import moderate_rows, normal

from quant import kernels
from quant.compiler import isa
from quant.compiler.jit import bind
from quant.ggml import BLOCK, GGMLType
from quant.kernels import Job
from quant.packed.packed_type import PackedType
from quant.packed.registry import PACKED_TYPES, run_pack
from quant.quant_type import FEW_OF, Kind, OneToken, QuantType
from quant.registry import quant_type
from quant.run import activations, driver
from quant.run.pool import Pool

TESTS = Path(__file__).parent
TOKENS = 9
some_types = pytest.mark.parametrize("t", SOME, ids=lambda t: t.name)
every_base = pytest.mark.parametrize("base", FEW_OF)


def run(
    quant: QuantType | PackedType, kind: Kind, w: np.ndarray, shape: tuple[int, int],
    x: np.ndarray, index: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Products (tokens, rows) of all of x (tokens, bytes or floats), or those that index names.

    shape: rows, columns. Several calls: 16 rows, or a row group, at a time.
    """
    rows, n_cols = shape
    tokens = len(x) if index is None else len(index)
    out = np.full((tokens, rows + 1), 7, np.float32)
    job = driver.job_table(1)
    for field, value in {
        Job.KERNEL: quant.address(kind),
        Job.W: w.ctypes.data,
        Job.ROW_BYTES: w.strides[0],
        Job.N_ROWS: rows,
        Job.N_COLS: n_cols,
        Job.X: x.ctypes.data,
        Job.X_STRIDE: x.strides[0],
        Job.N_TOKENS: tokens,
        Job.OUT: out.ctypes.data,
        Job.OUT_STRIDE: out.strides[0],
    }.items():
        job[0, field] = value
    if index is not None:
        offsets = index * x.strides[0]
        job[0, Job.INDEX] = offsets.ctypes.data
    pool = Pool(1)
    driver.run_jobs(pool, job, quant.group_rows if isinstance(quant, PackedType) else 16)
    pool.close()
    assert np.all(out[:, -1] == 7)
    return out[:, :-1].view(np.uint32).copy()


def assert_few_is_one_by_one(
    quant: QuantType | PackedType, base: OneToken, w: np.ndarray, shape: tuple[int, int]
) -> None:
    """`few` and what `kernel_for` names have the bits of one token at a time, by index or not."""
    x = normal(TOKENS, shape[1])
    if base != "matvec_f32" and not quant.is_float:
        x = activations.quantize(x, 2 if base == "matvec_q16" else 1)
    want = np.concatenate([run(quant, base, w, shape, x[t : t + 1]) for t in range(TOKENS)])
    chosen = np.array([4, 1, 1, 0, 7, 6, 2, 5])
    for tokens in (1, 2, 3, 5, 8, 9):
        for kind in {FEW_OF[base], quant.kernel_for(base, tokens)}:
            assert np.array_equal(run(quant, kind, w, shape, x[:tokens]), want[:tokens])
    for kind in (base, FEW_OF[base]):
        assert np.array_equal(run(quant, kind, w, shape, x, chosen), want[chosen])


@every_base
@some_types
def test_few_tokens_have_the_bits_of_one(t: GGMLType, base: OneToken) -> None:
    quant = quant_type(t)
    if quant.is_float and base != "matvec_f32":
        assert quant.address(base) == quant.address("matvec_f32")
        assert quant.address(FEW_OF[base]) == quant.address("few_f32")
        return
    size = BLOCK[t].size
    for rows, n_cols in [(23, 512), (5, 256), (3, 96 if size <= 32 else 768)]:
        assert_few_is_one_by_one(quant, base, moderate_rows(t, rows, n_cols), (rows, n_cols))


@pytest.mark.parametrize("t", [t for t in PACKED_TYPES if t in SOME], ids=lambda t: t.name)
def test_few_tokens_of_packed_rows_have_the_bits_of_one(t: GGMLType) -> None:
    packed, (rows, n_cols) = PACKED_TYPES[t], (71, 512)
    data = np.tile(moderate_rows(t, 36, n_cols), (2, 1))[:rows]
    room = np.zeros(packed.matrix_bytes(rows, n_cols), np.uint8)
    job = driver.job_table(1)
    for field, value in {
        Job.KERNEL: packed.address("pack"),
        Job.W: data.ctypes.data,
        Job.ROW_BYTES: data.strides[0],
        Job.N_ROWS: rows,
        Job.N_COLS: n_cols,
        Job.OUT: room.ctypes.data,
    }.items():
        job[0, field] = value
    pool = Pool(1)
    run_pack(pool, job, packed.groups(rows))
    pool.close()
    w = room.reshape(-1, packed.row_stride(n_cols))
    assert_few_is_one_by_one(packed, "matvec", w, (rows, n_cols))


def test_what_a_template_leaves_open_must_be_bound() -> None:
    with pytest.raises(TypeError, match=r"matvec leaves open .*decode_step.* GROUP"):
        bind(kernels.matvec, "half_bound", SIZE=256, BYTES=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ("avx2", "generic") if n != isa.NAME])
def test_other_instruction_sets_have_them_too(name: str) -> None:
    try:
        isa.choose(name)
    except ValueError as unable:
        pytest.skip(str(unable))
    some = "Q4_0 or TQ1_0 or F16 or Q4_K or Q6_K or IQ1_M" if EVERY_TYPE else "Q4_0"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        + ["-k", some, str(TESTS / "test_few.py")],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "KIMI_OFFLOAD_ISA": name},
    )
    assert done.returncode == 0, done.stdout
