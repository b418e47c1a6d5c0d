"""Desk: takes requests to the engine, and hands out what it says.

Requests come in the event loop's thread; their prompts are made in threads of a small pool; one
thread, the desk's, steps the engine and reads its answers. Whoever waits is served in the order of
arrival, as soon as fewer than `parallel` answers run and the KV cache has room; one that it has no
room for is passed by those that fit (line.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from offload.answer import Answer
from offload.engine import Engine, Progress
from offload.errors import OffloadError
from offload.line import Line
from offload.server.errors import Failure, busy, failure_of, refused, unavailable
from offload.server.events import Ended
from offload.server.ticket import Seat, Ticket
from offload.server.usage import full_notes
from offload.server.views import SlotView, Totals, view_of
from offload.speech import Token
from offload.stats import RunStats

MAKERS = 4  # threads that make prompts
LOOK = 0.05  # seconds between two looks whether all is done
ENDING = "the server is shutting down; ask again when it is back"

Start = Callable[[Engine, Progress], Answer]
T = TypeVar("T")


class Desk:
    """parallel: answers that run together; queue: answers that may wait beside them."""

    def __init__(
        self,
        engine: Engine,
        *,
        parallel: int,
        queue: int,
        observe: Callable[[Seat, Failure | None], None] = lambda seat, failure: None,
    ) -> None:
        """observe: told of each answer as it ends, and of what it has failed by."""
        self.engine = engine
        self._observe = observe
        self.parallel = parallel
        self.queue = queue
        self.totals = Totals()
        self.is_draining = False
        self._making = 0  # answers whose prompts are being made
        self._waiting: Line[Seat] = Line()
        self._running: list[Seat] = []
        self._changed = threading.Condition()  # guards the two, and is told of every change
        self._looks: list[Callable[[], None]] = []  # by `between_steps`
        self._is_closed = False
        self._makers = ThreadPoolExecutor(MAKERS, "prompt")
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # --- in the event loop's thread ---------------------------------------------------------------

    async def ask(
        self, starts: Sequence[Start], *, name: str = "", is_quick: bool = False
    ) -> Ticket:
        """A ticket for one answer per start; FailureError: busy, draining; RequestError.

        A start makes its answer and begins nothing; the progress that it is given is the answer's.
        is_quick: it is done here and now, for no thread needs to wake up then, which takes longer
        where all cores compute.
        """
        if self.is_draining:
            raise unavailable(ENDING, 5)
        n, most = len(starts), self.parallel + self.queue
        if n > most:
            raise refused(f"{n} answers were asked for; this server takes {most} at a time")
        if self.n_open + n > most:
            self.totals.refused += 1
            raise busy(len(self._waiting), self._seconds_to_wait())
        ticket = Ticket(n, name, close=self._leave, room=self._notify)
        self._making += n
        try:
            if is_quick:
                self._make(ticket, starts)
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._makers, self._make, ticket, starts)
        finally:
            self._making -= n
        with self._changed:
            if self._is_closed or self.is_draining:
                raise unavailable(ENDING, 5)
            self.totals.requests += 1
            self.totals.taken += n
            for seat in ticket.seats:
                self._waiting.join(seat)
            self._number_waiting(free=self.parallel - len(self._running))
            self._changed.notify_all()
        return ticket

    def n_running(self) -> int:
        """Answers that run."""
        return len(self._running)

    @property
    def n_open(self) -> int:
        """Answers that run, wait, or are being made."""
        with self._changed:  # one may be on its way from here to there
            return len(self._running) + len(self._waiting) + self._making

    def snapshot(self) -> list[SlotView]:
        """Those that run, by slot, and then those that wait."""
        with self._changed:
            seats = [*sorted(self._running, key=lambda seat: seat.number), *self._waiting]
            return [view_of(seat) for seat in seats]

    async def between_steps(self, look: Callable[[Engine], T]) -> T:
        """What `look` finds while nothing is computed; it must be quick. OffloadError if closed."""
        found: Future[T] = Future()
        with self._changed:
            if self._is_closed:
                raise OffloadError("the engine is closed")
            self._looks.append(lambda: _fill(found, look, self.engine))
            self._changed.notify_all()
        return await asyncio.wrap_future(found)

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs and waits; whether all of it came to its end."""
        self.is_draining = True
        until = time.monotonic() + seconds
        while self.n_open and time.monotonic() < until:
            await asyncio.sleep(LOOK)
        return not self.n_open

    def close(self) -> None:
        """End everything, with an error where somebody listens; blocks for a step at most."""
        self.is_draining = True
        with self._changed:
            self._is_closed = True
            for seat in self._running:
                if seat.answer is not None:
                    seat.answer.close()
            self._changed.notify_all()
        self._thread.join()
        self._makers.shutdown(wait=False, cancel_futures=True)

    def _make(self, ticket: Ticket, starts: Sequence[Start]) -> None:
        """In a thread of the pool, or in the event loop's."""
        for seat, start in zip(ticket.seats, starts, strict=True):
            seat.answer = start(self.engine, seat.progress)

    def _leave(self, ticket: Ticket) -> None:
        """Its client has gone, or has all."""
        with self._changed:
            for seat in ticket.seats:
                if seat.state == "over":
                    continue
                if seat in self._waiting:
                    self._waiting.leave(seat)
                    seat.state = "over"
                    self._observe(seat, None)
                self.totals.left += 1
                if seat.answer is not None:
                    seat.answer.close()
            self._number_waiting()
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _seconds_to_wait(self) -> int:
        """A guess when there is room again: what answers took so far."""
        totals = self.totals
        if not totals.answers:
            return 1
        mean = (totals.prompt_seconds + totals.decode_seconds) / totals.answers
        return max(1, min(60, round(mean)))

    def _number_waiting(self, free: int = 0) -> None:
        """Tell all of their positions; free: so many new ones may begin as soon as it is looked."""
        for position, seat in enumerate(self._waiting, 1):
            if position > free or seat.position:
                seat.ticket.stands(seat, position)

    # --- in the desk's thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while not self._is_closed:
            try:
                self._turn()
            except Exception as exc:  # ours: nobody may wait for ever
                self._end_all(failure_of(exc))
        self._end_all(unavailable(ENDING, 5).failure)
        for look in self._looks:
            look()

    def _turn(self) -> None:
        with self._changed:
            while not self._has_work():
                self._number_waiting()
                self._changed.wait()
            if self._is_closed:
                return
            self._seat_waiting()
            looks, self._looks = self._looks, []
            running = list(self._running)
        for look in looks:
            look()
        try:
            self._round(running)
        except Exception as exc:  # of the engine itself, not of one answer
            failure = failure_of(exc)
            for seat in running:
                self._end(seat, failure)

    def _has_work(self) -> bool:
        if self._is_closed or self._looks or self._next() is not None:
            return True
        return any(seat.ticket.is_closed or not seat.ticket.is_full for seat in self._running)

    def _next(self) -> Seat | None:
        """Whoever of those that wait can begin."""
        if len(self._running) >= self.parallel:
            return None
        return self._waiting.next(self._fits, self._delays)

    def _fits(self, seat: Seat) -> bool:
        # alone there is nothing to wait for: what is too large is refused as it begins
        return not self._running or seat.answer is None or seat.answer.has_room

    def _delays(self, one: Seat, before: Seat) -> bool:
        """Whether there is no room for both beside those that came later and run already."""
        if before.answer is None:
            return False
        later = [seat for seat in self._running if seat.ticket.asked > before.ticket.asked]
        others = [seat.answer for seat in (one, *later) if seat.answer is not None]
        return not before.answer.has_room_with(others)

    def _seat_waiting(self) -> None:
        while (seat := self._next()) is not None:
            self._waiting.begin(seat, self._delays)
            taken = {other.number for other in self._running}
            seat.number = next(i for i in range(self.parallel) if i not in taken)
            seat.state, seat.began = "reading", time.monotonic()
            seat.ticket.stands(seat, 0)
            self._running.append(seat)
            try:
                if seat.answer is not None:
                    seat.answer.begin()
            except Exception as exc:
                self._end(seat, failure_of(exc))
        self._number_waiting()

    def _round(self, running: list[Seat]) -> None:
        """Hand out what is there, then compute."""
        for seat in running:
            if seat.ticket.is_closed:
                self._end(seat, None)
            elif not seat.ticket.is_full:
                self._read(seat)
        if any(seat.state != "over" for seat in running):
            self.engine.step()

    def _read(self, seat: Seat) -> None:
        answer, ticket = seat.answer, seat.ticket
        assert answer is not None
        try:
            while (tokens := answer.ready()) is not None:
                if not tokens:
                    self._end(seat, None)
                    return
                self._hand_out(seat, tokens)
        except Exception as exc:
            self._end(seat, failure_of(exc))
            return
        ticket.wake()

    def _hand_out(self, seat: Seat, tokens: list[Token]) -> None:
        seat.state = "answering"
        seat.n_tokens += 1
        seat.n_reasoning += tokens[0].channel == "reasoning"
        for token in tokens:
            seat.ticket.put(seat.index, token)

    def _end(self, seat: Seat, failure: Failure | None) -> None:
        answer = seat.answer
        stats = RunStats() if answer is None else answer.stats
        n_tokens = 0
        notes: tuple[str, ...] = ()
        if answer is not None:
            answer.close()
            n_tokens = len(answer.sequence.generated)
            notes = answer.notes + full_notes(answer, self.engine.plan.kv.context)
        with self._changed:
            if seat.state == "over":
                return
            seat.state = "over"
            if seat in self._running:
                self._running.remove(seat)
            self.totals.count(stats, n_tokens, failure)
            self._observe(seat, failure)
        seat.ticket.put(
            seat.index,
            Ended(
                stats=stats,
                n_tokens=n_tokens,
                n_reasoning=seat.n_reasoning,
                notes=notes,
                failure=failure,
            ),
        )
        seat.ticket.wake()

    def _end_all(self, failure: Failure) -> None:
        with self._changed:
            for seat in [*self._running, *self._waiting]:
                self._end(seat, failure)
            self._waiting.clear()


def _fill(found: Future[T], look: Callable[[Engine], T], engine: Engine) -> None:
    if not found.set_running_or_notify_cancel():
        return
    try:
        found.set_result(look(engine))
    except Exception as exc:
        found.set_exception(exc)
