"""Every policy by the same rules, and what each one is for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.policies import (
    LFU,
    LRU,
    POLICIES,
    AdmitLFU,
    CachePolicy,
    ExpertKey,
    PerLayer,
    PinnedHot,
    hottest,
)

A, B, C, D = (ExpertKey(0, i) for i in range(4))
KEYS = st.builds(ExpertKey, st.integers(0, 2), st.integers(0, 5))
by_policy = pytest.mark.parametrize("name", POLICIES)


def filled(policy: CachePolicy, *keys: ExpertKey) -> CachePolicy:
    for key in keys:
        policy.touch(key)
        policy.admit(key)
    return policy


def touched(policy: CachePolicy, *keys: ExpertKey) -> CachePolicy:
    for key in keys:
        policy.touch(key)
    return policy


@by_policy
@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(KEYS, st.sets(KEYS, max_size=4)), max_size=60),
    slots=st.integers(1, 8),
    profile=st.dictionaries(KEYS, st.integers(0, 9)),
)
def test_victim_is_admitted_and_neither_in_use_nor_pinned(
    name: str,
    steps: list[tuple[ExpertKey, set[ExpertKey]]],
    slots: int,
    profile: dict[ExpertKey, int],
) -> None:
    policy = POLICIES[name](slots, profile)
    pins = policy.pins if isinstance(policy, PinnedHot) else frozenset()
    assert len(pins) <= slots
    resident: set[ExpertKey] = set()
    for key, in_use in steps:
        policy.touch(key)
        if key in resident:
            continue
        if len(resident) == slots:
            victim = policy.victim(key, in_use)
            assert policy.victim(key, in_use) == victim, "asking changes nothing"
            if victim is None:
                continue
            assert victim in resident - in_use - pins
            policy.remove(victim)
            resident.remove(victim)
        policy.admit(key)
        resident.add(key)


@by_policy
def test_no_victim_when_all_are_in_use_or_none_is_there(name: str) -> None:
    assert POLICIES[name](3, {}).victim(D, set()) is None
    assert filled(POLICIES[name](3, {}), A, B, C).victim(D, {A, B, C}) is None


def test_lru_gives_the_oldest_use() -> None:
    policy = touched(filled(LRU(), A, B, C), A)
    assert policy.victim(D, set()) == B
    assert policy.victim(D, {B}) == C


def test_lfu_gives_the_smallest_count() -> None:
    policy = touched(filled(LFU(), A, B, C), A, A, C)
    assert policy.victim(D, set()) == B
    assert policy.victim(D, {B}) == C


def test_lfu_remembers_an_evicted_favourite() -> None:
    policy = touched(filled(LFU(), A, B), A, A, A, A, B, B)
    policy.remove(A)
    filled(policy, A)
    assert policy.victim(C, set()) == B


def test_lfu_counts_fade() -> None:
    policy = touched(filled(LFU(half_life=2), A, B), *[A] * 8, *[B] * 5)
    assert policy.victim(C, set()) == A
    policy = touched(filled(LFU(half_life=1e9), A, B), *[A] * 8, *[B] * 5)
    assert policy.victim(C, set()) == B


def test_lfu_scores_do_not_overflow() -> None:
    policy = touched(filled(LFU(half_life=0.001), A, B), *[A, B] * 5000, A)
    assert policy.victim(C, set()) == B


def test_admit_lfu_keeps_strangers_out() -> None:
    policy = touched(filled(AdmitLFU(), A, B), A, A, B, B, C)
    assert policy.victim(C, set()) is None
    assert touched(policy, C, C, C, C).victim(C, set()) == A


def test_pinned_keys_stay_whatever_is_asked_for() -> None:
    policy = filled(PinnedHot([A, B]), A, B, C)
    assert policy.victim(D, set()) == C
    policy.remove(C)
    assert policy.victim(D, set()) is None
    policy.remove(A)  # a cache that shrinks may still take it


def test_hottest_is_by_count_then_by_key() -> None:
    assert hottest({C: 5, B: 1, A: 1, D: 9}, 3) == [D, C, A]
    assert hottest({}, 3) == []


def test_per_layer_shares_the_slots_evenly() -> None:
    policy = filled(PerLayer(LRU), *(ExpertKey(0, i) for i in range(5)), ExpertKey(1, 0))
    held = {0: 5, 1: 1}
    for i in range(20):
        key = ExpertKey(1, 1 + i)
        policy.touch(key)
        victim = policy.victim(key, set())
        assert victim is not None
        policy.remove(victim)
        policy.admit(key)
        held[victim.layer] -= 1
        held[1] += 1
    assert held == {0: 3, 1: 3}


def test_per_layer_leaves_other_layers_alone() -> None:
    mine, other = ExpertKey(0, 0), ExpertKey(1, 0)
    policy = filled(PerLayer(LRU), other, mine)
    assert policy.victim(ExpertKey(0, 1), set()) == mine
    assert policy.victim(ExpertKey(0, 1), {mine}) is None
