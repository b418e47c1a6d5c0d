"""Threads of one download: what they count, say and fail with, told by the caller's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from offload.stats import LoadProgress

TICK = 0.2  # seconds between two reports
LEAVE = 1.0  # seconds that threads get to end after Ctrl-C

Report = Callable[[LoadProgress], None]
Notice = Callable[[str], None]


class Tally:
    """Counts of all threads: bytes fetched and to fetch, bytes checked and to check."""

    def __init__(self, notice: Notice) -> None:
        self._lock = threading.Lock()
        self._notices: list[str] = []
        self._notice = notice
        self.fetched = self.to_fetch = self.checked = self.to_check = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def add(self, *, fetched: int = 0, to_fetch: int = 0, checked: int = 0) -> None:
        """Count some bytes."""
        with self._lock:
            self.fetched += fetched
            self.to_fetch += to_fetch
            self.checked += checked

    def say(self, text: str) -> None:
        """Leave a message for the thread that may speak."""
        with self._lock:
            self._notices.append(text)

    def fail(self, error: BaseException) -> None:
        """Keep the first error and end all threads."""
        with self._lock:
            self.error = self.error or error
        self.stop.set()

    def report(self, report: Report) -> None:
        """Pass on messages and progress; called by the caller's thread only."""
        with self._lock:
            notices, self._notices = self._notices, []
        for text in notices:
            self._notice(text)
        if self.fetched == 0 and self.checked < self.to_check:
            report(LoadProgress(phase="check", done_bytes=self.checked, total_bytes=self.to_check))
        elif self.to_fetch:
            report(
                LoadProgress(phase="download", done_bytes=self.fetched, total_bytes=self.to_fetch)
            )


def work_off(
    tasks: Iterable[Callable[[], None]], threads: int, tally: Tally, report: Report
) -> None:
    """Run all tasks, some at a time. The first error stops the others and is raised here.

    report: called by this thread, several times a second. After Ctrl-C threads that wait for the
    network are left behind; they end with the program.
    """
    waiting = iter(tasks)
    lock = threading.Lock()

    def work() -> None:
        while not tally.stop.is_set():
            with lock:
                task = next(waiting, None)
            if task is None:
                return
            try:
                task()
            except BaseException as exc:
                tally.fail(exc)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                tally.report(report)
                worker.join(TICK)
    finally:
        tally.stop.set()
        deadline = time.monotonic() + LEAVE
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(0.0, deadline - time.monotonic()))
        tally.report(report)  # how far it came, in any case
    if tally.error is not None:
        raise tally.error
