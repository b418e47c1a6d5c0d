"""A call, and a section of calls, while they are read out of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from offload.call_arguments import Arguments
from offload.reply_lexer import Event, Kind
from offload.stream import CallHead

TOOL_MARKS: Final[tuple[Kind, ...]] = ("section", "end_section", "call", "arguments", "end_call")
THINK_MARKS: Final[tuple[Kind, ...]] = ("think", "end_think")


@dataclass(slots=True)
class Section:
    """Of calls. raw: as written, until one is found to be right; broken: the calls that are not."""

    is_marked: bool
    raw: str = ""
    broken: str = ""
    n_calls: int = 0


@dataclass(slots=True)
class Call:
    """The one that is being read. head: None until it is known which tool it calls."""

    raw: str
    id: str = ""
    arguments: Arguments | None = None
    head: CallHead | None = None
    doubted: list[Event] = field(default_factory=list)  # since a mark in an open string
    tried: Arguments | None = None  # with these as text


def is_noise(event: Event, arguments: Arguments) -> bool:
    """Whether an event that stands outside of strings does not end the arguments."""
    if event.kind == "section":
        return arguments.is_empty
    return event.kind == "special" or (event.kind in THINK_MARKS and not arguments.is_done)
