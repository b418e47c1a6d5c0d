"""Threads that fill slots: reads and copies behind the computation, the urgent ones first.

ticket = filler.submit(source.fill(expert, slot))
...                              # compute what is there
filler.wait(ticket, check)       # raises what went wrong
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Task = Callable[[], int]
LOOK = 0.05  # seconds between two looks for a cancel


class Ticket:
    """Some tasks that belong together. error: what the first that failed raised."""

    __slots__ = ("error", "n_bytes", "remaining")

    def __init__(self, tasks: int) -> None:
        self.remaining = tasks
        self.n_bytes = 0
        self.error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether no task is left."""
        return self.remaining == 0


class Filler:
    """`threads` threads and two queues. n_bytes: moved so far; busy: seconds with work under way.

    A task that has begun always ends by itself; `close` forgets those that have not.
    """

    def __init__(self, threads: int) -> None:
        self.n_bytes = 0
        self.busy = 0.0
        self._urgent: deque[tuple[Ticket, Task]] = deque()
        self._ahead: deque[tuple[Ticket, Task]] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._since = 0.0
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._live, name=f"offload-fill-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tasks: Sequence[Task], *, urgent: bool = True) -> Ticket:
        """Begin tasks as soon as a thread is free; urgent ones before all others."""
        ticket = Ticket(len(tasks))
        with self._changed:
            (self._urgent if urgent else self._ahead).extend((ticket, task) for task in tasks)
            self._changed.notify_all()
        return ticket

    def hurry(self, ticket: Ticket) -> None:
        """Its tasks are urgent now."""
        with self._changed:
            mine = [item for item in self._ahead if item[0] is ticket]
            for item in mine:
                self._ahead.remove(item)
            self._urgent.extend(mine)

    def wait(self, ticket: Ticket, check: Callable[[], None] = lambda: None) -> None:
        """Until its tasks are done; `check` is called now and then and may raise.

        Whether something went wrong is in the ticket.
        """
        while not ticket.is_done:
            with self._changed:
                if not ticket.is_done:
                    self._changed.wait(LOOK)
            check()

    def settle(self) -> None:
        """Until nothing is under way."""
        with self._changed:
            while self._running or self._urgent or self._ahead:
                self._changed.wait(LOOK)

    def close(self) -> None:
        """End the threads after what they do now."""
        with self._changed:
            self._is_closed = True
            dropped = [*self._urgent, *self._ahead]
            self._urgent.clear()
            self._ahead.clear()
            for ticket, _ in dropped:
                ticket.remaining -= 1
                ticket.error = ticket.error or RuntimeError("closed")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _live(self) -> None:
        while True:
            with self._changed:
                while not (self._urgent or self._ahead or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    return
                ticket, task = (self._urgent or self._ahead).popleft()
                if not self._running:
                    self._since = time.perf_counter()
                self._running += 1
            n_bytes, error = 0, None
            try:
                if ticket.error is None:  # else nobody wants it any more
                    n_bytes = task()
            except Exception as exc:
                error = exc
            with self._changed:
                self._running -= 1
                self.n_bytes += n_bytes
                if not self._running:
                    self.busy += time.perf_counter() - self._since
                ticket.n_bytes += n_bytes
                ticket.error = ticket.error or error
                ticket.remaining -= 1
                self._changed.notify_all()
