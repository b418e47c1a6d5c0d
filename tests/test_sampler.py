"""Sampling: ranges, filters against naive twins, statistics, seeds."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import filters
from offload.errors import OffloadError
from offload.filters import (
    F32,
    apply_min_p,
    apply_penalties,
    apply_temperature,
    apply_top_k,
    apply_top_p,
)
from offload.sampler import make_sampler
from offload.sampling_params import SAMPLERS, SamplingParams


def sampler(**options: Any) -> Any:
    return make_sampler(SamplingParams(**options))


def logits_of(*probabilities: float) -> F32:
    return np.log(np.array(probabilities, dtype=np.float32))


def kept(logits: F32) -> list[int]:
    return np.flatnonzero(logits > -np.inf).tolist()


# --- filters

LOGITS = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, -np.inf]), min_size=1, max_size=30)


def finite(values: list[float]) -> F32:
    return np.array([*values, 1.0], dtype=np.float32)  # never all -inf


def naive_order(logits: F32) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


@given(LOGITS, st.integers(0, 40))
def test_top_k_equals_sorting(values: list[float], k: int) -> None:
    logits = finite(values)
    expected = [i for i in naive_order(logits)[: k or None] if logits[i] > -np.inf]
    assert kept(apply_top_k(logits, k)) == sorted(expected)


@settings(max_examples=300)
@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_equals_sorting(values: list[float], p: float) -> None:
    logits = finite(values)
    weights = np.exp(logits - logits.max()).astype(np.float64)
    weights /= weights.sum()
    order = naive_order(logits)
    sums = np.cumsum(weights[order])
    if np.any(np.abs(sums - p) < 1e-5):
        return  # float32 may round either way
    for few in (0, 1024):  # by classes of floats, and by sorting all
        with patch.object(filters, "FEW", few):
            assert kept(apply_top_p(logits, p)) == sorted(
                order[: int(np.searchsorted(sums, p)) + 1]
            )


@given(LOGITS, st.floats(0.011, 1.0))
def test_min_p_keeps_what_is_likely_enough(values: list[float], p: float) -> None:
    logits = finite(values)
    ratios = np.exp(logits - logits.max())
    if np.any(np.abs(ratios - p) < 1e-5):
        return
    assert kept(apply_min_p(logits, p)) == np.flatnonzero(ratios >= p).tolist()


def test_filters_on_a_known_distribution() -> None:
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert kept(apply_top_k(logits, 2)) == [0, 1]
    assert kept(apply_top_p(logits, 0.75)) == [0, 1]
    assert kept(apply_top_p(logits, 0.001)) == [0]
    assert kept(apply_min_p(logits, 0.2)) == [0, 1, 2]
    assert kept(apply_top_k(np.zeros(5, dtype=np.float32), 3)) == [0, 1, 2]


def test_filters_leave_their_argument_alone() -> None:
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    before = logits.copy()
    apply_temperature(logits, 0.5)
    apply_top_k(logits, 1)
    apply_top_p(logits, 0.1)
    apply_min_p(logits, 0.9)
    apply_penalties(logits, [0, 1], 2.0, 1.0, 1.0)
    sampler(temperature=0.5, top_k=2, top_p=0.5, min_p=0.1, presence_penalty=1).sample(logits, [1])
    np.testing.assert_array_equal(logits, before)


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0], dtype=np.float32)
    np.testing.assert_allclose(
        apply_penalties(logits, [0, 0, 1], 2.0, 0.5, 0.25), [0.0, -4.75, 1.0, 0.0]
    )
    np.testing.assert_array_equal(apply_penalties(logits, [], 2.0, 1.0, 1.0), logits)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        apply_penalties(logits, [4], 2.0, 0.0, 0.0)


def test_only_the_window_is_penalised() -> None:
    logits = np.array([1.0, 0.9, 0.0], dtype=np.float32)
    greedy = {"temperature": 0, "presence_penalty": 2}
    assert sampler(**greedy).sample(logits, [0]) == 1
    assert sampler(**greedy, penalty_window=1).sample(logits, [0, 2]) == 0
    assert sampler(**greedy, penalty_window=0).sample(logits, [0]) == 0


# --- the sampler


@pytest.mark.parametrize("chosen", [{"temperature": 0}, {"temperature": 2.0, "seed": 3}])
def test_a_bias_rules_tokens_out_or_all_others(chosen: dict[str, Any]) -> None:
    logits = np.array([5.0, 4.0, 3.0, 2.0], dtype=np.float32)
    before = logits.copy()
    without = sampler(**chosen, logit_bias={0: -100, 1: -100})
    assert {without.sample(logits) for _ in range(50)} <= {2, 3}
    only = sampler(**chosen, logit_bias={3: 100})
    assert {only.sample(logits) for _ in range(50)} == {3}
    np.testing.assert_array_equal(logits, before)


def test_a_bias_is_added_before_all_else_and_only_to_what_may_come() -> None:
    logits = np.array([1.0, 2.0, -np.inf, 0.5, 0.0], dtype=np.float32)
    plain = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    biased = sampler(**plain, logit_bias={0: 1.5, 2: 100, 4: -0.25})
    expected = np.array([2.5, 2.0, -np.inf, 0.5, -0.25], dtype=np.float32)
    for allowed in (None, [0, 2, 3], np.array([0b01101], np.uint32)):
        got, same = (
            one.distribution(given, (), allowed)
            for one, given in ((biased, logits), (sampler(**plain), expected))
        )
        for ours, others in zip(got, same, strict=True):
            np.testing.assert_array_equal(ours[got[1] > 0], others[same[1] > 0])
    greedy = sampler(temperature=0, logit_bias={3: -100})
    assert greedy.sample(logits, (), [3]) == 3  # what alone may come does


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert sampler(temperature=0).sample(np.array([0, 3, 3, 1], dtype=np.float32)) == 1
    ids, probabilities = sampler(temperature=0).distribution(np.zeros(4, dtype=np.float32))
    assert ids.tolist() == [0]
    assert probabilities.tolist() == [1]


FILTERS = {
    "penalties": lambda logits, p, recent: apply_penalties(
        logits, recent, p.repetition_penalty, p.presence_penalty, p.frequency_penalty
    ),
    "dry": lambda logits, p, recent: logits,
    "min_p": lambda logits, p, recent: apply_min_p(logits, p.min_p),
    "temperature": lambda logits, p, recent: apply_temperature(logits, p.temperature),
    "top_k": lambda logits, p, recent: apply_top_k(logits, p.top_k),
    "top_p": lambda logits, p, recent: apply_top_p(logits, p.top_p),
}


@settings(max_examples=300)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=60),
    st.sampled_from([0, 1, 5, 40]),
    st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([1.0, 1.3]),
    st.permutations(SAMPLERS) | st.just(SAMPLERS),
    st.integers(0, 6),
)
def test_distribution_equals_the_steps_one_after_another(
    values: list[float], k: int, p: float, m: float, penalty: float, order: list[str], n: int
) -> None:
    logits = np.array(values, dtype=np.float32)
    options = {"temperature": 0.7, "top_k": k, "top_p": p, "min_p": m}
    params = SamplingParams(
        **options, repetition_penalty=penalty, presence_penalty=0.5, samplers=order[:n]
    )
    recent = [0, 1, 1]
    ids, probabilities = make_sampler(params).distribution(logits, recent)
    expected = logits
    for name in order[:n]:
        expected = FILTERS[name](expected, params, recent)
    assert ids.tolist() == kept(expected)
    weights = np.exp((expected[ids] - expected.max()).astype(np.float64))
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-5)


def test_order_by_default() -> None:
    """min_p is measured before the temperature, top_p after it."""
    logits = logits_of(0.5, 0.25, 0.15, 0.1)
    for temperature in (0.25, 4.0):
        ids, _ = sampler(temperature=temperature, min_p=0.26).distribution(logits)
        assert ids.tolist() == [0, 1, 2]
    assert sampler(temperature=0.25, top_p=0.9).distribution(logits)[0].tolist() == [0]
    late = {"samplers": "temperature,min_p", "min_p": 0.26, "temperature": 0.25}
    assert sampler(**late).distribution(logits)[0].tolist() == [0]


def test_what_is_left_out_does_not_apply() -> None:
    logits = logits_of(0.6, 0.3, 0.1)
    for options in ({"top_k": 1}, {"temperature": 0}, {"min_p": 1}, {"top_p": 0.1}):
        assert sampler(**options).distribution(logits)[0].tolist() == [0]
        _, probabilities = sampler(**options, samplers=[]).distribution(logits)
        np.testing.assert_allclose(probabilities, [0.6, 0.3, 0.1], rtol=1e-5)
    assert (
        sampler(presence_penalty=2, temperature=0, samplers="temperature").sample(logits, [0]) == 0
    )


@pytest.mark.parametrize("tiny", [1e-300, 1e-38, 5e-324])
def test_tiny_values_mean_by_far(tiny: float) -> None:
    logits = np.array([3.0, -2.0, 1.0, 0.0, -np.inf], dtype=np.float32)
    recent = [2, 1, 4]
    penalised = apply_penalties(logits, recent, tiny, 0.0, 0.0)
    assert penalised[4] == -np.inf
    assert np.isfinite(penalised[:4]).all()
    for options in (
        {"repetition_penalty": tiny, "temperature": 0.5},
        {"repetition_penalty": tiny, "temperature": tiny},
        {"repetition_penalty": tiny, "temperature": 0, "presence_penalty": 2},
    ):
        assert sampler(**options, seed=1).sample(logits, recent) == 2
    for name in ("temperature", "top_p"):
        assert sampler(**{name: tiny}).distribution(logits)[0][0] == 0
        assert sampler(**{name: tiny}, seed=1).sample(logits) == 0
    assert len(sampler(min_p=tiny).distribution(logits)[0]) == 4
    assert sampler(repetition_penalty=10, temperature=tiny, seed=0).sample(logits, [0, 1]) == 2


def test_the_largest_logits_do_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 3e38], dtype=np.float32)
    for options in (
        {"repetition_penalty": 1e-3},
        {"presence_penalty": -2},
        {"dry_multiplier": 100, "dry_base": 10, "dry_allowed_length": 1},
        {"temperature": 0.01},
        {"top_p": 0.5, "min_p": 0.5},
    ):
        assert sampler(**options, seed=1).sample(logits, [1, 0] * 400) in (0, 2)


@pytest.mark.parametrize("size", [4, 2_000])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.95}, {"top_k": 3}, {"min_p": 0.05}])
def test_frequencies_follow_the_distribution(size: int, options: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, size).astype(np.float32)
    draw = sampler(temperature=0.8, seed=5, **options)
    ids, probabilities = draw.distribution(logits)
    n = 4_000
    drawn = [draw.sample(logits) for _ in range(n)]
    counts = np.bincount(drawn, minlength=size)[ids]
    assert counts.sum() == n
    # five standard deviations of a binomial, and one count for the rounding
    bound = 5 * np.sqrt(n * probabilities * (1 - probabilities)) + 1
    assert np.all(np.abs(counts - n * probabilities) <= bound)


def test_temperature_flattens() -> None:
    logits = logits_of(0.8, 0.2)
    _, cold = sampler(temperature=0.5).distribution(logits)
    _, hot = sampler(temperature=2.0).distribution(logits)
    np.testing.assert_allclose(cold, [16 / 17, 1 / 17], rtol=1e-5)
    np.testing.assert_allclose(hot, [2 / 3, 1 / 3], rtol=1e-5)
    assert sampler(temperature=1e-9, seed=1).sample(logits) == 0


def test_same_seed_same_ids_and_a_fresh_seed_is_told() -> None:
    logits = np.random.default_rng(1).normal(0, 1, 500).astype(np.float32)
    first = sampler(temperature=1.0)
    again = sampler(temperature=1.0, seed=first.seed)
    other = sampler(temperature=1.0)
    ids = [first.sample(logits) for _ in range(50)]
    assert ids == [again.sample(logits) for _ in range(50)]
    assert first.seed != other.seed
    assert ids != [other.sample(logits) for _ in range(50)]


def test_samplers_share_no_state() -> None:
    logits = np.zeros(100, dtype=np.float32)
    alone = sampler(temperature=1, seed=3)
    expected = [alone.sample(logits) for _ in range(10)]
    one, two = sampler(temperature=1, seed=3), sampler(temperature=1, seed=4)
    mixed = []
    for _ in range(10):
        mixed.append(one.sample(logits))
        two.sample(logits)
    assert mixed == expected


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1, "top_p": 0.9}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(options: dict[str, Any], bad: float) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[3] = bad
    with pytest.raises(OffloadError, match="1 of 10 logits are"):
        sampler(**options).sample(logits)
    with pytest.raises(OffloadError, match="10 of 10"):
        sampler(**options).sample(np.full(10, -np.inf, dtype=np.float32))


def test_a_masked_token_never_comes() -> None:
    logits = np.zeros(3, dtype=np.float32)
    logits[1] = -np.inf
    draw = sampler(temperature=1, seed=0)
    assert {draw.sample(logits) for _ in range(100)} == {0, 2}
    assert draw.distribution(logits)[1].tolist() == [0.5, 0, 0.5]


def test_logits_must_be_one_row() -> None:
    with pytest.raises(ValueError, match=r"\(V,\)"):
        sampler().sample(np.zeros((1, 3), dtype=np.float32))


def test_a_vocabulary_of_kimi_size() -> None:
    logits = np.random.default_rng(2).normal(0, 3, 163_840).astype(np.float32)
    logits[7] = 30
    draw = sampler(temperature=1.0, top_p=0.95, min_p=0.01, seed=0)
    assert draw.sample(logits, list(range(5_000))) == 7
