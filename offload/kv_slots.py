"""KVSlots: whose rows lie where in the KV cache, under one budget of rows.

A sequence's rows stay when it has ended. A later prompt that begins with the same tokens goes on
from them: in their slot if it wants nearly all of them, else with a copy. Idle slots that were not
used for longest are dropped when rows are short. No device here, only what `model.kv` offers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from offload.batch import Runs, differ_at
from offload.errors import PlanError

Array = np.ndarray
MOST_SLOTS = 64  # open at once, unless more are busy
WIDTHS = {"f32": 4, "f16": 2, "q8_0": 1}  # bytes of a value of a row, but for q8_0's scales
SPARED = 8  # a slot is taken over if its prefix is used and at most one row in so many is lost


class KVRows(Protocol):
    """What `model.kv` must offer; see devices.base.KVStore."""

    context: int
    token_bytes: int
    kind: str

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot, of the model's kind of rows or another one; PlanError."""

    def close(self, slot: int) -> None:
        """Give its memory back."""

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each layer, (count, row_bytes) uint8; views."""

    def write(self, slot: int, count: int) -> list[Array]:
        """The same, to be written."""


@dataclass(slots=True, eq=False, kw_only=True)
class Slot:
    """ids[:length] are the tokens whose rows can be used; expanded: the form they were made in.

    touched: rows whose memory was taken. promised: to the sequence that has it; 0: it is idle.
    used: a clock.
    """

    number: int
    ids: Array
    expanded: Runs
    length: int = 0
    touched: int = 0
    promised: int = 0
    used: int = 0

    @property
    def rows(self) -> int:
        """What it takes of the budget."""
        return max(self.touched, self.promised)


class KVSlots:
    """At most `budget` rows in slots; so many that one sequence of any length has room.

    page: rows whose memory is taken together. One caller at a time, and never during a forward
    pass.
    """

    def __init__(self, kv: KVRows, budget: int, page: int = 1) -> None:
        self.kv = kv
        self._page = page
        self.budget = self.whole(max(budget, kv.context))
        self._slots: list[Slot] = []
        self._lent: dict[int, int] = {}  # number: rows of the budget
        self._clock = 0

    def acquire(self, ids: Array, n: int, expanded: Runs, rows: int) -> Slot | None:
        """A slot with as many rows of ids[:n] as there are, but not the last one's; None: no room.

        ids: the array in which its sequence will grow. rows: promised to it, at least n.
        """
        source, shared = self.longest(ids[:n], expanded)
        if source is not None and not source.promised and self._is_best_taken(source, shared, rows):
            if not self._make_room(self.whole(rows) - self.whole(source.touched), keep=source):
                return None
            slot = source
            slot.ids, slot.expanded = ids, expanded
        else:
            if not self._make_room(self.whole(rows), keep=source):
                return None
            slot = self._open(ids, expanded, keep=source)
            if source is not None:
                self.kv.copy(source.number, slot.number, shared)
        slot.length, slot.promised = shared, rows
        slot.touched = max(slot.touched, shared)
        self._use(slot)
        return slot

    def grow(self, slot: Slot, least: int, most: int) -> bool:
        """Promise `least` rows to a slot, up to `most` if they are free; False: no room."""
        have = self.whole(slot.rows)
        if not self._make_room(self.whole(least) - have, keep=slot):
            return False
        slot.promised = max(least, min(most, have + self.free_rows))
        return True

    def release(self, slot: Slot) -> None:
        """Its sequence has ended, or must wait; the rows stay for others."""
        slot.ids = slot.ids[: slot.length].copy()
        slot.promised = 0
        self._use(slot)
        if not slot.length:
            self.drop(slot)

    def drop(self, slot: Slot) -> None:
        """Give the memory of its rows back; twice is fine."""
        if slot in self._slots:
            self._slots.remove(slot)
            self.kv.close(slot.number)

    def reclaim(self, held: list[Slot | None]) -> bool:
        """Release what an interruption has left promised to nobody; whether there was such."""
        lost = [slot for slot in self._slots if slot.promised and slot not in held]
        for slot in lost:
            self.release(slot)
        return bool(lost)

    def drop_all(self) -> None:
        """Forget everything that no sequence uses."""
        for slot in self.idle():
            self.drop(slot)

    def adopt(self, ids: Array, expanded: Runs) -> Slot | None:
        """A busy slot for rows from elsewhere, length 0; None: no room."""
        if not self._make_room(self.whole(len(ids)), keep=None):
            return None
        slot = self._open(ids, expanded, keep=None)
        slot.promised = slot.touched = len(ids)
        return slot

    def longest(self, ids: Array, expanded: Runs) -> tuple[Slot | None, int]:
        """The slot with the longest prefix of `ids` short of the last, and that many rows."""
        best, most = None, 0
        for slot in sorted(self._slots, key=lambda slot: -slot.used):
            n = common(slot.ids[: slot.length], slot.expanded, ids[:-1], expanded)
            if n > most:
                best, most = slot, n
        return best, most

    def lend(self, kind: str, rows: int) -> int:
        """An empty slot for rows of this kind, by number, until `take_back`.

        Beside the budget, but where memory is taken in pages: PlanError if there is no room.
        """
        taken = 0
        if self._page > 1:
            taken = self.whole(rows) * -(-WIDTHS[kind] // WIDTHS[self.kv.kind])
            if not self._make_room(taken, keep=None):
                raise PlanError(
                    f"{rows:,} tokens in {kind} need {taken:,} of the {self.budget:,} rows of the "
                    f"KV cache, {self.free_rows:,} are free: end unfinished answers, or load with "
                    "larger kv_tokens"
                )
        number = self._spare_number()
        self.kv.open(number, kind)
        self._lent[number] = taken
        return number

    def take_back(self, number: int) -> None:
        """What was lent is not used any more."""
        del self._lent[number]
        self.kv.close(number)

    @property
    def free_rows(self) -> int:
        """Rows that no slot takes."""
        taken = sum(self.whole(slot.rows) for slot in self._slots)
        return self.budget - taken - sum(self._lent.values())

    def whole(self, rows: int) -> int:
        """So many rows in whole pages."""
        return -(-rows // self._page) * self._page

    def idle(self) -> list[Slot]:
        """Slots that no sequence has, those not used for longest first."""
        return sorted((s for s in self._slots if not s.promised), key=lambda slot: slot.used)

    def _is_best_taken(self, slot: Slot, shared: int, rows: int) -> bool:
        """Whether to go on in an idle slot instead of copying `shared` rows out of it.

        Little is lost by it; or a copy would cost slots that were used later.
        """
        older = sum(self.whole(s.touched) for s in self.idle() if s.used < slot.used)
        is_short = self.whole(rows) > self.free_rows + older
        return is_short or SPARED * (slot.touched - shared) <= shared

    def _make_room(self, rows: int, keep: Slot | None) -> bool:
        """Drop idle slots until `rows` (whole pages) are free; none if that is not enough."""
        idle = [slot for slot in self.idle() if slot is not keep]
        if rows > self.free_rows + sum(self.whole(slot.touched) for slot in idle):
            return False
        for slot in idle:
            if rows <= self.free_rows:
                break
            self.drop(slot)
        return True

    def _open(self, ids: Array, expanded: Runs, keep: Slot | None) -> Slot:
        if len(self._slots) >= MOST_SLOTS:
            for slot in [slot for slot in self.idle() if slot is not keep][:1]:
                self.drop(slot)
        slot = Slot(number=self._spare_number(), ids=ids, expanded=expanded)
        self.kv.open(slot.number)
        self._slots.append(slot)
        return slot

    def _spare_number(self) -> int:
        taken = self._lent.keys() | {slot.number for slot in self._slots}
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def _use(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def common(a: Array, expanded_a: Runs, b: Array, expanded_b: Runs) -> int:
    """Rows that two lists of tokens share: the same tokens before, in the same form."""
    n, differs_at = min(len(a), len(b)), differ_at(expanded_a, expanded_b)
    if differs_at is not None:
        n = min(n, differs_at)
    if n == 0 or a[0] != b[0]:
        return 0
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if differs.size else n
