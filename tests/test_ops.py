"""The CPU's operations, one by one, against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import libggml
import numpy as np
import pytest
import reference
from offload.devices.cpu_mlp import group
from offload.devices.cpu_ops import CpuOps

from offload.devices.base import GatedMLP, Routing
from offload.weights import Matrix, matrix_from_array
from quant.ggml import GGMLType, row_bytes
from quant.registry import quant_type
from quant.run import activations, attention, attention_expanded, cache_rows, layer_ops
from quant.run.cache_rows import RowKind
from quant.run.pool import Pool

F32, Q4_K, Q8_0, TQ1_0 = GGMLType.F32, GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.TQ1_0


@pytest.fixture(scope="module")
def ops() -> Iterator[CpuOps]:
    made = CpuOps(2)
    yield made
    made.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def error(x: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


def matrix(kind: GGMLType, x: np.ndarray) -> tuple[Matrix, np.ndarray]:
    """(Matrix, its float64 values) of x (count, rows, cols) in a type."""
    if kind == F32:
        return matrix_from_array("m", x), x.astype(np.float64)
    count, n_rows, n_cols = x.shape
    data = libggml.quantize(kind, x.reshape(-1, n_cols))
    size = row_bytes(kind, n_cols)
    made = Matrix(
        name="m", quant=quant_type(kind), count=count, n_rows=n_rows, n_cols=n_cols,
        used_cols=n_cols, row_bytes=size, stride=n_rows * size, address=data.ctypes.data,
        owner=data,
    )  # fmt: skip
    return made, libggml.dequantize(kind, data, n_cols).reshape(x.shape).astype(np.float64)


# --- norms and rotation -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 40, 513])
def test_rms_norm(ops: CpuOps, rng: np.random.Generator, n: int) -> None:
    x, weight = normal(rng, 3, n) * 30, normal(rng, n)
    got = ops.rms_norm(x, weight, 1e-5)
    exact = reference.rms_norm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
    np.testing.assert_allclose(got, exact, rtol=1e-6)


def test_rms_norm_of_zeros_and_of_tiny_values(ops: CpuOps) -> None:
    x = np.zeros((3, 24), np.float32)
    x[1], x[2] = 1e-30, 1e15
    got = ops.rms_norm(x, np.ones(24, np.float32), 1e-6)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1], 1e-27, rtol=1e-6)
    np.testing.assert_allclose(got[2], 1, rtol=1e-6)


@pytest.mark.parametrize(("heads", "d"), [(1, 64), (3, 12), (2, 2)])
def test_rope_turns_adjacent_pairs(
    ops: CpuOps, rng: np.random.Generator, heads: int, d: int
) -> None:
    angles = rng.uniform(-9, 9, (4, d // 2))
    whole = normal(rng, 4, heads, d + 5)
    before = whole.copy()
    ops.rope(whole[:, :, 5:], *(f(angles).astype(np.float32) for f in (np.cos, np.sin)))
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
    ops: CpuOps,
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
        got = ops.route(logits, bias, top_k, **rules)
        for t in range(len(logits)):
            b = bias.astype(np.float64) if bias.size else None
            ids, weights = reference.route(logits[t].astype(np.float64), b, top_k, **rules)
            assert got.expert_ids[t].tolist() == ids
            np.testing.assert_allclose(got.weights[t], weights, rtol=2e-6)


def route(ops: CpuOps, logits: list[float], bias: list[float], top_k: int, **rules: object):
    standard = {"sigmoid": True, "groups": (1, 1), "normalise": False, "scale": 1.0}
    one = np.array([logits], np.float32)
    return ops.route(one, np.array(bias, np.float32), top_k, **(standard | rules))


def test_router_ties_go_to_the_lower_index(ops: CpuOps) -> None:
    assert route(ops, [0.0] * 8, [], 3).expert_ids.tolist() == [[0, 1, 2]]
    assert route(ops, [0, 1, 1, 0, 1, 0], [], 4).expert_ids.tolist() == [[1, 2, 4, 0]]
    tied = route(ops, [0.0] * 8, [], 4, groups=(4, 2))
    assert tied.expert_ids.tolist() == [[0, 1, 2, 3]]


def test_router_bias_chooses_but_does_not_weigh(ops: CpuOps) -> None:
    got = route(ops, [0, 0, 0, 0], [0, 0, 0, 5], 1)
    assert got.expert_ids.tolist() == [[3]]
    assert got.weights.tolist() == [[0.5]]
    # a bias of -1 makes every choice negative; the best of them still counts
    got = route(ops, [0, 2, 1, 0], [-1, -1, -1, -1], 2)
    assert got.expert_ids.tolist() == [[1, 2]]


def test_router_judges_a_group_by_its_two_best(ops: CpuOps) -> None:
    # one star in group 0; two good ones in group 1
    logits = [4, -9, 2, 2, 0, 0]
    got = route(ops, logits, [], 2, groups=(3, 1))
    assert sorted(got.expert_ids[0].tolist()) == [2, 3]


def test_router_survives_vanishing_scores(ops: CpuOps) -> None:
    got = route(ops, [-200, -300, -400, -500], [], 2, normalise=True)
    assert got.expert_ids.tolist() == [[0, 1]]
    assert np.isfinite(got.weights).all()
    got = route(ops, [900, -900, 0, 0], [], 2, sigmoid=False)
    assert got.expert_ids.tolist() == [[0, 1]]
    np.testing.assert_array_equal(got.weights, [[1, 0]])


# --- grouping and the weighted sum ------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "top_k", "experts"), [(1, 1, 1), (1, 8, 64), (50, 4, 16)])
def test_group_by_expert(rng: np.random.Generator, n_tokens: int, top_k: int, experts: int) -> None:
    ids = np.array([rng.permutation(experts)[:top_k] for _ in range(n_tokens)])
    work, slots = group(ids, experts)
    used = work.experts[: work.used].tolist()
    assert used == sorted(set(ids.ravel().tolist()))
    assert work.starts[0] == 0
    assert work.starts[work.used] == ids.size
    for expert, (start, stop) in zip(used, pairwise(work.starts[: work.used + 1]), strict=True):
        tokens = work.tokens[start:stop].tolist()
        assert tokens == [t for t in range(n_tokens) if expert in ids[t]]
        for t, k in np.argwhere(ids == expert):
            assert start <= slots[t, k] < stop
            assert work.tokens[slots[t, k]] == t
    assert sorted(slots.ravel().tolist()) == list(range(ids.size))


@pytest.mark.parametrize("n", [3, 8, 45])
def test_combine(ops: CpuOps, rng: np.random.Generator, n: int) -> None:
    parts, weights, out = normal(rng, 12, n), normal(rng, 5, 2), normal(rng, 5, n)
    slots = rng.integers(0, 12, (5, 2))
    exact = out + np.einsum("tk,tkn->tn", weights.astype(np.float64), parts[slots])
    fields = (
        parts.ctypes.data, 4 * n, slots.ctypes.data, weights.ctypes.data, 2, n, out.ctypes.data,
        4 * n,
    )  # fmt: skip
    ops.pool.run(layer_ops.combine_task.address, np.array(fields).ctypes.data, len(out))
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


def test_records_in_parallel_equal_the_single_ones(ops: CpuOps, rng: np.random.Generator) -> None:
    x = normal(rng, 9, 96)
    for planes in (1, 2):
        out = np.zeros((9, activations.record_bytes(96, planes)), np.uint8)
        activations.quantize_rows(ops.pool, x, out, planes)
        used = planes * 96 + 96 // 8 * 7
        np.testing.assert_array_equal(out[:, :used], activations.quantize(x, planes)[:, :used])


# --- matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [(F32,), (Q4_K, Q8_0), (F32, Q4_K)], ids=str)
@pytest.mark.parametrize("n_tokens", [1, 2, 19])
def test_linear_of_matrices_that_share_their_input(
    ops: CpuOps, rng: np.random.Generator, kinds: tuple[GGMLType, ...], n_tokens: int
) -> None:
    made = [matrix(kind, normal(rng, 1, 33 + i, 256)) for i, kind in enumerate(kinds)]
    x = normal(rng, n_tokens, 256)
    before = ops.bytes_read
    results = ops.linear(*(m for m, _ in made))(x)
    for kind, got, (_, w) in zip(kinds, results, made, strict=True):
        assert got.shape == (n_tokens, w.shape[1])
        assert error(got, x.astype(np.float64) @ w[0].T) < (1e-6 if kind == F32 else 5e-5)
    assert ops.bytes_read - before == sum(m.n_bytes for m, _ in made)


@pytest.mark.parametrize(("kind", "n"), [(F32, 20), (F32, 32), (Q8_0, 64)])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_one_matrix_per_head(
    ops: CpuOps, rng: np.random.Generator, kind: GGMLType, n: int, n_tokens: int
) -> None:
    m, w = matrix(kind, normal(rng, 3, 9, n))
    wide = normal(rng, n_tokens, 3, n + 7)
    x = wide[:, :, :n]  # as queries are cut: rows apart by more than their length
    per_head = ops.per_head(m)
    exact = np.einsum("tan,arn->tar", x.astype(np.float64), w)
    assert error(per_head(x), exact) < 1e-6
    for head in range(3):
        np.testing.assert_array_equal(per_head.dense(head)[:, :n], w[head])


def test_embedding_rows(ops: CpuOps, rng: np.random.Generator) -> None:
    for kind, n in ((F32, 72), (Q8_0, 64), (Q4_K, 256)):
        table, values = matrix(kind, normal(rng, 1, 50, n))
        ids = np.array([49, 0, 0, 7])
        np.testing.assert_array_equal(ops.embed(table, ids), values[0][ids])


ROLES = {
    "floats": ((F32, F32, F32), (F32, F32, F32)),
    "one type": ((Q4_K, Q4_K, Q4_K), (Q4_K, Q4_K, Q4_K)),
    "gate float": ((F32, Q4_K, Q4_K), (Q8_0, F32, Q8_0)),
    "up float": ((TQ1_0, F32, Q8_0), (F32, Q4_K, F32)),
    "down float": ((Q4_K, TQ1_0, F32), (Q4_K, Q4_K, F32)),
}


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("n_tokens", [1, 2, 21])
def test_feed_forward(ops: CpuOps, rng: np.random.Generator, name: str, n_tokens: int) -> None:
    E, K, H, F = 7, 3, 256, 256
    routed, shared = ROLES[name]
    made, values = [], []
    for count, kinds in ((E, routed), (1, shared)):
        shapes = ((count, F, H), (count, F, H), (count, H, F))
        pairs = [matrix(k, normal(rng, *s) / 16) for k, s in zip(kinds, shapes, strict=True)]
        made.append(GatedMLP(gate=pairs[0][0], up=pairs[1][0], down=pairs[2][0]))
        values.append([w for _, w in pairs])
    x, out = normal(rng, n_tokens, H), normal(rng, n_tokens, H)
    ids = np.array([rng.permutation(E)[:K] for _ in range(n_tokens)])
    weights = rng.random((n_tokens, K)).astype(np.float32)
    both, alone = out.astype(np.float64), out.astype(np.float64)
    for t in range(n_tokens):
        for e, weight in zip(ids[t], weights[t], strict=True):
            both[t] += weight * reference.mlp(x[t], *(w[e] for w in values[0]))
        alone[t] += reference.mlp(x[t], *(w[0] for w in values[1]))
    routed_only = both.copy()
    both += alone - out

    routing = Routing(expert_ids=ids, weights=weights)
    for parts, route_, exact, tolerance in (
        ((made[0], made[1]), routing, both, 0.02),  # routed experts: int8 activations
        ((made[0], None), routing, routed_only, 0.02),
        ((None, made[1]), None, alone, 1e-4),  # the rest: two int8 planes
    ):
        got = out.copy()
        before = ops.bytes_read
        ops.feed_forward(*parts)(x, got, route_)
        limit = 1e-6 if name == "floats" else tolerance
        assert error(got - out, exact - out) < limit
        sizes = [0 if m is None else m.gate.n_bytes + m.up.n_bytes + m.down.n_bytes for m in parts]
        assert ops.bytes_read - before == sizes[0] * len(np.unique(ids)) + sizes[1]


def test_feed_forward_of_odd_widths_and_many_tokens(
    ops: CpuOps, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows padded on load; more tokens than one scratch holds."""
    monkeypatch.setattr("offload.devices.cpu_mlp.MAX_TOKENS", 4)
    H, F, E = 20, 44, 3
    shapes = ((E, F, H), (E, F, H), (E, H, F))
    w = [normal(rng, *s) / 4 for s in shapes]
    mlp = GatedMLP(
        **{k: matrix_from_array(k, x) for k, x in zip(("gate", "up", "down"), w, strict=True)}
    )
    x, ids = normal(rng, 11, H), rng.integers(0, E, (11, 1))
    weights = rng.random((11, 1)).astype(np.float32)
    exact = [weights[t] * reference.mlp(x[t], *(m[ids[t, 0]] for m in w)) for t in range(11)]
    out = np.zeros((11, H), np.float32)
    ops.feed_forward(mlp, None)(x, out, Routing(expert_ids=ids, weights=weights))
    assert error(out, np.array(exact)) < 1e-6
