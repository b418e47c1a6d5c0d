"""Slots, leases and counts, under every policy."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import OffloadError, PlanError
from offload.expert_cache import CacheCounts, ExpertCache
from offload.policies import LRU, POLICIES, ExpertKey, PinnedHot

A, B, C, D = (ExpertKey(0, i) for i in range(4))
KEYS = st.builds(ExpertKey, st.integers(0, 2), st.integers(0, 5))
REQUESTS = st.lists(st.lists(KEYS, max_size=6), max_size=25)


class Device:
    """Remembers what its slots hold."""

    def __init__(self, slots: int) -> None:
        self.slots: list[ExpertKey | None] = [None] * slots
        self.loads = 0

    def load(self, key: ExpertKey, slot: int) -> None:
        self.slots[slot] = key
        self.loads += 1


def ask(cache: ExpertCache, *keys: ExpertKey, loads: int | None = None) -> dict[ExpertKey, int]:
    with cache.lease(keys, loads=loads) as slots:
        return slots


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None)
@given(
    requests=REQUESTS,
    slots=st.integers(0, 8),
    held=st.sets(KEYS, max_size=5),
    limit=st.none() | st.integers(0, 3),
    profile=st.dictionaries(KEYS, st.integers(0, 9)),
)
def test_slots_hold_what_the_cache_says_and_leases_hold(
    name: str,
    requests: list[list[ExpertKey]],
    slots: int,
    held: set[ExpertKey],
    limit: int | None,
    profile: dict[ExpertKey, int],
) -> None:
    device = Device(slots)
    policy = POLICIES[name](slots, profile)
    pins = policy.pins if isinstance(policy, PinnedHot) else frozenset()
    cache = ExpertCache(slots, policy, device.load)
    pinned: set[ExpertKey] = set()
    with cache.lease(held) as outer:
        for keys in requests:
            before = set(cache.resident)
            with cache.lease(keys, loads=limit) as leased:
                assert set(leased) == set(keys) & set(cache.resident)
                assert before & set(keys) <= set(leased), "a hit stays"
                assert limit is None or len(set(leased) - before) <= limit
                assert len(cache.resident) <= slots
                assert {device.slots[slot] for slot in cache.resident.values()} == set(
                    cache.resident
                )
                assert all(device.slots[slot] == key for key, slot in leased.items())
                assert all(device.slots[slot] == key for key, slot in outer.items())
            pinned |= pins & set(cache.resident)
            assert pinned <= set(cache.resident), "a pinned key never leaves"
    total = cache.stats.total
    assert total.hits + total.misses == len(held) + sum(len(set(keys)) for keys in requests)
    assert total.loads == device.loads <= total.misses
    assert total.loads - total.evictions == len(cache.resident)
    for counts in cache.stats.layers.values():
        assert counts.loads >= counts.evictions


def test_counts_by_layer() -> None:
    cache = ExpertCache(2, LRU())
    other = ExpertKey(7, 0)
    ask(cache, A, B)
    ask(cache, A)
    ask(cache, other)
    assert cache.stats.layers == {
        0: CacheCounts(hits=1, misses=2, loads=2, evictions=1),
        7: CacheCounts(misses=1, loads=1),
    }
    assert cache.stats.total == CacheCounts(hits=1, misses=3, loads=3, evictions=1)
    assert cache.stats.total.hit_rate == 0.25
    assert CacheCounts().hit_rate == 0


def test_lease_names_a_key_twice_counts_once() -> None:
    cache = ExpertCache(2, LRU())
    ask(cache, A, A, A)
    assert cache.stats.total == CacheCounts(misses=1, loads=1)


def test_more_keys_than_slots_leave_the_last_outside() -> None:
    cache = ExpertCache(2, LRU())
    assert set(ask(cache, A, B, C)) == {A, B}


def test_nested_leases_of_one_key_end_with_the_last() -> None:
    cache = ExpertCache(1, LRU())
    with ExitStack() as stack:
        stack.enter_context(cache.lease([A]))
        ask(cache, A)
        assert ask(cache, B) == {}
    assert set(ask(cache, B)) == {B}


def test_lease_ends_when_the_work_fails() -> None:
    cache = ExpertCache(1, LRU())
    with pytest.raises(ZeroDivisionError), cache.lease([A]):
        _ = 1 / 0
    assert set(ask(cache, B)) == {B}


def test_prefetch_counts_no_hit() -> None:
    cache = ExpertCache(1, LRU())
    assert cache.prefetch(A)
    assert cache.prefetch(A)
    with cache.lease([A]):
        assert not cache.prefetch(B)
    assert cache.stats.total == CacheCounts(hits=1, loads=1)


def test_failed_load_frees_the_slot() -> None:
    def fail(key: ExpertKey, slot: int) -> None:
        if key == B:
            raise OSError("the link is down")

    cache = ExpertCache(1, LRU(), fail)
    ask(cache, A)
    with pytest.raises(OSError, match="link"):
        ask(cache, B)
    assert dict(cache.resident) == {}
    assert ask(cache, C) == {C: 0}


def test_no_slots_is_a_cache_that_is_off() -> None:
    cache = ExpertCache(0, LRU())
    assert ask(cache, A) == {}
    assert cache.stats.total == CacheCounts(misses=1)
    with pytest.raises(PlanError, match="not -1"):
        ExpertCache(-1, LRU())


@pytest.mark.parametrize(("choice", "why"), [(D, "not in the cache"), (C, "in use")])
def test_wrong_victim_of_a_policy_is_named(choice: ExpertKey, why: str) -> None:
    class Wrong(LRU):
        def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey:
            return choice

    cache = ExpertCache(1, Wrong())
    with cache.lease([C]), pytest.raises(OffloadError, match=f"Wrong.*{why}"):
        ask(cache, A)
    assert set(cache.resident) == {C}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.lists(KEYS, max_size=4)), max_size=20))
def test_slots_at_one_end_come_and_go(steps: list[tuple[int, list[ExpertKey]]]) -> None:
    device = Device(6)
    cache = ExpertCache(6, LRU(), device.load)
    for slots, keys in steps:
        before = dict(cache.resident)
        gone = cache.keep_first(slots)
        assert set(gone) == {key for key, slot in before.items() if slot >= slots}
        assert dict(cache.resident) == {k: s for k, s in before.items() if k not in gone}
        ask(cache, *keys)
        assert len(cache.resident) <= cache.slots == slots
        for key, slot in cache.resident.items():
            assert slot < slots
            assert device.slots[slot] == key
        if len({*keys}) <= slots:
            assert {*keys} <= cache.resident.keys(), "free slots are found"
