"""Every quant type against libggml (dequantisation, bit for bit) and against naive products."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import libggml
import numpy as np
import pytest
from cpu_types import SOME

from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType, QuantError, row_bytes
from quant.kernels import Job
from quant.products import dequantize, matmul, matmul_f32, matvec
from quant.registry import QUANT_TYPES, quant_type
from quant.run import activations, driver
from quant.run.pool import Pool

TESTS = Path(__file__).parent
TYPES = list(QUANT_TYPES)
QUANTISED = [t for t in TYPES if not QUANT_TYPES[t].is_float]
every_type = pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)
some_types = pytest.mark.parametrize("t", SOME, ids=lambda t: t.name)
every_quantised_type = pytest.mark.parametrize("t", QUANTISED, ids=lambda t: t.name)
N_COLS = 768  # three blocks of 256; more than one tile of matmul

# float32 sums of at most a few hundred terms, in any order: some 1e-6 of the sum of magnitudes
RTOL = 1e-5
# compilers fuse `scale * q - min` into one rounding where the baseline processor can
FUSED = platform.machine().lower() not in ("x86_64", "amd64")

# --- test weights -------------------------------------------------------------------------------


def random_bytes(t: GGMLType, rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([int(t), seed])
    return rng.integers(0, 256, (rows, row_bytes(t, n_cols)), np.uint8)


@cache
def moderate_blocks(t: GGMLType, count: int) -> np.ndarray:
    """Random blocks with finite weights of which the largest is within 1e-3 .. 1e3."""
    size, n_bytes = BLOCK[t]
    rng = np.random.default_rng([int(t), 1])
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        blocks = rng.integers(0, 256, (8 * count, n_bytes), np.uint8)
        top = np.abs(libggml.dequantize(t, blocks, size)).max(axis=1)
        found.append(blocks[(top > 1e-3) & (top < 1e3)])  # false for NaN
    return np.concatenate(found)[:count]


def moderate_rows(t: GGMLType, rows: int, n_cols: int) -> np.ndarray:
    """(rows, row_bytes) uint8: all bit patterns of the weights, scales of ordinary size."""
    blocks = moderate_blocks(t, 37 * (N_COLS // BLOCK[t].size))
    return blocks[: rows * (n_cols // BLOCK[t].size)].reshape(rows, -1)


HALF_1 = bytes((0x00, 0x3C))
# where a block's scales stand, and the bytes that make them 1; other types: a half at byte 0
UNIT_SCALES: dict[GGMLType, dict[int, bytes]] = {
    GGMLType.Q4_1: {0: HALF_1, 2: HALF_1},
    GGMLType.Q5_1: {0: HALF_1, 2: HALF_1},
    GGMLType.Q2_K: {80: HALF_1, 82: HALF_1},
    GGMLType.Q3_K: {108: HALF_1},
    GGMLType.Q4_K: {0: HALF_1, 2: HALF_1},
    GGMLType.Q5_K: {0: HALF_1, 2: HALF_1},
    GGMLType.Q6_K: {208: HALF_1},
    GGMLType.TQ1_0: {52: HALF_1},
    GGMLType.TQ2_0: {64: HALF_1},
    GGMLType.MXFP4: {0: bytes([128])},
    GGMLType.NVFP4: {0: bytes([0x40] * 4)},
}


def unit_scale_rows(t: GGMLType, rows: int, n_cols: int) -> np.ndarray:
    """Random weights that are small multiples of 1/8: their sums are exact in float32."""
    data = random_bytes(t, rows, n_cols, seed=2)
    blocks = data.reshape(-1, BLOCK[t].n_bytes)
    if t == GGMLType.IQ1_M:  # its half is spread over the upper nibbles of bytes 49, 51, 53, 55
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | np.array([0, 0, 0xC0, 0x30], np.uint8)
    else:
        for at, value in UNIT_SCALES.get(t, {0: HALF_1}).items():
            blocks[:, at : at + len(value)] = np.frombuffer(value, np.uint8)
    return data


# --- naive twins --------------------------------------------------------------------------------


def rounded(x: np.ndarray) -> np.ndarray:
    """float32 activations as int8 with one scale per 32: the values that remain, in float64."""
    groups = x.astype(np.float32).reshape(-1, 32)
    top = np.abs(groups).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    scale = top / np.float32(127)
    return (np.rint(groups * inverse) * scale.astype(np.float64)).reshape(x.shape)


def assert_product(t: GGMLType, data: np.ndarray, x: np.ndarray, got: np.ndarray) -> None:
    """Got (tokens, rows) is x . data^T within float32 summation error."""
    weights = libggml.dequantize(t, data, x.shape[-1]).astype(np.float64)
    values = x.astype(np.float64) if quant_type(t).is_float else rounded(x)
    error = np.abs(got - values @ weights.T)
    assert got.dtype == np.float32
    assert np.all(error <= RTOL * (np.abs(values) @ np.abs(weights).T))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same_weights(t: GGMLType, data: np.ndarray, n_cols: int) -> None:
    """Bit-equal to libggml, except that one NaN is as good as another."""
    got, want = dequantize(t, data, n_cols), libggml.dequantize(t, data, n_cols)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    if FUSED and quant_type(t).offsets:
        np.testing.assert_allclose(got[~nan], want[~nan], rtol=1e-5)
    else:
        assert np.array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


# --- dequantisation -----------------------------------------------------------------------------


@every_type
def test_dequantize_random_bytes_equals_libggml(t: GGMLType) -> None:
    assert_same_weights(t, random_bytes(t, 64, N_COLS), N_COLS)


@every_type
def test_dequantize_ordinary_scales_equals_libggml(t: GGMLType) -> None:
    assert_same_weights(t, moderate_rows(t, 37, N_COLS), N_COLS)


@every_type
@pytest.mark.parametrize("byte", [0x00, 0x01, 0x80, 0xFF])
def test_dequantize_constant_bytes_equals_libggml(t: GGMLType, byte: int) -> None:
    assert_same_weights(t, np.full((2, row_bytes(t, N_COLS)), byte, np.uint8), N_COLS)


@every_quantised_type
def test_dequantize_zero_blocks_are_zero_weights(t: GGMLType) -> None:
    weights = dequantize(t, np.zeros((1, row_bytes(t, N_COLS)), np.uint8), N_COLS)
    assert not weights.any()


# libggml's quantisers of the others search a code book that takes it many seconds to prepare
@pytest.mark.parametrize(
    "t", [t for t in TYPES if t.name[:3] not in ("IQ1", "IQ2")], ids=lambda t: t.name
)
def test_dequantize_quantised_normal_data_equals_libggml(t: GGMLType) -> None:
    weights = normal(4, N_COLS) * 0.02
    data = libggml.quantize(t, weights)
    assert_same_weights(t, data, N_COLS)
    error = np.sqrt(np.mean((dequantize(t, data, N_COLS) - weights) ** 2)) / 0.02
    assert error < 0.9  # ternary types: 0.79; a wrong order of weights would give at least 1


@every_type
def test_dequantize_single_blocks_and_odd_row_counts(t: GGMLType) -> None:
    n_cols = max(32, BLOCK[t].size)
    for rows in (1, 7, 37):
        assert_same_weights(t, random_bytes(t, rows, n_cols, rows), n_cols)


def test_dequantize_every_half_as_a_scale_equals_libggml() -> None:
    blocks = np.zeros((1 << 16, 34), np.uint8)
    blocks[:, :2] = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = random_bytes(GGMLType.Q8_0, 1, 32)[:, 2:]
    assert_same_weights(GGMLType.Q8_0, blocks, 32)


@pytest.mark.parametrize("t", [t for t in (GGMLType.MXFP4, GGMLType.NVFP4) if t in QUANT_TYPES])
def test_dequantize_every_byte_as_a_scale_equals_libggml(t: GGMLType) -> None:
    blocks = random_bytes(t, 256, BLOCK[t].size)
    blocks[:, 0] = np.arange(256)
    assert_same_weights(t, blocks, BLOCK[t].size)


# --- products -----------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("rows", [1, 7, 9, 37])
def test_matvec_equals_naive_product(t: GGMLType, rows: int) -> None:
    for n_cols in (max(32, BLOCK[t].size), N_COLS):
        data, x = moderate_rows(t, rows, n_cols), normal(n_cols)
        assert_product(t, data, x[None], matvec(t, data, x)[None])


@some_types
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7])
def test_matmul_equals_naive_product(t: GGMLType, tokens: int) -> None:
    for rows in (1, 9, 37):
        data, x = moderate_rows(t, rows, N_COLS), normal(tokens, N_COLS)
        assert_product(t, data, x, matmul(t, data, x))


def whole_numbers(t: GGMLType) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(data (9, row_bytes), x (4, 512), x . data^T) of which every sum is exact in float32."""
    n_cols = 512
    rng = np.random.default_rng(3)
    x = rng.integers(-3, 4, (4, n_cols)).astype(np.float32)
    x[:, ::32] = rng.choice([-127, 127], x[:, ::32].shape)  # makes every activation scale 1
    data = unit_scale_rows(t, 9, n_cols)
    weights = libggml.dequantize(t, data, n_cols).astype(np.float64)
    return data, x, (x @ weights.T).astype(np.float32)


