"""The small operations of the CPU, one by one, against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference

from offload.devices import cpu_rows
from offload.devices.base import Router, Routing
from offload.weights import matrix_from_array
from quant.run import activations, attention, attention_expanded, cache_rows, layer_ops
from quant.run.cache_rows import RowKind
from quant.run.fields import write
from quant.run.pool import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool(2)
    yield made
    made.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def error(x: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


# --- norms and rotation -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 40, 513])
def test_rms_norm(pool: Pool, rng: np.random.Generator, n: int) -> None:
    x, weight = normal(rng, 3, n) * 30, normal(rng, n)
    got = cpu_rows.rms_norm(pool, x, weight, 1e-5)
    exact = reference.rms_norm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
    np.testing.assert_allclose(got, exact, rtol=1e-6)


def test_rms_norm_of_zeros_and_of_tiny_values(pool: Pool) -> None:
    x = np.zeros((3, 24), np.float32)
    x[1], x[2] = 1e-30, 1e15
    got = cpu_rows.rms_norm(pool, x, np.ones(24, np.float32), 1e-6)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1], 1e-27, rtol=1e-6)
    np.testing.assert_allclose(got[2], 1, rtol=1e-6)


@pytest.mark.parametrize(("heads", "d"), [(1, 64), (3, 12), (2, 2)])
def test_rope_turns_adjacent_pairs(
    pool: Pool, rng: np.random.Generator, heads: int, d: int
) -> None:
    angles = rng.uniform(-9, 9, (4, d // 2))
    whole = normal(rng, 4, heads, d + 5)
    before = whole.copy()
    cpu_rows.rope(pool, whole[:, :, 5:], *(f(angles).astype(np.float32) for f in (np.cos, np.sin)))
    np.testing.assert_array_equal(whole[:, :, :5], before[:, :, :5])
    exact = [reference.rotate(before[t, :, 5:].astype(np.float64), angles[t], 1) for t in range(4)]
    np.testing.assert_allclose(whole[:, :, 5:], exact, atol=1e-6)


# --- the router -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k", "groups"),
    [(384, 8, (1, 1)), (16, 4, (4, 2)), (24, 3, (8, 1)), (6, 6, (1, 1)), (5, 1, (1, 1))],
)
def test_router(
    rng: np.random.Generator,
    sigmoid: bool,
    normalise: bool,
    experts: int,
    top_k: int,
    groups: tuple[int, int],
) -> None:
    logits = normal(rng, 50, experts) * 3
    for bias in (normal(rng, experts) * 0.2, np.zeros(0, np.float32)):
        rules = {"sigmoid": sigmoid, "groups": groups, "normalise": normalise, "scale": 2.827}
        got = chosen(logits, bias, top_k, **rules)
        for t in range(len(logits)):
            b = bias.astype(np.float64) if bias.size else None
            ids, weights = reference.route(logits[t].astype(np.float64), b, top_k, **rules)
            assert got.expert_ids[t].tolist() == ids
            np.testing.assert_allclose(got.weights[t], weights, rtol=2e-6)


def chosen(logits: np.ndarray, bias: np.ndarray, top_k: int, **rules: Any) -> Routing:
    n_experts = logits.shape[1]
    gate = matrix_from_array("gate", np.zeros((n_experts, 32), np.float32))
    norm = np.ones(32, np.float32)
    return cpu_rows.route(logits, Router(norm=norm, gate=gate, bias=bias, top_k=top_k, **rules))


def route(logits: list[float], bias: list[float], top_k: int, **rules: Any) -> Routing:
    """Of one token."""
    standard = {"sigmoid": True, "groups": (1, 1), "normalise": False, "scale": 1.0}
    one = np.array([logits], np.float32)
    return chosen(one, np.array(bias, np.float32), top_k, **(standard | rules))


def test_router_ties_go_to_the_lower_index() -> None:
    assert route([0.0] * 8, [], 3).expert_ids.tolist() == [[0, 1, 2]]
    assert route([0, 1, 1, 0, 1, 0], [], 4).expert_ids.tolist() == [[1, 2, 4, 0]]
    tied = route([0.0] * 8, [], 4, groups=(4, 2))
    assert tied.expert_ids.tolist() == [[0, 1, 2, 3]]


def test_router_bias_chooses_but_does_not_weigh() -> None:
    got = route([0, 0, 0, 0], [0, 0, 0, 5], 1)
    assert got.expert_ids.tolist() == [[3]]
    assert got.weights.tolist() == [[0.5]]
    # a bias of -1 makes every choice negative; the best of them still counts
    got = route([0, 2, 1, 0], [-1, -1, -1, -1], 2)
    assert got.expert_ids.tolist() == [[1, 2]]


def test_router_judges_a_group_by_its_two_best() -> None:
    # one star in group 0; two good ones in group 1
    logits = [4, -9, 2, 2, 0, 0]
    got = route(logits, [], 2, groups=(3, 1))
    assert sorted(got.expert_ids[0].tolist()) == [2, 3]


def test_router_survives_vanishing_scores() -> None:
    got = route([-200, -300, -400, -500], [], 2, normalise=True)
    assert got.expert_ids.tolist() == [[0, 1]]
    assert np.isfinite(got.weights).all()
    got = route([900, -900, 0, 0], [], 2, sigmoid=False)
    assert got.expert_ids.tolist() == [[0, 1]]
    np.testing.assert_array_equal(got.weights, [[1, 0]])


@pytest.mark.parametrize("sigmoid", [True, False])
def test_router_chooses_no_expert_twice_whatever_the_logits_are(sigmoid: bool) -> None:
    """The tapes' schedule has room for one visit of a token to an expert."""
    for value in (np.nan, np.inf, -np.inf):
        for at in (0, 3, 7):
            logits = np.zeros(8)
            logits[at] = value
            got = route(logits.tolist(), [], 4, sigmoid=sigmoid, groups=(4, 2))
            assert len(set(got.expert_ids[0].tolist())) == 4
            assert np.isnan(got.weights).all()


