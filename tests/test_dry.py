"""DRY against a naive twin; where the end of a sequence occurred before."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_time import takes_less_than
from replies import kimi
from test_chat import format_of

from offload.dry import MOST, breaker_mask, dry_penalties
from offload.repeats import suffix_matches
from offload.requests import BREAKERS_KEPT, Requests
from offload.sampler import make_sampler
from offload.sampling_params import SamplingParams

IDS = st.lists(st.integers(0, 3), max_size=90) | st.builds(
    lambda unit, times: (unit * times)[-150:], st.lists(st.integers(0, 3), min_size=1), st.just(40)
)


def naive_matches(ids: list[int], limit: int) -> list[tuple[int, int]]:
    found = []
    for end in range(1, len(ids)):
        n = 0
        while n < min(end, limit) and ids[end - 1 - n] == ids[-1 - n]:
            n += 1
        if n:
            found.append((end, n))
    return found


def naive_dry(recent: list[int], breakers: set[int], params: SamplingParams) -> dict[int, float]:
    window = recent[-params.dry_window :] if params.dry_window else []
    whole = 0
    while whole < len(window) and window[-1 - whole] not in breakers:
        whole += 1
    longest: dict[int, int] = {}
    for end, n in naive_matches(window, whole):
        token = window[end]
        if n >= params.dry_allowed_length and token not in breakers:
            longest[token] = max(n, longest.get(token, 0))
    return {
        token: min(MOST, params.dry_multiplier * params.dry_base ** (n - params.dry_allowed_length))
        for token, n in longest.items()
    }


@settings(max_examples=300)
@given(IDS, st.integers(1, 200))
def test_suffix_matches_equal_the_naive_ones(ids: list[int], limit: int) -> None:
    ends, lengths = suffix_matches(np.array(ids, np.int64), limit)
    assert list(zip(ends.tolist(), lengths.tolist(), strict=True)) == naive_matches(ids, limit)


@settings(max_examples=300)
@given(
    IDS, st.sets(st.integers(0, 3), max_size=2), st.integers(1, 5),
    st.sampled_from([1.0, 1.0001, 1.75, 10.0]), st.sampled_from([0, 1, 7, 60, 4096]),
)  # fmt: skip
def test_penalties_equal_the_naive_ones(
    recent: list[int], breakers: set[int], allowed: int, base: float, window: int
) -> None:
    params = SamplingParams(
        dry_multiplier=0.8, dry_base=base, dry_allowed_length=allowed, dry_window=window
    )
    mask = np.isin(np.arange(4), sorted(breakers))
    ids, losses = dry_penalties(np.array(recent, np.int64), mask, params)
    expected = naive_dry(recent, breakers, params)
    assert ids.tolist() == sorted(expected)
    np.testing.assert_allclose(losses, [expected[i] for i in ids.tolist()], rtol=1e-9)


def test_a_repeat_becomes_unlikely_and_a_short_one_does_not() -> None:
    logits = np.zeros(10, np.float32)
    params = SamplingParams(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2, temperature=1)
    draw = make_sampler(params)
    ids, probabilities = draw.distribution(logits, [1, 2, 3, 4, 9, 1, 2, 3])
    assert ids.tolist() == list(range(10))
    # 4 would be the fourth token of a repeat of three: it loses 2 ** (3 - 2)
    np.testing.assert_allclose(probabilities[4] / probabilities[0], math.exp(-2), rtol=1e-5)
    np.testing.assert_allclose(np.delete(probabilities, 4), probabilities[0], rtol=1e-6)
    assert np.ptp(draw.distribution(logits, [3, 4, 9, 3])[1]) == 0
    off = make_sampler(SamplingParams(temperature=1))
    assert np.ptp(off.distribution(logits, [1, 2, 3, 4, 9, 1, 2, 3])[1]) == 0


def test_breakers_cut_repeats() -> None:
    logits = np.zeros(10, np.float32)
    params = SamplingParams(dry_multiplier=1.0, temperature=1)
    for breaker, falls in ((7, {4}), (1, {4}), (2, set()), (4, set())):
        draw = make_sampler(params, np.arange(10) == breaker)
        _, probabilities = draw.distribution(logits, [1, 2, 3, 4, 9, 1, 2, 3])
        assert set(np.flatnonzero(probabilities < probabilities[0]).tolist()) == falls


class Words:
    """A vocabulary; empty strings are control tokens."""

    texts = ("", "a", ":\n", " x*y", "é", '"')
    n_vocab = len(texts)

    def token_bytes(self, token_id: int) -> bytes:
        return self.texts[token_id].encode()


@pytest.mark.parametrize(
    ("breakers", "expected"),
    [((), [0]), (("\n",), [0, 2]), (("*", "é"), [0, 3, 4]), (("x*y", '"'), [0, 3, 5])],
)
def test_breakers_are_the_tokens_that_contain_them(
    breakers: tuple[str, ...], expected: list[int]
) -> None:
    mask = breaker_mask(Words(), breakers)  # type: ignore[arg-type]
    assert np.flatnonzero(mask).tolist() == expected


def test_choices_of_breakers_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def mask(*_: object) -> np.ndarray:
        array = np.zeros(1, np.bool_)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr("offload.requests.breaker_mask", mask)
    requests = Requests(kimi(), format_of("Kimi K2.5"), kimi().n_vocab, 4096)
    for i in [*range(100), 99]:
        sampling = {"dry_multiplier": 1.0, "dry_sequence_breakers": [str(i)]}
        requests.continuation("x", sampling, None)
    assert len(made) == 100, "the latest is there"
    assert sum(ref() is not None for ref in made) <= BREAKERS_KEPT


@pytest.mark.parametrize("base", [1.0001, 1.75])
def test_an_endless_loop_costs_little(base: float) -> None:
    params = SamplingParams(dry_multiplier=0.8, dry_base=base, dry_window=-1)
    recent = np.full(8_000, 5, np.int64)
    with takes_less_than(0.5):  # 5 ms; quadratic time would be seconds
        ids, losses = dry_penalties(recent, None, params)
    assert ids.tolist() == [5]
    assert 0 < losses[0] <= 1.001 * MOST


def test_the_smallest_multiplier_costs_nothing() -> None:
    params = SamplingParams(dry_multiplier=5e-324)
    assert dry_penalties(np.array([1, 2, 3, 1, 2]), None, params)[1] < 1e-300
