"""What the desk shows of its answers: each of those that are there, and sums of those that were."""

from __future__ import annotations

import time
from dataclasses import dataclass

from offload.server.errors import Failure
from offload.server.ticket import Seat, State
from offload.stats import RunStats


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """An answer at the desk, at a glance. number: of its slot; -1: it waits, as `position`."""

    number: int
    position: int
    state: State
    name: str
    prompt_tokens: int
    read: int
    reused: int
    tokens: int
    tps: float
    seconds: float


@dataclass(slots=True)
class Totals:
    """Of all answers that have ended; of requests and answers, too, that were taken.

    refused: requests, for a full queue. left: answers, by their clients.
    """

    requests: int = 0
    taken: int = 0
    answers: int = 0
    failed: int = 0
    left: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: int = 0
    decode_tokens: int = 0  # all but each first one
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    def count(self, stats: RunStats, n_tokens: int, failure: Failure | None) -> None:
        """An answer has ended."""
        self.answers += 1
        self.failed += failure is not None
        self.prompt_tokens += stats.prompt_tokens
        self.reused_tokens += stats.reused_tokens
        self.tokens += n_tokens
        self.decode_tokens += stats.decode_tokens
        self.prompt_seconds += stats.prompt_seconds
        self.decode_seconds += stats.decode_seconds


def view_of(seat: Seat) -> SlotView:
    """As it is now."""
    stats = RunStats() if seat.answer is None else seat.answer.stats
    since = seat.began if seat.number >= 0 else seat.ticket.asked
    return SlotView(
        number=seat.number,
        position=seat.position,
        state=seat.state,
        name=seat.ticket.name,
        prompt_tokens=stats.prompt_tokens,
        read=seat.read,
        reused=stats.reused_tokens,
        tokens=seat.n_tokens,
        tps=stats.decode_tps,
        seconds=time.monotonic() - since,
    )
