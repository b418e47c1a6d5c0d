"""Worker: one thread that does a job while others compute, and rests when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Worker:
    """One job at a time, and one caller. A job asks now and then whether it `is_wanted` back."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle, self._wanted = threading.Event(), threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="offload-slots", daemon=True)
        self._thread.start()

    @property
    def is_wanted(self) -> bool:
        """Whether `rest` waits for the job's end."""
        return self._wanted.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done."""
        return self._idle.is_set()

    def waits(self, seconds: float) -> bool:
        """The same after some time, or sooner."""
        return self._wanted.wait(seconds)

    def start(self, job: Job) -> None:
        """Do it; nothing else is being done."""
        self._wanted.clear()
        self._idle.clear()
        self._jobs.put(job)

    def rest(self) -> None:
        """Until nothing is being done; raises what the job has raised."""
        self._wanted.set()
        self._idle.wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the thread."""
        self._wanted.set()
        self._idle.wait()
        self._jobs.put(None)
        self._thread.join()

    def _live(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as exc:
                self._error = exc
            self._idle.set()
