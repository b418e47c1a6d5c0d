"""Slots of the KV cache: whose rows are reused, copied, dropped; and in which form they are."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import FakeKV

from offload import batch
from offload.batch import Runs
from offload.errors import PlanError
from offload.kv_slots import MOST_SLOTS, KVSlots, Slot, common


def slots(budget: int, context: int | None = None) -> KVSlots:
    return KVSlots(FakeKV(context or budget), budget)


def given(
    made: KVSlots, ids: list[int], rows: int | None = None, expanded: Runs = ()
) -> Slot | None:
    """A slot whose sequence has computed all of `ids`."""
    array = np.array(ids)
    slot = made.acquire(array, len(ids), expanded, rows or len(ids))
    if slot is not None:
        slot.length = slot.touched = len(ids)
    return slot


def reused(made: KVSlots, ids: list[int], expanded: Runs = ()) -> int:
    array = np.array(ids)
    slot = made.acquire(array, len(ids), expanded, len(ids))
    assert slot is not None
    return slot.length


def use(made: KVSlots, ids: list[int], expanded: Runs = ()) -> Slot:
    slot = given(made, ids, expanded=expanded)
    assert slot is not None
    made.release(slot)
    return slot


def test_a_continued_conversation_goes_on_in_its_slot() -> None:
    made = slots(100)
    first = use(made, list(range(20)))
    again = given(made, [*range(20), 50, 51])
    assert again is first
    assert made.kv.copied == 0  # type: ignore[attr-defined]


def test_the_last_token_is_computed_again() -> None:
    made = slots(100)
    use(made, list(range(20)))
    assert reused(made, list(range(20))) == 19
    assert reused(slots(100), [5]) == 0


def test_a_shared_start_is_copied_and_both_stay() -> None:
    made = slots(100)
    use(made, [*range(10), *[60] * 20])
    use(made, [*range(10), *[61] * 20])
    assert reused(made, [*range(10), *[60] * 20, 1]) == 30
    assert reused(made, [*range(10), *[61] * 20, 1]) == 30


def test_a_busy_slot_is_copied_as_far_as_it_is_read() -> None:
    made = slots(100)
    busy = given(made, list(range(30)))
    assert busy is not None
    busy.length = 12
    assert reused(made, list(range(30))) == 12
    assert made.kv.copied == 12  # type: ignore[attr-defined]


def test_the_slot_not_used_for_longest_is_dropped() -> None:
    made = slots(100)
    use(made, [1] * 30)
    use(made, [2] * 30)
    use(made, [1] * 30)
    use(made, [3] * 50)
    assert made.longest(np.array([2] * 30), ()) == (None, 0)
    assert made.longest(np.array([1] * 30), ())[1] == 29
    assert set(made.kv.slots) == {0, 1}  # type: ignore[attr-defined]


def test_rows_that_were_touched_count_until_the_slot_is_dropped() -> None:
    made = slots(100)
    slot = given(made, [1] * 10, rows=60)
    assert slot is not None
    assert made.free_rows == 40
    slot.touched = 30
    made.release(slot)
    assert made.free_rows == 70


def test_busy_slots_are_never_dropped() -> None:
    made = slots(100)
    first = given(made, [1] * 60)
    use(made, [3] * 20)
    assert given(made, [2] * 41) is None
    assert made.longest(np.array([3] * 20), ())[1] == 19  # nothing is dropped in vain
    assert given(made, [2] * 40) is not None
    assert first is not None
    assert first.number in made.kv.slots  # type: ignore[attr-defined]


def test_a_prefix_is_taken_over_where_there_is_no_room_for_a_copy() -> None:
    made = slots(100)
    use(made, list(range(60)))
    assert reused(made, [*range(30), *[70] * 40]) == 30
    assert made.kv.copied == 0  # type: ignore[attr-defined]


def test_a_slot_grows_at_the_cost_of_idle_ones() -> None:
    made = slots(100)
    slot = given(made, [1] * 50)
    assert slot is not None
    use(made, [2] * 30)
    assert made.grow(slot, 51, 64)
    assert slot.promised == 64
    assert made.grow(slot, 80, 90)
    assert slot.promised == 90
    assert made.grow(slot, 100, 200)
    assert slot.promised == 100
    assert not made.grow(slot, 101, 200)


def test_many_small_slots_are_bounded() -> None:
    made = slots(10_000)
    for i in range(MOST_SLOTS + 20):
        use(made, [i, i, i])
    assert len(made.kv.slots) == MOST_SLOTS  # type: ignore[attr-defined]


def test_a_slot_that_cannot_be_opened_leaves_nothing() -> None:
    made = slots(100)
    made.kv.is_full = True  # type: ignore[attr-defined]
    with pytest.raises(PlanError):
        given(made, [1, 2])
    assert made.free_rows == 100


def test_rows_of_another_form_are_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "EXACT_CONTEXT", 8)
    monkeypatch.setattr(batch, "EXPANDED_TOKENS", 4)
    ids = list(range(40))

    def shared(n: int, m: int) -> int:
        a, b = np.array(ids[:n]), np.array(ids[:m])
        return common(a, batch.expanded_runs(n), b, batch.expanded_runs(m))

    assert shared(7, 40) == 7  # all before EXACT_CONTEXT
    assert shared(10, 11) == 10  # 8 // 4 * 4 is not beyond it: none is expanded
    assert shared(11, 12) == 8  # to the second, 8 .. 11 are expanded
    assert shared(13, 14) == 13  # the same pieces
    assert shared(14, 17) == 12  # 12 and 13 were absorbed at the first prompt's end
    assert shared(17, 14) == 12
    made = slots(1000)
    use(made, ids[:14], expanded=((8, 12),))
    assert reused(made, ids[:20], expanded=((8, 20),)) == 12
    use(made, ids[:13], expanded=((8, 12),))
    assert reused(made, ids[:14], expanded=((8, 12),)) == 13