# --- the weighted sum ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 8, 45])
def test_combine(pool: Pool, rng: np.random.Generator, n: int) -> None:
    parts, weights, out = normal(rng, 12, n), normal(rng, 5, 2), normal(rng, 5, n)
    slots = rng.integers(0, 12, (5, 2))
    exact = out + np.einsum("tk,tkn->tn", weights.astype(np.float64), parts[slots])
    context = write(
        layer_ops.Combine, PARTS=parts.ctypes.data, PARTS_STRIDE=4 * n, SLOTS=slots.ctypes.data,
        SLOTS_STRIDE=16, WEIGHTS=weights.ctypes.data, WEIGHTS_STRIDE=8, COUNT=2, N=n,
        X=out.ctypes.data, X_STRIDE=4 * n,
    )  # fmt: skip
    pool.run(layer_ops.combine_task.address, context.ctypes.data, len(out))
    np.testing.assert_allclose(out, exact, atol=1e-5)


# --- attention --------------------------------------------------------------------------------


def naive_attention(q: np.ndarray, rows: np.ndarray, first: int, latent: int) -> np.ndarray:
    q, rows = q.astype(np.float64), rows.astype(np.float64)
    out = np.empty((*q.shape[:2], latent))
    for t in range(len(q)):
        seen = rows[: first + t + 1]
        out[t] = reference.softmax(q[t] @ seen.T) @ seen[:, :latent]
    return out


@pytest.mark.parametrize("kind", RowKind)
@pytest.mark.parametrize(
    ("n_tokens", "first", "heads"), [(1, 0, 4), (1, 63, 8), (1, 200, 4), (5, 30, 4), (40, 0, 12)]
)
def test_absorbed_attention(
    rng: np.random.Generator, kind: RowKind, n_tokens: int, first: int, heads: int
) -> None:
    width, latent = 64, 48
    rows = normal(rng, first + n_tokens + 3, width)
    rows[first + n_tokens :] = np.nan  # the future must not be looked at
    cache = cache_rows.encode(kind, rows, latent)
    rows = cache_rows.decode(kind, cache, latent, width - latent)
    q = normal(rng, n_tokens, heads, width)
    z = np.empty((n_tokens, heads, latent), np.float32)
    pool = Pool(2)
    attention.attend(pool, q, cache.ctypes.data, cache.strides[0], kind, first, z)
    pool.close()
    assert error(z, naive_attention(q, rows, first, latent)) < 2e-6


