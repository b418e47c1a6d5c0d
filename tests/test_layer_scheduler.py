"""A layer's work is the routing, whatever order it is done in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.layer_scheduler import CopyBudget, Places, next_copies, schedule

N_EXPERTS = 12
BUDGET = CopyBudget(compute_seconds=1.0, copy_seconds=2.0)
NOBODY = np.zeros(N_EXPERTS, np.int64)


@st.composite
def routings(draw: st.DrawFn) -> np.ndarray:
    """expert_ids (T, K)."""
    n_tokens, k = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array([rng.permutation(N_EXPERTS)[:k] for _ in range(n_tokens)], np.int64)
    return ids.reshape(n_tokens, k)


@settings(deadline=None)
@given(ids=routings(), resident=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_work_is_the_routing_and_residents_come_first(ids: np.ndarray, resident: list[int]) -> None:
    work = schedule(ids, np.array(resident))
    experts = work.experts.tolist()
    assert experts == sorted(set(ids.ravel().tolist()), key=lambda e: (resident[e] == 0, e))
    assert work.used == len(experts)
    assert work.starts[0] == 0
    assert work.starts[-1] == ids.size
    owner = np.repeat(work.experts, np.diff(work.starts))
    for t, k in np.ndindex(*ids.shape):
        slot = work.slots[t, k]
        assert (owner[slot], work.tokens[slot]) == (ids[t, k], t)
    assert sorted(work.slots.ravel().tolist()) == list(range(ids.size))
    for start, end in zip(work.starts[:-1], work.starts[1:], strict=True):
        assert (np.diff(work.tokens[start:end]) > 0).all(), "a token chooses an expert once"


def test_places_are_addresses_of_experts_one_after_the_other() -> None:
    places = Places.at((1000, 10), (2000, 20), (5000, 0), count=3)
    assert places.addresses.tolist() == [[1000, 2000, 5000], [1010, 2020, 5000], [1020, 2040, 5000]]
    assert places.resident.tolist() == [0, 0, 0]


def test_copies_are_those_that_most_tokens_chose_then_the_heaviest() -> None:
    ids = np.array([[3, 1], [3, 2], [5, 4]])
    weights = np.array([[0.1, 0.2], [0.1, 0.9], [0.3, 0.4]], np.float32)
    budget = CopyBudget(compute_seconds=1.0, copy_seconds=1.0, limit=3)
    assert next_copies(schedule(ids, NOBODY), weights, NOBODY, budget) == [3, 2, 4]
    resident = NOBODY.copy()
    resident[3] = 1
    assert next_copies(schedule(ids, resident), weights, resident, budget) == [2, 4, 5]


@settings(deadline=None)
@given(ids=routings(), limit=st.integers(0, 4))
def test_copies_are_distinct_experts_computed_at_home(ids: np.ndarray, limit: int) -> None:
    resident = np.arange(N_EXPERTS) % 2
    budget = CopyBudget(compute_seconds=1.0, copy_seconds=1.0, limit=limit)
    copies = next_copies(schedule(ids, resident), np.ones(ids.shape), resident, budget)
    at_home = {e for e in ids.ravel().tolist() if not resident[e]}
    assert len(set(copies)) == len(copies) == min(limit, len(at_home))
    assert set(copies) <= at_home


@pytest.mark.parametrize(("at_home", "copies"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 2)])
def test_copies_hide_behind_the_work_at_home(at_home: int, copies: int) -> None:
    assert BUDGET.copies(at_home) == copies


def test_free_copies_are_limited_too() -> None:
    assert CopyBudget(compute_seconds=1.0, copy_seconds=0.0).copies(3) == 2
