"""A call, and a section of calls, while they are read out of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from offload.call_arguments import Arguments
from offload.reply_lexer import Event, Kind
from offload.stream import CallHead

TOOL_MARKS: Final[tuple[Kind, ...]] = ("section", "end_section", "call", "arguments", "end_call")
THINK_MARKS: Final[tuple[Kind, ...]] = ("think", "end_think")

Outside = Literal["reasoning", "content", "after"]  # of sections


@dataclass(slots=True)
class Section:
    """Of calls. raw: as written, until one is found to be right; broken: the calls that are not.

    loose: text that no marks put into a call, since the last one; unread: of it, the calls without
    a mark between id and arguments, as written. waiting: a call that closed without arguments.
    """

    is_marked: bool
    raw: str = ""
    broken: str = ""
    n_calls: int = 0
    loose: str = ""
    unread: str = ""
    waiting: Waiting | None = None


@dataclass(slots=True)
class Call:
    """The one that is being read. head: None until it is known which tool it calls.

    before: text that may be its id, if there is none behind its mark. doubtful_in: where it is, if
    only a mark before arguments says that it is one, and these have not begun.
    """

    raw: str
    id: str = ""
    before: str = ""
    arguments: Arguments | None = None
    head: CallHead | None = None
    doubtful_in: Outside | None = None
    doubted: list[Event] = field(default_factory=list)  # since a mark in an open string
    tried: Arguments | None = None  # with these as text


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that closed without arguments; they may stand behind its end.

    is_certain: it is a call even without any.
    """

    call: Call
    name: str
    is_certain: bool


def is_noise(event: Event, arguments: Arguments) -> bool:
    """Whether an event that stands outside of strings does not end the arguments."""
    if event.kind == "section":
        return arguments.is_empty
    return event.kind == "special" or (event.kind in THINK_MARKS and not arguments.is_done)
