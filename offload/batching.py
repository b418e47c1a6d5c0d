"""Which sequences take part in the next step, with how many tokens each, and on which rows.

Every sequence that answers gives its next token. Prompts share `chunk` tokens: the shortest
remainder goes first, so that short requests need not wait for long ones, but at least half belongs
to the oldest, so that none waits forever. So between two tokens of an answer lies one step with at
most `chunk` tokens of prompts, whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np

from offload.batch import Batch, Runs, Span
from offload.errors import DeviceError
from offload.kv_slots import KVSlots, common
from offload.sequence import Sequence

GROWTH = 64  # rows promised ahead to an answer of unknown length
SHARING = 512  # tokens that share an expansion of all rows before them, at best
WORTH = 16  # shared rows that a prompt waits for while another one reads them


@dataclass(frozen=True, slots=True)
class Part:
    """A sequence's tokens ids[first:end] in a step; is_whole: then its next token can be chosen."""

    sequence: Sequence
    first: int
    end: int
    is_whole: bool = True


class Scheduler:
    """Chooses the parts of each step and gives sequences their slots.

    Rows are promised when a sequence joins, but where max_tokens is not given answers may outgrow
    what there is. Then the older one has precedence: the younger gives up its slot, waits, and
    computes later what it has lost by then; its answer stays the same.
    """

    def __init__(self, slots: KVSlots, chunk: int) -> None:
        self.slots = slots
        self.chunk = chunk

    def parts(self, sequences: List[Sequence]) -> list[Part]:
        """The next step. sequences: all that are not over, the oldest first."""
        answering: list[Part] = []
        reading: list[Sequence] = []
        for sequence in sequences:
            try:
                if not sequence.wants or not self._has_rows(sequence, sequences):
                    continue
            except DeviceError:
                raise
            except Exception as exc:  # the system refuses memory
                sequence.fail(exc)
                continue
            slot = sequence.slot
            assert slot is not None
            if slot.length == sequence.n - 1:
                answering.append(Part(sequence, slot.length, sequence.n))
            else:
                reading.append(sequence)
        return answering + self._pieces(reading) if reading else answering

    def _pieces(self, reading: list[Sequence]) -> list[Part]:
        counts = shares([sequence.unread for sequence in reading], self.chunk)
        parts = []
        for sequence, count in zip(reading, counts, strict=True):
            assert sequence.slot is not None
            first = sequence.slot.length
            if count:
                end = well_cut(first, first + count, sequence.expanded)
                parts.append(Part(sequence, first, end, end == sequence.n))
        return parts

    def _has_rows(self, sequence: Sequence, sequences: List[Sequence]) -> bool:
        """Whether it has rows for all tokens known, after giving it what can be given."""
        slot = sequence.slot
        if slot is not None and sequence.n <= slot.promised:
            return True
        if slot is None and self._waits_for_prefix(sequence, sequences):
            return False
        while not self._give_rows(sequence):
            if not self._take_away(sequence, sequences):
                return False
        return True

    def _give_rows(self, sequence: Sequence) -> bool:
        n, slot = sequence.n, sequence.slot
        if slot is not None:
            return self.slots.grow(slot, n, min(sequence.last - 1, n + GROWTH))
        slot = self.slots.acquire(sequence.ids, n, sequence.expanded, sequence.promised)
        if slot is None:
            return False
        sequence.sit(slot)
        return True

    def _take_away(self, sequence: Sequence, sequences: List[Sequence]) -> bool:
        """Take the slot of another one: younger, or without a reader at the moment."""
        is_younger = False
        victim = None
        for other in sequences:
            if other is sequence:
                is_younger = True
            elif other.slot is not None and (is_younger or not other.wants):
                victim = other
        if victim is None:
            return self.slots.reclaim([other.slot for other in sequences])
        self.release(victim)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's slot; its rows stay as long as nobody needs the room."""
        if sequence.slot is not None:
            self.slots.release(sequence.slot)
            sequence.slot = None

    def _waits_for_prefix(self, sequence: Sequence, sequences: List[Sequence]) -> bool:
        """Whether an older prompt is just reading what this one starts with, too."""
        _, have = self.slots.longest(sequence.known, sequence.expanded)
        for other in sequences:
            if other is sequence:
                break
            if other.slot is not None and other.unread > 1 and other.wants:
                shared = common(other.known, other.expanded, sequence.known[:-1], sequence.expanded)
                if shared >= have + WORTH:
                    return True
        return False


def shares(unread: List[int], chunk: int) -> list[int]:
    """How many tokens each prompt reads, at most `chunk` together; unread: the oldest first."""
    counts = [0] * len(unread)
    counts[0] = min(unread[0], -(-chunk // 2))
    left = chunk - counts[0]
    for i in sorted(range(len(unread)), key=lambda i: unread[i] - counts[i]):
        more = min(left, unread[i] - counts[i])
        counts[i] += more
        left -= more
    return counts


def well_cut(first: int, end: int, runs: Runs) -> int:
    """Where to end a step that could take first .. end - 1: expanded ones in whole SHARING."""
    for start, stop in runs:
        if start < end < stop:
            cut = end - (end - start) % SHARING
            return cut if cut > first else end
    return end


def batch_of(parts: List[Part]) -> Batch:
    """What the model computes in a step: logits for the parts that are whole."""
    if len(parts) == 1:  # most steps: not worth four arrays
        part = parts[0]
        wanted = np.array([part.end - part.first - 1] if part.is_whole else [], np.int64)
        ids = part.sequence.ids[part.first : part.end]
        return Batch(spans=(_span(part),), ids=ids, wanted=wanted)
    ids = np.concatenate([part.sequence.ids[part.first : part.end] for part in parts])
    ends = np.cumsum([part.end - part.first for part in parts])
    whole = np.array([part.is_whole for part in parts])
    return Batch(spans=tuple(map(_span, parts)), ids=ids, wanted=ends[whole] - 1)


def _span(part: Part) -> Span:
    sequence, slot = part.sequence, part.sequence.slot
    assert slot is not None
    slot.touched = max(slot.touched, part.end)
    return Span(
        slot=slot.number,
        first=part.first,
        count=part.end - part.first,
        expanded=sequence.expanded,
    )
