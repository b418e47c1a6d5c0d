"""The ids of a conversation's tool calls, as Kimi numbers them.

Clients bring ids of their own (`call_ab12`, `toolu_...`), or give one id twice. A model that reads
foreign ids writes foreign ones, without the name of a function; so every call is numbered anew,
`functions.NAME:0`, `:1`, ..., and every result is told the number of its call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from offload.messages import Message, ToolCall

_CANONICAL = re.compile(r"functions\.(?P<name>.+):\d+")


@dataclass(frozen=True, slots=True)
class _Call:
    call_id: str
    name: str
    turn: int  # of the assistant


class CallIds:
    """Of one conversation, read from its start. count: calls by now, the number of the next."""

    def __init__(self) -> None:
        self.count = 0
        self._turn = 0
        self._open: dict[str, list[_Call]] = {}  # by the client's id, in order
        self._answered: dict[str, str] = {}  # key -> our id

    def numbered(self, calls: Sequence[ToolCall]) -> list[str]:
        """The ids of the calls of the next assistant turn."""
        self._turn += 1
        given = []
        for call in calls:
            given.append(self._next(call.name))
            one = _Call(given[-1], call.name, self._turn)
            self._open.setdefault(_key(call.id or given[-1]), []).append(one)
        return given

    def answered(self, message: Message) -> str:
        """The id of the call that a tool message answers.

        Of open calls with its id, the first one of the latest turn; without an id in the message,
        of all open ones (those with the message's name first). A second result of a call has the
        id of the first. A result whose call was cut off gets the next number, after its tool's
        name.
        """
        wanted, name = message.tool_call_id, message.name
        key = _key(wanted) if wanted else self._any_open(name)
        calls = self._open.get(key, [])
        if calls:
            place = len(calls) - 1
            while place and calls[place - 1].turn == calls[place].turn:
                place -= 1
            self._answered[key] = calls.pop(place).call_id
        elif not wanted or key not in self._answered:
            known = _CANONICAL.fullmatch(wanted or "")
            self._answered[key] = self._next(known["name"] if known else name or "tool")
        return self._answered[key]

    def _any_open(self, name: str | None) -> str:
        """The key of an open call of the latest turn that has one; "" if nothing is open."""
        calls = [(key, calls[0]) for key, calls in self._open.items() if calls]
        latest = max((call.turn for _, call in calls), default=0)
        keys = [key for key, call in calls if call.turn == latest and call.name == name]
        keys += [key for key, call in calls if call.turn == latest]
        return keys[0] if keys else ""

    def _next(self, name: str) -> str:
        self.count += 1
        return f"functions.{name}:{self.count - 1}"


def _key(call_id: str) -> str:
    """Some clients write one of the two ids with underscores for what is no letter."""
    return re.sub(r"\W", "_", call_id)
