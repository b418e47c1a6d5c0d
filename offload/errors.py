"""The exception tree: everything a user can cause, and nothing else.

    OffloadError            exit code 1 in the CLI: one line, no traceback
    +-- GGUFError           the file is broken, truncated or not a GGUF
    +-- UnsupportedError    a sound file that this version cannot run (architecture, type, option)
    +-- PlanError           it does not fit: memory, context length
    +-- HubError            a model cannot be found on the hub, or not be downloaded
    +-- DeviceError         a device is missing or failed
    +-- RequestError        a bad prompt, message list or sampling value
        +-- ContextError    the prompt has more tokens than the context holds

Every message says what is wrong, with the numbers, and the way out. Names that come from files
and paths go into messages through `shown`.
"""

from __future__ import annotations

from typing import Final

from quant.ggml import SettingError as SettingError  # the user's error too, met on import

# Letters and marks that have no picture, so that two names could look alike; Python prints them.
_INVISIBLE: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))


def shown(text: object, limit: int = 120) -> str:
    """`text` fit for one line of a message: what a reader cannot see is written as an escape.

    Control characters, newlines, direction marks, characters without width, private and unassigned
    ones become \\x1b, \\n, \\u202e. Beyond `limit` characters the middle is left out.
    """
    whole = str(text)
    if len(whole) > limit:
        tail = limit // 3
        return f"{_escaped(whole[: limit - tail])} ... {_escaped(whole[-tail:])}"
    return _escaped(whole)


def _escaped(text: str) -> str:
    if text.isprintable() and _INVISIBLE.isdisjoint(text):
        return text
    return "".join(
        c if c.isprintable() and c not in _INVISIBLE else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def reason(exc: Exception) -> str:
    """Why something failed, in the system's words, without number and path."""
    words = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return shown(words or type(exc).__name__, 300)


class OffloadError(Exception):
    """Base of every error that a user can cause."""


class GGUFError(OffloadError):
    """The file is broken, truncated or not a GGUF."""


class UnsupportedError(OffloadError):
    """A sound file that this version cannot run."""


class PlanError(OffloadError):
    """The model or the context does not fit the machine."""


class HubError(OffloadError):
    """A model cannot be found on the hub, or its files cannot be downloaded."""


class DeviceError(OffloadError):
    """A device is missing or failed."""


class RequestError(OffloadError):
    """A bad prompt, message list or sampling value."""


class ContextError(RequestError):
    """The prompt has more tokens (n_prompt) than the context holds (n_ctx)."""

    def __init__(self, message: str, *, n_prompt: int, n_ctx: int) -> None:
        super().__init__(message)
        self.n_prompt, self.n_ctx = n_prompt, n_ctx
