"""Float products, exponentials and attention: exact enough, and the same bits in any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import libggml
import numba
import numpy as np
import pytest
import reference

from quant.ggml import GGMLType
from quant.products import dequantize, matmul_f32
from quant.run import attention, cache_rows
from quant.run.cache_rows import RowKind
from quant.run.pool import Pool
from quant.simd.floats import LANES, WIDE, exp_v, load_v, silu_v, store_v, sum_v


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Pool]]:
    made = [Pool(1), Pool(3)]
    yield made
    for pool in made:
        pool.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- lanes ------------------------------------------------------------------------------------


@numba.njit
def exp_all(x: int, n: int, out: int) -> None:
    for i in range(0, 4 * n, 4 * LANES):
        store_v(out + i, exp_v(load_v(x + i)))


@numba.njit
def silu_all(x: int, n: int, out: int) -> None:
    for i in range(0, 4 * n, 4 * LANES):
        store_v(out + i, silu_v(load_v(x + i)))


@numba.njit
def sum_one(x: int) -> float:
    return sum_v(load_v(x))


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the exact value rounded to float32."""
    return np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_exp_is_within_two_units_of_the_last_place() -> None:
    n = 1 << 18
    for low, high in ((-64, 88.7), (-1, 1), (-1e-3, 1e-3), (-64, -60)):
        x = np.linspace(low, high, n).astype(np.float32)
        out = np.empty_like(x)
        exp_all(x.ctypes.data, n, out.ctypes.data)
        assert ulps(out, np.exp(x.astype(np.float64))).max() <= 2


def test_exp_of_extremes() -> None:
    x = np.zeros(16, np.float32)
    x[:8] = -np.inf, np.inf, np.nan, -1e30, 1e30, -0.0, 89.5, -64.01
    out = np.empty_like(x)
    exp_all(x.ctypes.data, 16, out.ctypes.data)
    np.testing.assert_array_equal(out[:8], [0, np.inf, np.nan, 0, np.inf, 1, np.inf, 0])
    np.testing.assert_array_equal(out[8:], 1)


def test_silu(rng: np.random.Generator) -> None:
    x = normal(rng, 1024) * 20
    x[:4] = -1e4, 1e4, 0, -95
    out = np.empty_like(x)
    silu_all(x.ctypes.data, 1024, out.ctypes.data)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(
        out, wide / (1 + np.exp(np.minimum(-wide, 700))), rtol=6e-7, atol=1e-37
    )


def test_sum_over_lanes_is_a_tree(rng: np.random.Generator) -> None:
    x = normal(rng, LANES) * 10.0 ** rng.integers(-6, 6, LANES).astype(np.float32)
    tree = x
    while len(tree) > 1:
        tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
    assert sum_one(x.ctypes.data) == tree[0]


# --- products ---------------------------------------------------------------------------------

TYPES = [getattr(GGMLType, name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_K")]


@pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("n", [32, 96, 256, 1280])
def test_one_token_and_many_have_the_same_bits(
    rng: np.random.Generator, t: GGMLType, n: int
) -> None:
    if t == GGMLType.Q4_K and n % 256:
        pytest.skip("whole blocks only")
    x = normal(rng, 131, n)  # more tokens than a tile takes
    for rows in (1, 8, 21):
        w = normal(rng, rows, n)
        data = w.view(np.uint8) if t == GGMLType.F32 else libggml.quantize(t, w)
        many = matmul_f32(t, data, x)
        exact = x.astype(np.float64) @ dequantize(t, data, n).astype(np.float64).T
        assert np.linalg.norm(many - exact) < 1e-6 * np.linalg.norm(exact)
        for count in (1, 2, 5):
            np.testing.assert_array_equal(matmul_f32(t, data, x[:count]), many[:count])
        np.testing.assert_array_equal(matmul_f32(t, data, x, threads=2), many)
        one = np.concatenate([matmul_f32(t, data, x[i : i + 1]) for i in range(7)])
        np.testing.assert_array_equal(one, many[:7])


# --- attention --------------------------------------------------------------------------------

LAST = attention.SPLIT * attention.STRANDS + attention.SPLIT  # every strand, one of them twice


def attended(
    pool: Pool,
    q: np.ndarray,
    rows: np.ndarray,
    first: int,
    latent: int,
    kind: RowKind = RowKind.F32,
) -> np.ndarray:
    z = np.full((*q.shape[:2], latent), np.nan, np.float32)
    cache = cache_rows.encode(kind, rows, latent)
    attention.attend(pool, q, cache.ctypes.data, cache.strides[0], kind, first, z)
    return z


@pytest.mark.parametrize(
    ("n_tokens", "first", "heads"),
    [(9, 60, 4), (70, 0, 8), (70, 220, 20), (5, LAST - 3, 8), (3, 2 * LAST, 4)],
)
@pytest.mark.parametrize("kind", RowKind)
def test_attention_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    rng: np.random.Generator,
    pools: list[Pool],
    kind: RowKind,
    n_tokens: int,
    first: int,
    heads: int,
) -> None:
    width, latent = 80, 64
    rows = normal(rng, first + n_tokens, width)
    q = normal(rng, n_tokens, heads, width) * np.float32(0.3)
    whole = attended(pools[1], q, rows, first, latent, kind)
    cached = cache_rows.encode(kind, rows, latent)
    values = cache_rows.decode(kind, cached, latent, width - latent).astype(np.float64)
    exact = np.empty(whole.shape)
    for t in range(n_tokens):
        seen = values[: first + t + 1]
        exact[t] = reference.softmax(q[t].astype(np.float64) @ seen.T) @ seen[:, :latent]
    assert np.linalg.norm(whole - exact) < 2e-6 * np.linalg.norm(exact)
    for step in (1, 2, 7):
        for t in range(0, n_tokens, step):
            seen = rows[: first + min(t + step, n_tokens)]
            part = attended(pools[t % 2], q[t : t + step], seen, first + t, latent, kind)
            np.testing.assert_array_equal(part, whole[t : t + step])


def test_attention_in_pieces_for_its_partial_results(
    rng: np.random.Generator, pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, q = normal(rng, 400, 32), normal(rng, 100, 4, 32)
    whole = attended(pools[0], q, rows, 300, 16)
    monkeypatch.setattr(attention, "PARTIAL_BYTES", 1)
    np.testing.assert_array_equal(attended(pools[1], q, rows, 300, 16), whole)


def test_head_groups_do_not_change_a_bit(
    rng: np.random.Generator, pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, q = normal(rng, 130, 48), normal(rng, 6, 36, 48)
    whole = attended(pools[0], q, rows, 124, 32, RowKind.Q8_0)
    most = min(36, attention.ROWS)  # what a task has room for
    for shape in ((4, 1), (8, 3), (most, 1), (16, 2)):
        monkeypatch.setattr(attention, "task_shape", lambda *_, shape=shape: shape)
        got = attended(pools[1], q, rows, 124, 32, RowKind.Q8_0)
        np.testing.assert_array_equal(got, whole)


# --- in processes of their own ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not WIDE, reason="this processor has no wider vectors than those tested above")
def test_narrow_vectors_pass_too() -> None:
    some = "not other and not narrow and (exp or tree or (same_bits and (Q8_0 or 70-220)))"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", some],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "KIMI_OFFLOAD_ISA": "avx2"},
    )
    assert done.returncode == 0, done.stdout
