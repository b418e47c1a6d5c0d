"""Ctrl-C while an answer runs: the first one asks it to stop, a second one ends the program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopOnCtrlC:
    """While this context is open, Ctrl-C calls `cancel`; a second Ctrl-C raises KeyboardInterrupt.

    The main thread only (signals reach no other).
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self.was_requested = False

    def __enter__(self) -> StopOnCtrlC:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.was_requested:
            raise KeyboardInterrupt
        self.was_requested = True
        self._cancel()


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep keys typed during an answer from appearing in it; they stay in the input queue."""
    if sys.platform == "win32" or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
