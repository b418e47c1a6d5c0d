"""Ticket: a request at the desk, of one answer or of several; Seat: one of its answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from offload.answer import Answer
from offload.server.events import Ended, Event, Queued, Reading
from offload.stats import LoadProgress

MOST_HELD = 256  # events that wait for a client; then its answers wait
TELL_READING = 0.1  # seconds between two events of a prompt's progress

State = Literal["queued", "reading", "answering", "over"]


class Seat:
    """The desk's book-keeping for one answer. number: of the slot, once it has begun."""

    def __init__(self, ticket: Ticket, index: int) -> None:
        self.ticket = ticket
        self.index = index
        self.answer: Answer | None = None
        self.state: State = "queued"
        self.position = 0
        self.number = -1
        self.n_tokens = self.n_reasoning = 0
        self.read = 0  # tokens of the prompt
        self.began = 0.0  # monotonic
        self._told = 0.0

    def progress(self, update: LoadProgress) -> None:
        """What the engine calls while it reads the prompt."""
        answer = self.answer
        if answer is None:
            return
        total, reused = answer.stats.prompt_tokens, answer.stats.reused_tokens
        self.read = reused + update.done_bytes
        now = time.monotonic()
        if now - self._told >= TELL_READING or self.read == total:
            self._told = now
            self.ticket.put(self.index, Reading(self.read, total, reused))
            self.ticket.wake()


class Ticket:
    """What a request's writer holds. Made and read in the event loop's thread.

    name: for people. `close` ends its answers and nobody else's; nothing comes after it.
    """

    def __init__(
        self, n: int, name: str, *, close: Callable[[Ticket], None], room: Callable[[], None]
    ) -> None:
        self.name = name
        self.seats = [Seat(self, index) for index in range(n)]
        self.asked = time.monotonic()
        self.is_closed = False
        self._close = close
        self._room = room
        self._box: deque[tuple[int, Event]] = deque()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_awaited = self._is_paused = False
        self._n_open = n

    @property
    def prompt_tokens(self) -> list[int]:
        """Of each answer."""
        return [s.answer.stats.prompt_tokens for s in self.seats if s.answer is not None]

    async def events(self, seconds: float) -> list[tuple[int, Event]]:
        """What has happened, (index of the answer, event), oldest first; [] if nothing has."""
        if not self._box and not self.is_closed:
            self._changed.clear()
            self._is_awaited = True
            if not self._box:
                await self._wait(seconds)
            self._is_awaited = False
        return self.take()

    def take(self) -> list[tuple[int, Event]]:
        """The same without waiting."""
        was_full = self.is_full
        got = [self._box.popleft() for _ in range(len(self._box))]
        if was_full:
            self._room()
        return got

    async def pause(self, seconds: float) -> None:
        """Let events gather, unless all answers have ended, or so many wait that these wait."""
        self._changed.clear()
        self._is_paused = True
        if self._n_open and not self.is_full and not self.is_closed:
            await self._wait(seconds)
        self._is_paused = False

    async def _wait(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def close(self) -> None:
        """Nobody wants it any more; twice is fine. In the event loop's thread."""
        if not self.is_closed:
            self.is_closed = True
            self._close(self)
            self._changed.set()

    # --- for the desk, in any thread --------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether its client has so much to take that its answers wait."""
        return len(self._box) >= MOST_HELD

    def put(self, index: int, event: Event) -> None:
        """Something for its reader, who is told by `wake`."""
        self._box.append((index, event))
        self._n_open -= isinstance(event, Ended)

    def wake(self) -> None:
        """Let the reader look, if it waits."""
        if self._is_awaited or (self._is_paused and (not self._n_open or self.is_full)):
            self._is_awaited = self._is_paused = False
            self._loop.call_soon_threadsafe(self._changed.set)

    def stands(self, seat: Seat, position: int) -> None:
        """A new position in the queue."""
        if seat.position != position:
            seat.position = position
            if position:
                self.put(seat.index, Queued(position))
                self.wake()
