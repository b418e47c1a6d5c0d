"""How a program around the runtime wants to be left when native code crashes."""

from __future__ import annotations

from collections.abc import Callable

from offload import bus_errors

LINE = (
    b"error: kimi-offload crashed in native code; this is a bug, unless memory or disk are faulty. "
    b"Please report it with the output of `kimi-offload doctor`\n"
)


def guard_terminal(terminal: int | None, reset: bytes, ending: Callable[[], None]) -> None:
    """Let a crash write a line, put the terminal back as it is now, and end as it would have.

    terminal: its descriptor, if there is one; reset: written to it. ending: called, from Python,
    when a mapped file is gone (SIGBUS), after the line that names it; it restores and exits.
    """
    from quant.compiler.crash import handle_crashes

    handle_crashes(LINE, terminal, reset)
    bus_errors.end_with(ending)
