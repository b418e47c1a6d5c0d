"""Products on the file's bytes: to the last bit what kernels.py defines, whatever the shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import libggml
import numba
import numpy as np
import pytest
from cpu_types import EVERY_TYPE, SOME
from test_quant import moderate_blocks, normal

from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType
from quant.matvec import matvec_lanes
from quant.products import matmul, matvec
from quant.quant_type import QuantType
from quant.registry import QUANT_TYPES, quant_type
from quant.run import activations
from quant.types.tq1_0_matvec import trits_of

TESTS = Path(__file__).parent
OF_32 = [GGMLType[n] for n in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")]
OF_256 = [GGMLType[n] for n in ("TQ1_0", "TQ2_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")]
IN_ORDER = [GGMLType[n] for n in ("Q2_K", "Q4_K", "TQ2_0")]  # `matvec_lanes`
TYPES = [t for t in OF_32 + OF_256 if t in QUANT_TYPES]
TWO_PLANES = ("TQ1_0", "Q8_0", "Q4_K", "Q6_K")  # what attention and shared experts take
every_type = pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)
both_planes = pytest.mark.parametrize("planes", [1, 2])


def rows_of(t: GGMLType, rows: int, n_cols: int) -> np.ndarray:
    """(rows, row_bytes) uint8: blocks of ordinary size in no order."""
    blocks = moderate_blocks(t, 64)
    pick = np.random.default_rng([rows, n_cols]).integers(0, 64, rows * n_cols // BLOCK[t].size)
    return blocks[pick].reshape(rows, -1)


# --- the definition in numpy ----------------------------------------------------------------------


def decoded(q: QuantType, data: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights (rows, n) int8, scales and offsets (rows, n / 16) float32) of a type's `decode`."""
    decode: Any = q.decode

    @numba.njit
    def block(p: int, w: int, s: int, o: int) -> None:
        decode(p, w, s, o)

    size, n_bytes = BLOCK[q.ggml_type]
    blocks = np.ascontiguousarray(data).reshape(-1, n_bytes)
    w = np.zeros((len(blocks), 256), np.int8)
    s, o = np.zeros((len(blocks), 32), np.float32), np.zeros((len(blocks), 32), np.float32)
    for i in range(len(blocks)):
        block(blocks[i].ctypes.data, w[i].ctypes.data, s[i].ctypes.data, o[i].ctypes.data)
    parts = w[:, :size], s[:, : size // 16], o[:, : size // 16]
    return tuple(np.ascontiguousarray(x).reshape(len(data), -1) for x in parts)


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z rounded once: 64 bits of mantissa hold the product of two floats exactly."""
    wide = (a.astype(np.longdouble) for a in (x, y, z))
    a, b, c = wide
    return (a * b + c).astype(np.float32)


def by_definition(q: QuantType, data: np.ndarray, record: np.ndarray, n: int, planes: int) -> Any:
    """Row . record for all rows, as the head of kernels.py says."""
    group = q.group
    lanes = 256 // group
    w, s, o = decoded(q, data, n)
    values, scales = activations.record_values(record, n, planes)
    dots = (w.astype(np.int64) * values).reshape(len(data), -1, group).sum(axis=2)
    isum = values.reshape(-1, group).sum(axis=1)
    s, o = s[:, :: group // 16], o[:, :: group // 16]
    scales = np.repeat(scales, 32 // group)
    acc, low = np.zeros((2, len(data), lanes), np.float32)
    for g in range(n // group):
        k = g % lanes
        acc[:, k] = fma(dots[:, g].astype(np.float32), s[:, g] * scales[g], acc[:, k])
        if q.offsets:
            low[:, k] = fma(o[:, g], scales[g] * isum[g].astype(np.float32), low[:, k])
    total = acc + low
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0]


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is a double here")
@pytest.mark.parametrize(
    ("t", "planes"),
    [
        (t, planes)
        for t in TYPES
        for planes in (1, 2)
        if t.name in ("TQ1_0", "Q8_0", "Q4_1", "MXFP4", "Q2_K", "Q3_K", "Q4_K")
        and (planes == 1 or t in SOME)
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_matvec_is_the_definition(t: GGMLType, planes: int) -> None:
    n, q = (1120 if t in OF_32 else 1280), quant_type(t)
    data, x = rows_of(t, 19, n), normal(n)
    want = by_definition(q, data, activations.quantize(x, planes), n, planes)
    assert np.array_equal(matvec(t, data, x, planes=planes), want)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "planes"),
    [(t, 1) for t in TYPES if t in SOME] + [(t, 2) for t in TYPES if t.name in TWO_PLANES],
    ids=lambda x: getattr(x, "name", x),
)
def test_matvec_has_the_bits_of_matmul_for_any_shape(t: GGMLType, planes: int) -> None:
    shapes = [(1, 256), (2, 512), (3, 768), (5, 1280), (16, 256), (17, 512), (23, 256), (34, 768)]
    if t in OF_32:
        shapes += [(1, 32), (2, 64), (3, 480), (4, 544), (5, 992), (2, 1056)]
    for rows, n_cols in shapes:
        data, x = rows_of(t, rows, n_cols), normal(2, n_cols)
        together = matmul(t, data, x, planes=planes)
        for token in range(2):
            assert np.array_equal(matvec(t, data, x[token], planes=planes), together[token])


@pytest.mark.parametrize("t", [t for t in IN_ORDER if t in SOME], ids=lambda t: t.name)
def test_rows_wider_than_the_activations_kept_in_order(t: GGMLType) -> None:
    n = matvec_lanes.COLS + 768
    data, x = rows_of(t, 3, n), normal(n)
    assert np.array_equal(matvec(t, data, x), matmul(t, data, x[None])[0])


QUANTISED = [t for t, q in QUANT_TYPES.items() if not q.is_float]


@pytest.mark.parametrize("t", QUANTISED, ids=lambda t: t.name)
def test_weights_of_any_bytes_are_among_those_named(t: GGMLType) -> None:
    q = quant_type(t)
    bytes_ = np.random.default_rng(int(t)).integers(0, 256, (512, BLOCK[t].n_bytes), np.uint8)
    bytes_[:256] = np.arange(256, dtype=np.uint8)[:, None]
    found = decoded(q, bytes_, BLOCK[t].size)[0]
    assert set(np.unique(found).tolist()) <= set(q.weights)
    assert q.weights == range(-128, 128) or {q.weights[0], q.weights[-1]} <= set(found.flat)


# libggml's quantisers of the others search a code book that takes it many seconds to prepare
@pytest.mark.parametrize(
    ("t", "planes"),
    [
        pytest.param(t, planes, id=f"{t.name}-{planes}")
        for t in SOME
        for planes in (1, 2)
        if t in QUANTISED
        and t.name[:3] not in ("IQ1", "IQ2")
        and (planes == 1 or t.name in TWO_PLANES)
    ],
)
def test_products_of_the_largest_weights_and_activations_fit(t: GGMLType, planes: int) -> None:
    n_cols, signs = 512, np.random.default_rng(5).choice(np.float32([-1, 1]), (4, 512))
    x = np.concatenate([np.ones((1, n_cols), np.float32), -np.ones((1, n_cols), np.float32), signs])
    rows = np.concatenate([x, x])
    rows[: len(x), ::16] *= -1  # what lets some quantisers reach the last of their values
    data = libggml.quantize(t, rows)
    together = matmul(t, data, x, planes=planes)
    for token, got in zip(x, together, strict=True):
        assert np.array_equal(matvec(t, data, token, planes=planes), got)


@every_type
def test_scales_that_are_no_numbers_stay_in_their_rows(t: GGMLType) -> None:
    n_cols = 544 if t in OF_32 else 768
    data, x = rows_of(t, 21, n_cols).copy(), normal(n_cols)
    want = matvec(t, data, x)
    data[4] = 0xFF
    got = matvec(t, data, x)
    others = np.arange(21) != 4
    assert np.array_equal(got[others], want[others])


# --- TQ1_0 ----------------------------------------------------------------------------------------


@both_planes
def test_tq1_0_every_byte_in_every_place(planes: int) -> None:
    rng = np.random.default_rng(0)
    blocks = np.stack([rng.permutation(256)[:54] for _ in range(512)]).astype(np.uint8)
    blocks[:256, :52] = np.arange(256)[:, None]
    blocks[:, 52:] = np.frombuffer(b"\0\x3c", np.uint8)  # d = 1
    trits = np.array([trits_of(byte) for byte in range(256)])[blocks[:, :52]] - 1
    weights = np.concatenate(
        [trits[:, part].transpose(0, 2, 1).reshape(512, -1) for part in (slice(32), slice(32, 48))]
        + [trits[:, 48:, :4].transpose(0, 2, 1).reshape(512, -1)],
        axis=1,
    )
    x = rng.integers(-126, 127, 256).astype(np.float32)
    x[::32] = 127  # the scale of activations is 1
    got = matvec(GGMLType.TQ1_0, blocks, x, planes=planes)
    assert np.array_equal(got, (weights @ x).astype(np.float32))


# --- other instruction sets -----------------------------------------------------------------------

PROGRAM = """
import sys, numpy as np
from quant.ggml import GGMLType
from quant.products import matvec
file = np.load(sys.argv[1])
for name in sys.argv[2:]:
    for planes in (1, 2):
        got = matvec(GGMLType[name], file[name], file[f"x_{name}"], planes=planes)
        assert np.array_equal(got, file[f"{name}_{planes}"]), (name, planes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in isa.NAMES if n not in (isa.NAME, "avx512")])
def test_other_instruction_sets_have_the_same_bits(name: str, tmp_path: Path) -> None:
    try:
        isa.choose(name)
    except ValueError as unable:
        pytest.skip(str(unable))
    some = {"TQ1_0", "Q8_0"}
    if EVERY_TYPE and name == "avx2":
        some |= {"IQ4_NL", "Q6_K"}
    arrays: dict[str, np.ndarray] = {}
    for t in (t for t in TYPES if t.name in some):
        n_cols = 544 if t in OF_32 else 768
        data, x = rows_of(t, 5, n_cols), normal(n_cols)
        arrays |= {t.name: data, f"x_{t.name}": x}
        arrays |= {f"{t.name}_{p}": matvec(t, data, x, planes=p) for p in (1, 2)}
    np.savez(tmp_path / "products.npz", **arrays)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "products.npz"), *sorted(some)],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "KIMI_OFFLOAD_ISA": name},
    )
    assert done.returncode == 0, done.stderr
