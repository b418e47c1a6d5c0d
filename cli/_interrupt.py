"""Signals and the terminal's state: who may end the program, and how the terminal is left.

Ctrl-C while an answer runs asks it to stop; a second one ends the program. SIGTERM, SIGHUP and
SIGQUIT end it at once, with 128 + their number as exit code. Whatever ends it, the terminal is as
it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

if sys.platform != "win32":
    import termios

EXIT_INTERRUPTED = 130
EXIT_HANGUP = 129  # also where the terminal is gone and no signal told
# style off, cursor shown, pasted text no longer bracketed
RESET = b"\x1b[0m\x1b[?25h\x1b[?2004l"
REPEATED = 1.0  # seconds; a signal that comes again within them is the same one (timeout, kill 0)


class Ended(SystemExit):
    """A signal asked the program to end; the code is 128 + its number. Not an Exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTerminal:
    """The terminal as it was when the program started.

    descriptor: of the terminal. attributes: for termios.tcsetattr.
    """

    descriptor: int
    attributes: list[Any]


_saved: SavedTerminal | None = None
_ending_since = 0.0  # monotonic seconds; 0: no signal has come


def remember_terminal() -> None:
    """Keep the state of the terminal, if there is one, for `restore_terminal`."""
    global _saved
    if sys.platform == "win32":
        return
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError, termios.error):
            attributes = termios.tcgetattr(descriptor)
            _saved = SavedTerminal(descriptor=descriptor, attributes=attributes)
            return


def restore_terminal() -> None:
    """Put the terminal back as it was, if it is ours now; never raises."""
    if _saved is None or sys.platform == "win32" or not _is_foreground(_saved.descriptor):
        return
    with contextlib.suppress(OSError, termios.error):
        if termios.tcgetattr(_saved.descriptor) != _saved.attributes:
            # TCSANOW: waiting for a stopped terminal to take its output could take forever
            termios.tcsetattr(_saved.descriptor, termios.TCSANOW, _saved.attributes)
    if os.environ.get("TERM", "") not in ("", "dumb"):
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):
                if os.isatty(descriptor):
                    os.write(descriptor, RESET)
                    return


def guard_crashes() -> None:
    """From now on the terminal is restored, and a line told, also when native code crashes."""
    from offload.crashes import guard_terminal

    guard_terminal(None if _saved is None else _saved.descriptor, RESET)


def is_hung_up(exc: Exception) -> bool:
    """Whether `exc` came because the terminal is gone (SIGHUP may be ignored, or come later)."""
    if exc.args[:1] != (errno.EIO,) or _saved is None or sys.platform == "win32":
        return False
    try:
        termios.tcgetattr(_saved.descriptor)
    except termios.error:
        return True
    return False


def _is_foreground(descriptor: int) -> bool:
    """Whether this process may change its terminal without being stopped by SIGTTOU."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # no terminal that could stop us
        return True


def end_on_signals() -> None:
    """SIGTERM, SIGHUP and SIGQUIT raise `Ended` from now on, unless our starter ignores them."""
    for number in _ending_signals():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    sys.unraisablehook = _on_unraisable


def _ending_signals() -> tuple[signal.Signals, ...]:
    if sys.platform == "win32":
        return (signal.SIGTERM,)
    return signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT


def _end(number: int, frame: FrameType | None) -> None:
    global _ending_since
    now = time.monotonic()
    if _ending_since:
        if now - _ending_since > REPEATED:  # it did not end by itself
            restore_terminal()
            os._exit(128 + number)
        return
    _ending_since = now
    raise Ended(128 + number)


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An ending that was raised where Python cannot pass it on (a callback) is raised again."""
    kind = unraisable.exc_type
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(unraisable)
        return

    def again() -> None:
        global _ending_since
        _ending_since = 0.0
        number = signal.SIGINT
        if isinstance(unraisable_value, Ended):
            number = signal.Signals(int(unraisable_value.code or 0) - 128)
        os.kill(os.getpid(), number)

    unraisable_value = unraisable.exc_value
    timer = threading.Timer(0.01, again)
    timer.daemon = True
    timer.start()


@contextmanager
def ends_at_once() -> Iterator[None]:
    """While packages are imported, signals end the program on the spot.

    An exception raised in the middle of an import may be swallowed or turned into another one;
    there is nothing to tidy up yet. The main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        restore_terminal()
        os._exit(128 + number)

    numbers = [n for n in (signal.SIGINT, *_ending_signals()) if _is_handled(n)]
    previous = [(number, signal.signal(number, leave)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def _is_handled(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _end)


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
    descriptor = sys.stdin.fileno()
    saved = _switch_echo_off(descriptor)
    try:
        yield
    finally:
        if saved is not None and _is_foreground(descriptor):
            with contextlib.suppress(termios.error):
                termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def _switch_echo_off(descriptor: int) -> list[Any] | None:
    """The attributes before; None where the terminal is gone, or used by another program now."""
    if not _is_foreground(descriptor):
        return None
    try:
        saved = termios.tcgetattr(descriptor)
        quiet = list(saved)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    except termios.error:
        return None
    return saved