@pytest.mark.parametrize("kind", RowKind)
@pytest.mark.parametrize(("n_tokens", "first", "latent"), [(4, 0, 48), (68, 130, 64)])
def test_expanded_attention(
    rng: np.random.Generator, kind: RowKind, n_tokens: int, first: int, latent: int
) -> None:
    heads, nope, rope, values = 3, 32, 16, 16
    cache = cache_rows.encode(kind, normal(rng, first + n_tokens, latent + rope), latent)
    rows = cache_rows.decode(kind, cache, latent, rope)
    k_b, v_b = normal(rng, heads, latent, nope) / 8, normal(rng, heads, values, latent)
    q, z = normal(rng, n_tokens, heads, nope + rope), normal(rng, n_tokens, heads, values)
    pool = Pool(2)
    where = cache.ctypes.data, cache.strides[0], kind, len(rows), latent, first
    attention_expanded.attend_expanded(pool, q, k_b, v_b, *where, z)
    pool.close()
    wide = np.concatenate((np.einsum("tan,aln->tal", q[..., :nope], k_b), q[..., nope:]), 2)
    exact = np.einsum("tal,avl->tav", naive_attention(wide, rows, first, latent), v_b)
    assert error(z, exact) < 5e-6


def test_attention_to_one_far_stronger_position(rng: np.random.Generator) -> None:
    """Scores of thousands neither overflow nor lose the position, wherever it stands."""
    for place in (0, 33, 99):
        rows = normal(rng, 100, 16)
        q = np.ones((1, 4, 16), np.float32)
        rows[place] = 500
        z = np.empty((1, 4, 16), np.float32)
        pool = Pool(1)
        attention.attend(pool, q, rows.ctypes.data, rows.strides[0], RowKind.F32, 99, z)
        pool.close()
        np.testing.assert_array_equal(z, 500)


# --- activations ------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [1, 2])
def test_records_hold_every_value_within_half_a_step(rng: np.random.Generator, planes: int) -> None:
    n = 256
    x = normal(rng, 6, n)
    x[0], x[1] = 0, 3.25  # a row of zeros, a row of maxima
    x[2, ::2] = 0
    x[3] *= 1e30
    x[4] *= 1e-28
    x[5, 32:64] = 0  # one group of zeros
    records = activations.quantize(x, planes)
    q, scales = activations.record_values(records, n, planes)
    wide = np.repeat(scales, 32, axis=1).astype(np.float64)
    steps = 127 if planes == 1 else 127 * 256
    top = np.abs(x.reshape(6, -1, 32)).max(-1)
    np.testing.assert_allclose(scales, top / steps, rtol=1e-6)
    assert np.abs(q).max() <= steps + 127 * (planes == 2)
    # the low plane ends at 127, so an upper half-step of 128 costs one whole small step
    assert (np.abs(x - q * wide) <= wide * (0.5 if planes == 1 else 1.0) * 1.001).all()
    start = planes * n + n // 4
    sums = np.ascontiguousarray(records[:, start : start + n // 4]).view(np.float32)
    exact = (q * wide).reshape(6, -1, 16).sum(-1)
    np.testing.assert_allclose(sums, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max(-1).min())


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("top", [1e-45, 1e-39, 1.2e-38, 1e-37, 3.5e-37, 4e-37, 1e-36, 9e-34, 3e38])
def test_records_of_extreme_values_stay_finite(planes: int, top: float) -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :3] = top, -top, top / 3
    records = activations.quantize(x, planes)
    q, scales = activations.record_values(records, 64, planes)
    values = q * np.repeat(scales, 32, axis=1).astype(np.float64)
    assert np.abs(values - x).max() <= max(np.float32(top) / 100, 1e-33)
    start = planes * 64 + 16
    sums = np.ascontiguousarray(records[:, start : start + 16]).view(np.float32)
    np.testing.assert_allclose(sums[0, 0], values[0, :16].sum(), rtol=1e-3, atol=1e-36)
    np.testing.assert_array_equal(sums[0, 1:], 0)
    np.testing.assert_array_equal(values[0, 3:], 0)


def test_records_in_parallel_equal_the_single_ones(pool: Pool, rng: np.random.Generator) -> None:
    x = normal(rng, 9, 96)
    for planes in (1, 2):
        out = np.zeros((9, activations.record_bytes(96, planes)), np.uint8)
        activations.quantize_rows(pool, x, out, planes)
        used = planes * 96 + 96 // 8 * 7
        np.testing.assert_array_equal(out[:, :used], activations.quantize(x, planes)[:, :used])