@every_quantised_type
def test_matvec_of_whole_numbers_is_exact(t: GGMLType) -> None:
    data, x, exact = whole_numbers(t)
    for token in range(4):
        assert np.array_equal(matvec(t, data, x[token]), exact[token])


@some_types
def test_matmul_of_whole_numbers_is_exact(t: GGMLType) -> None:
    if quant_type(t).is_float:
        return
    data, x, exact = whole_numbers(t)
    assert np.array_equal(matmul(t, data, x), exact)


@some_types
def test_products_with_two_planes_have_a_256th_of_the_rounding(t: GGMLType) -> None:
    for n_cols in (max(32, BLOCK[t].size), N_COLS):
        data, x = moderate_rows(t, 9, n_cols), normal(4, n_cols)
        weights = libggml.dequantize(t, data, n_cols).astype(np.float64)
        together = matmul(t, data, x, planes=2)
        top = np.repeat(np.abs(x).reshape(4, -1, 32).max(axis=2), 32, axis=1)
        rounding = 1.01 * top / (127 * 256)  # at most 1 where 128 is cut to 127, else at most 1/2
        bound = (rounding + RTOL * np.abs(x)) @ np.abs(weights).T
        assert np.all(np.abs(together - x @ weights.T) <= bound)
        for token in range(4):
            assert np.array_equal(matvec(t, data, x[token], planes=2), together[token])


