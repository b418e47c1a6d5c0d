"""Who may use the engine: one answer at a time, the next one is refused or waits.

An answer holds the engine from its first token asked for until it ends: exhausted, closed,
forgotten, failed or cancelled. One that was asked for and not begun holds nothing.
"""

from __future__ import annotations

import threading

from offload.errors import OffloadError, RequestError

LOOK = 0.5  # seconds between two looks of a waiting thread, should it have missed the word


class Cancelled(Exception):  # noqa: N818
    """Raised inside a forward pass by `Engine.cancel`; never leaves the engine."""


class Turn:
    """The right to answer, from `begin` to `end`; made by `Turns.ask`."""

    def __init__(self, turns: Turns, cancels: int) -> None:
        self.is_cancelled = False
        self.thread: threading.Thread | None = None  # that used it last
        self.cancels = cancels  # of the engine, when it was asked for
        self._turns = turns

    def begin(self) -> None:
        """Take the engine; waits or is refused while another turn has it (RequestError)."""
        self._turns.take(self)
        self.is_cancelled |= self.cancels != self._turns.cancels

    def end(self) -> None:
        """Give the engine back, from any thread; twice is fine."""
        self._turns.give(self)

    def enter(self) -> None:
        """Before each forward pass: remember the thread, then `check`."""
        self.thread = threading.current_thread()
        self.check()

    def check(self) -> None:
        """Before each layer: raise unless this turn may go on."""
        self._turns.check_open()
        if self.is_cancelled:
            raise Cancelled


class Turns:
    """At most one turn runs. The lock may be taken again by its holder.

    (The garbage collector ends a forgotten answer wherever it likes, also in here.)
    """

    def __init__(self, *, wait: bool) -> None:
        self.cancels = 0  # calls of `cancel` that found no running turn
        self._wait = wait
        self._running: Turn | None = None
        self._queue: list[Turn] = []  # those that wait
        self._changed = threading.Condition()
        self._is_closed = False

    def ask(self) -> Turn:
        """A turn to begin later; refused at once where it could not begin now."""
        self.check_open()
        self._refuse_if_taken()
        return Turn(self, self.cancels)

    def take(self, turn: Turn) -> None:
        """Let a turn run as soon as no other does, first come, first served."""
        with self._changed:
            self.check_open()
            self._queue.append(turn)
            try:
                while self._taken() is not None or self._queue[0] is not turn:
                    self._refuse_if_taken()
                    self._changed.wait(LOOK)
                    self.check_open()
                    turn.cancels = self.cancels  # a cancel was meant for those that ran meanwhile
                turn.thread = threading.current_thread()
                self._running = turn
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()

    def give(self, turn: Turn) -> None:
        """Let the next turn run."""
        with self._changed:
            if self._running is turn:
                self._running = None
                self._changed.notify_all()

    def cancel(self) -> None:
        """End the running turn, or those that were asked for and have not begun. Takes no lock."""
        running = self._taken()
        if running is None:
            self.cancels += 1
        else:
            running.is_cancelled = True

    def close(self) -> None:
        """End the running turn with an error, and every one that waits."""
        self._is_closed = True
        with self._changed:
            self._changed.notify_all()

    def check_open(self) -> None:
        """OffloadError after `close`."""
        if self._is_closed:
            raise OffloadError("the engine is closed; load the model again")

    def _taken(self) -> Turn | None:
        """The turn that has the engine. A cancelled one has not: it computes nothing any more."""
        running = self._running
        return None if running is None or running.is_cancelled else running

    def _refuse_if_taken(self) -> None:
        running = self._taken()
        if running is None:
            return
        if not self._wait:
            raise RequestError(
                "this engine is giving another answer; iterate that one to its end or close() it "
                "first, or load with wait=True to take turns"
            )
        if running.thread is threading.current_thread():
            raise RequestError(
                "this thread has not finished another answer of this engine, so waiting for that "
                "one would never end; iterate it to its end or close() it first"
            )
