"""The expert cache with copies under way, slow and failing ones, and slots that come and go."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from offload.expert_cache import ExpertCache
from offload.policies import POLICIES, ExpertKey

KEYS = st.builds(ExpertKey, st.integers(0, 2), st.integers(0, 4))
REQUEST = st.lists(KEYS, min_size=1, max_size=5)
SLOTS = 6
# the lease, what is read while it lasts, what was asked for
Lease = tuple[AbstractContextManager[object], dict[ExpertKey, int], list[ExpertKey]]


class Copies(RuleBasedStateMachine):
    """A device whose copies end when hypothesis wants; beside it a plain account of everything."""

    policy = "lru"

    @initialize(profile=st.dictionaries(KEYS, st.integers(0, 9)))
    def begin(self, profile: dict[ExpertKey, int]) -> None:
        self.cache = ExpertCache(SLOTS, POLICIES[self.policy](SLOTS, profile), self.load)
        self.memory: dict[int, ExpertKey] = {}  # what lies, or will lie, in each slot
        self.copies: dict[ExpertKey, int] = {}  # under way, and where to
        self.leases: list[Lease] = []
        self.gone: set[int] = set()  # slots without memory, and `back` of them that have some again
        self.back = 0
        self.refuses = False

    def load(self, key: ExpertKey, slot: int) -> None:
        """The device starts to write a slot: nobody may use it, nobody else may be writing."""
        if self.refuses:
            raise OSError("no more")
        assert slot not in self.copies.values(), "another copy writes there"
        if slot in self.gone:
            assert self.back > 0, "its memory was given back"
            self.gone.remove(slot)
            self.back -= 1
        assert all(slot not in leased.values() for _, leased, _ in self.leases), "it is read"
        self.memory[slot] = key
        self.copies[key] = slot
        self.cache.hold(key)

    @rule(keys=REQUEST, loads=st.none() | st.integers(0, 2))
    def ask(self, keys: list[ExpertKey], loads: int | None) -> None:
        lease = self.cache.lease(keys, loads=loads)
        slots = lease.__enter__()
        # those under way have a slot, but are not read before their copy is complete
        read = {key: slot for key, slot in slots.items() if key not in self.copies}
        self.leases.append((lease, read, keys))

    @rule(key=KEYS)
    def guess(self, key: ExpertKey) -> None:
        assert self.cache.prefetch(key) == (key in self.cache.resident)

    @rule(key=KEYS)
    def ask_for_a_copy_that_cannot_begin(self, key: ExpertKey) -> None:
        self.refuses = True
        before = key in self.cache.resident
        try:
            self.cache.prefetch(key)
        except OSError:
            assert not before
            assert key not in self.cache.resident
        self.refuses = False

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.copies)))
        assert self.cache.resident[key] == self.copies.pop(key)
        self.cache.release(key)

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.copies)))
        slot = self.copies.pop(key)
        self.cache.release(key)
        self.cache.drop(key)
        del self.memory[slot]
        assert key not in self.cache.resident

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lease, *_ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.__exit__(None, None, None)

    @rule(slots=st.integers(0, SLOTS))
    def resize(self, slots: int) -> None:
        held = {*self.copies, *(key for _, _, keys in self.leases for key in keys)}
        used = {slot for key, slot in self.cache.resident.items() if key in held}
        before = self.cache.slots
        gone = self.cache.resize(slots)
        assert not used & set(gone), "memory in use stays"
        self.back += max(0, self.cache.slots - before) - len(self.gone & set(gone))
        self.gone |= set(gone)
        assert self.cache.slots == max(slots, min(before, len(used)))
        assert len(self.gone) - self.back == SLOTS - self.cache.slots

    @invariant()
    def no_slot_has_two_owners_and_what_is_read_stays(self) -> None:
        resident = self.cache.resident
        assert len(set(resident.values())) == len(resident) <= self.cache.slots
        for key, slot in resident.items():
            assert self.memory[slot] == key
        for _, leased, _ in self.leases:
            assert leased.items() <= resident.items()
        assert self.copies.items() <= resident.items()

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for lease, *_ in self.leases:
            lease.__exit__(None, None, None)
        for key in self.copies:
            self.cache.release(key)
        self.cache.resize(0)
        assert (self.cache.slots, dict(self.cache.resident)) == (0, {}), "nothing is held any more"


@pytest.mark.parametrize("policy", POLICIES)
def test_slots_under_copies_leases_and_resizing(policy: str) -> None:
    machine = type("Copies", (Copies,), {"policy": policy})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