@some_types
def test_products_of_whole_numbers_in_two_planes_are_exact(t: GGMLType) -> None:
    if quant_type(t).is_float:
        return
    data, x, exact = whole_numbers(t)
    assert np.array_equal(matmul(t, data, x, planes=2), exact)
    assert np.array_equal(matvec(t, data, x[0], planes=2), exact[0])


@some_types
def test_products_do_not_depend_on_threads(t: GGMLType) -> None:
    data, x = moderate_rows(t, 37, N_COLS), normal(3, N_COLS)
    assert np.array_equal(dequantize(t, data, N_COLS), dequantize(t, data, N_COLS, threads=2))
    assert np.array_equal(matvec(t, data, x[0]), matvec(t, data, x[0], threads=2))
    assert np.array_equal(matmul(t, data, x), matmul(t, data, x, threads=2))


@some_types
def test_matmul_of_a_token_equals_matvec(t: GGMLType) -> None:
    data, x = moderate_rows(t, 9, N_COLS), normal(7, N_COLS)
    together = matmul(t, data, x)
    for token in range(7):
        assert np.array_equal(matvec(t, data, x[token]), together[token])


@pytest.mark.parametrize("t", [GGMLType.Q4_K, GGMLType.Q4_1], ids=lambda t: t.name)
def test_matmul_of_many_tokens_and_columns_equals_matvec(t: GGMLType) -> None:
    rows, n_cols, tokens = 6, 9 * 256, 130  # more than the kernel takes at a time
    blocks = rows * n_cols // BLOCK[t].size
    data, x = moderate_blocks(t, 1000)[:blocks].reshape(rows, -1), normal(tokens, n_cols)
    together = matmul(t, data, x)
    assert_product(t, data, x, together)
    for token in (0, 127, 128, 129):
        assert np.array_equal(matvec(t, data, x[token]), together[token])


# one per block size and kind: every type's decoding is checked above
@pytest.mark.parametrize(
    "t",
    [getattr(GGMLType, name) for name in ("F16", "Q4_1", "NVFP4", "Q1_0", "Q4_K")],
    ids=lambda t: t.name,
)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7])
def test_matmul_f32_takes_activations_as_they_are(t: GGMLType, tokens: int) -> None:
    for rows in (1, 9, 37):
        data, x = moderate_rows(t, rows, N_COLS), normal(tokens, N_COLS)
        got = matmul_f32(t, data, x)
        weights = libggml.dequantize(t, data, N_COLS).astype(np.float64)
        assert np.all(np.abs(got - x @ weights.T) <= RTOL * (np.abs(x) @ np.abs(weights).T))
        assert np.array_equal(matmul_f32(t, data, x[:1])[0], got[0])


