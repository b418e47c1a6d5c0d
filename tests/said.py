"""Answers that nobody computed: tokens and how they ended."""

from __future__ import annotations

from offload.server.events import Ended
from offload.speech import Token
from offload.stats import FinishReason, RunStats
from offload.stream import CallHead

ADD = CallHead(0, "functions.add:0", "add")
LIST = CallHead(1, "functions.list:1", "list")


def thought(text: str) -> Token:
    return Token(1, text, "reasoning")


def said(text: str) -> Token:
    return Token(2, text)


def called(head: CallHead, text: str = "") -> Token:
    return Token(3, text, "tool_call", head)


# two calls, the second without arguments, and tokens that show nothing
CALLS = [
    thought(""),
    thought("I add, "),
    thought("then list."),
    said(""),
    said("One mo"),
    said("ment: …"),
    called(ADD),
    called(ADD, '{"a": '),
    called(ADD, '1, "b": 2}'),
    said(""),
    called(LIST),
]


def ended(finish: FinishReason = "stop", *, stop_string: str | None = None) -> Ended:
    """After 20 tokens of a prompt, 15 of them cached, and 9 of an answer, 2 of them reasoning."""
    stats = RunStats(
        prompt_tokens=20, reused_tokens=15, finish_reason=finish, stop_string=stop_string
    )
    return Ended(stats=stats, n_tokens=9, n_reasoning=2)
