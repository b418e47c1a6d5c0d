"""How a program around the runtime wants to be left when native code crashes."""

from __future__ import annotations

LINE = (
    b"error: kimi-offload crashed in native code; this is a bug, unless memory or disk are faulty. "
    b"Please report it with the output of `kimi-offload doctor`\n"
)


def guard_terminal(terminal: int | None, reset: bytes) -> None:
    """Let a crash write a line, put the terminal back as it is now, and end as it would have.

    terminal: its descriptor, if there is one; reset: written to it.
    """
    from quant.compiler.crash import handle_crashes

    handle_crashes(LINE, terminal, reset)
