"""Rows of the latent cache: what is stored, how near it is, and what becomes of odd values."""

from __future__ import annotations

import numpy as np
import pytest

from quant.compiler.jit import kernel
from quant.run import cache_rows
from quant.run.cache_rows import RowKind, decode, encode, row_bytes

SHAPES = [(512, 64), (64, 16), (48, 16), (48, 32), (16, 16), (80, 48)]  # latent, rope
Q8_0 = RowKind.Q8_0


@kernel()
def widen(kind: int, at: int, size: int, n: int, latent: int, rope: int, out: int) -> None:
    cache_rows.widen_rows(kind, at, size, n, latent, rope, out)


def twin(rows: np.ndarray, latent: int) -> np.ndarray:
    """Q8_0 rows of finite values, group by group."""
    q, steps = [], []
    for part in (rows[:, :latent], rows[:, latent:]):
        for c in range(0, part.shape[1], 32):
            x = part[:, c : c + 32]
            top = np.abs(x).max(1, keepdims=True)
            d = (top / np.float32(127) + np.float32(2**-25)).astype(np.float16)
            wide = d.astype(np.float32)
            inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
            q.append(np.clip(np.rint(x * inverse), -127, 127).astype(np.int8).view(np.uint8))
            steps.append(d.view(np.uint8))
    return np.concatenate((*q, *steps), 1)


def some_rows(latent: int, rope: int) -> np.ndarray:
    """Rows of many sizes: zeros, denormal halves, maxima, parts of unlike sizes."""
    rng = np.random.default_rng(latent + rope)
    rows = rng.standard_normal((12, latent + rope)).astype(np.float32)
    rows[0] = 0
    rows[1] = 3.25
    rows[2, ::2] = 0
    rows[3:9] *= np.float32([1e-2, 1e-4, 1e-6, 1e-30, 1e5, 2e6])[:, None]
    rows[9, :latent] *= 1e3
    rows[10] = np.linspace(-1, 1, latent + rope)
    return rows


@pytest.mark.parametrize(("latent", "rope"), SHAPES)
def test_q8_0_is_what_the_twin_says(latent: int, rope: int) -> None:
    rows = some_rows(latent, rope)
    data = encode(Q8_0, rows, latent)
    assert data.shape == (len(rows), row_bytes(Q8_0, latent, rope))
    np.testing.assert_array_equal(data, twin(rows, latent))
    np.testing.assert_array_equal(data[0], 0)


@pytest.mark.parametrize(("latent", "rope"), SHAPES)
def test_q8_0_is_within_half_a_step(latent: int, rope: int) -> None:
    rows = some_rows(latent, rope)
    got = decode(Q8_0, encode(Q8_0, rows, latent), latent, rope)
    for first, last in ((0, latent), (latent, latent + rope)):
        for c in range(first, last, 32):
            group = slice(c, min(c + 32, last))
            top = np.abs(rows[:, group]).max(1, keepdims=True)
            far = np.abs(got[:, group] - rows[:, group]).max(1, keepdims=True)
            assert (far <= top / 254 * 1.001 + 2**-25).all()


@pytest.mark.parametrize("kind", [RowKind.F32, RowKind.F16])
def test_floats_are_numpys(kind: RowKind) -> None:
    rows = some_rows(48, 16)
    with np.errstate(over="ignore"):
        expected = rows if kind == RowKind.F32 else rows.astype(np.float16)
    np.testing.assert_array_equal(encode(kind, rows, 48), expected.view(np.uint8))


@pytest.mark.parametrize("kind", RowKind)
@pytest.mark.parametrize(("latent", "rope"), SHAPES)
def test_kernels_read_what_decode_reads(kind: RowKind, latent: int, rope: int) -> None:
    rows = some_rows(latent, rope)
    data = encode(kind, rows, latent)
    size = data.shape[1]
    apart = np.full((len(rows), size + 20), 255, np.uint8)  # rows need not touch
    apart[:, :size] = data
    out = np.empty_like(rows)
    where = apart.ctypes.data, apart.strides[0], len(rows), latent, rope, out.ctypes.data
    widen(int(kind), *where)
    np.testing.assert_array_equal(out, decode(kind, data, latent, rope))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 31, 32, 63, 79])
@pytest.mark.parametrize("kind", RowKind)
def test_what_is_no_number_stays_visible(kind: RowKind, at: int, bad: float) -> None:
    rows = np.ones((3, 80), np.float32)
    rows[1, at] = bad
    got = decode(kind, encode(kind, rows, 48), 48, 32)
    assert not np.isfinite(got[1, at])
    np.testing.assert_allclose(got[[0, 2]], 1, rtol=1e-3)  # neighbours keep their values


def test_q8_0_holds_more_than_halves_do_and_says_where_it_ends() -> None:
    rows = np.full((2, 32), 8e6, np.float32)
    rows[1] = 9e6
    with np.errstate(invalid="ignore", over="ignore"):
        got = decode(Q8_0, encode(Q8_0, rows, 16), 16, 16)
    np.testing.assert_allclose(got[0], 8e6, rtol=4e-3)
    assert not np.isfinite(got[1]).any()


def test_sizes() -> None:
    assert [row_bytes(kind, 512, 64) for kind in RowKind] == [2304, 1152, 612]
    assert row_bytes(Q8_0, 48, 16) == 64 + 2 * 3
