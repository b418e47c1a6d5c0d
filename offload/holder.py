"""Holder: which thread has the model and its KV slots; one at a time.

`lock` is held for moments and may be taken again by its holder; a pass runs without it, by the
thread that `take` has made the holder. (The garbage collector ends a forgotten answer wherever it
likes, also inside the lock.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offload.errors import OffloadError, RequestError

LOOK = 0.5  # seconds between two looks of a waiting thread, should it have missed the word


class Holder:
    """free: called once, when nobody has the model any more after `close`; may be changed."""

    def __init__(self, free: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.free = free
        self._thread: threading.Thread | None = None
        self.is_closed = self._is_freed = False

    def take_or_wait(self) -> bool:
        """Become the holder; or wait for a change, False. With the lock held; OffloadError."""
        self.check_open()
        if self._thread is not None:
            self.wait()
            return False
        self._thread = threading.current_thread()
        return True

    def give(self) -> None:
        """Not to be the holder any more, if this thread is; those who wait look again."""
        if self._thread is not threading.current_thread():
            return
        self._thread = None
        with self.lock:
            if self.is_closed and self._thread is None:
                self._free_once()
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the holder."""
        self.check_not_inside()
        try:
            with self.lock:
                while not self.take_or_wait():
                    pass
            yield
        finally:
            self.give()

    def wait(self) -> None:
        """Until something has changed, or may have. With the lock held."""
        self._changed.wait(LOOK)

    def notify(self) -> None:
        """Something has changed for those who wait."""
        with self.lock:
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody becomes the holder any more; the model is freed as soon as nobody is."""
        self.is_closed = True
        with self.lock:
            self._changed.notify_all()
            if self._thread is threading.current_thread():
                return  # called in a pass: `give` will do it
            while self._thread is not None:
                self.wait()
            self._free_once()

    def check_open(self) -> None:
        """OffloadError after `close`."""
        if self.is_closed:
            raise OffloadError("the engine is closed; load the model again")

    def check_not_inside(self) -> None:
        """RequestError if this thread is the holder already."""
        if self._thread is threading.current_thread():
            raise RequestError(
                "a function that the engine calls cannot ask the same engine for tokens or logits, "
                "they would wait for each other; do that after it has returned"
            )

    def _free_once(self) -> None:
        if not self._is_freed:
            self._is_freed = True
            self.free()