@pytest.mark.parametrize("t", [GGMLType.F16, GGMLType.Q4_K], ids=lambda t: t.name)
def test_matmul_takes_tokens_by_index(t: GGMLType) -> None:
    data, x = moderate_rows(t, 9, N_COLS), normal(6, N_COLS)
    records = x if quant_type(t).is_float else activations.quantize(x)
    chosen = np.array([5, 0, 3, 3, 1])
    index, out = chosen * records.strides[0], np.empty((5, 9), np.float32)
    job = driver.job_table(1)
    for field, value in {
        Job.KERNEL: quant_type(t).address("matmul"),
        Job.W: data.ctypes.data,
        Job.ROW_BYTES: data.shape[1],
        Job.N_ROWS: 9,
        Job.N_COLS: N_COLS,
        Job.X: records.ctypes.data,
        Job.N_TOKENS: 5,
        Job.OUT: out.ctypes.data,
        Job.OUT_STRIDE: out.strides[0],
        Job.INDEX: index.ctypes.data,
    }.items():
        job[0, field] = value
    pool = Pool(1)
    if not quant_type(t).is_float:
        panel, starts = quant_type(t).panel(1), np.array([0, 5])
        made = driver.make_panels(pool, panel, records, N_COLS, starts, index=index)
        job[:, Job.PANELS] = made[0]
    driver.run_jobs(pool, job, 4)
    pool.close()
    assert np.array_equal(out, matmul(t, data, x)[chosen])


@some_types
def test_products_of_zero_activations_are_zero(t: GGMLType) -> None:
    data = moderate_rows(t, 7, N_COLS)
    assert not matvec(t, data, np.zeros(N_COLS, np.float32)).any()
    assert not matmul(t, data, np.zeros((2, N_COLS), np.float32)).any()


def test_activation_records_hold_what_the_naive_rounding_gives() -> None:
    x = normal(3, 96) * np.array([[1e-6], [1], [1e6]], np.float32)
    x[1, 32:64] = 0
    records = activations.quantize(x)
    q, scales = activations.record_values(records, 96)
    values = q.astype(np.float64) * np.repeat(scales, 32, axis=-1)
    assert np.array_equal(values, rounded(x))
    part = [np.ascontiguousarray(records[:, a:b]) for a, b in ((108, 120), (120, 144))]
    for sums, width in zip(part, (32, 16), strict=True):
        expected = values.reshape(3, -1, width).sum(axis=2)
        np.testing.assert_allclose(sums.view(np.float32), expected, rtol=1e-6)
    part = [np.ascontiguousarray(records[:, a:b]) for a, b in ((144, 156), (156, 180))]
    for whole, width in zip(part, (32, 16), strict=True):
        assert np.array_equal(whole.view(np.int32), q.reshape(3, -1, width).sum(axis=2))


def test_second_plane_of_a_record_never_holds_minus_128() -> None:
    x = np.full((1, 32), 1.5, np.float32)  # rounds to 2, 128 / 256 less remains
    x[0, 0] = 127
    records = activations.quantize(x, planes=2)
    assert records[0, 32:64].view(np.int8).min() == -127


def test_wrong_row_length_says_what_was_expected() -> None:
    with pytest.raises(QuantError, match="Q8_0: 64 columns need rows of 68 bytes"):
        dequantize(GGMLType.Q8_0, np.zeros((1, 67), np.uint8), 64)


def test_type_without_kernels_says_what_is_supported() -> None:
    with pytest.raises(QuantError, match="I32 has no kernels here; supported: F32, F16"):
        quant_type(GGMLType.I32)


# --- in processes of their own ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs mprotect")
def test_kernels_touch_no_byte_outside_their_arrays() -> None:
    done = subprocess.run(
        [sys.executable, str(TESTS / "guard_pages.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    assert done.returncode == 0, f"died in {done.stdout.splitlines()[-1:]}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generic", "avx2"])
def test_other_instruction_sets_compute_the_same(name: str) -> None:
    try:
        isa.choose(name)
    except ValueError as unable:
        pytest.skip(str(unable))
    exact = f"{TESTS / 'test_quant.py'}::test_matvec_of_whole_numbers_is_exact"
    some = [f"{exact}[{t.name}]" for t in QUANTISED if t.name in ("Q4_K", "IQ2_XS", "IQ4_NL")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some]
        + [str(TESTS / "test_simd.py")],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "KIMI_OFFLOAD_ISA": name},
    )
    assert done.returncode == 0, done.stdout
