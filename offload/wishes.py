"""ChatWishes: how a conversation is to be answered, beside sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offload.arguments import quoted, whole
from offload.errors import RequestError

MOST_LOGPROBS = 20  # likeliest tokens told beside each


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWishes:
    """What `Engine.chat` takes, as it was given; None is the default of each.

    thinking: whether the model reasons first. preserve_thinking: whether reasoning of all earlier
    turns stays in the prompt, as the model's rule says by default. thinking_budget: tokens of
    reasoning at most, then it is closed. tools: declarations of OpenAI's shape. tool_choice:
    "auto", "none", "required" or the name of one. response_format: of OpenAI's shape. stop_loops:
    whether an answer that goes in circles ends. logprobs: how many likeliest tokens are told beside
    each.
    """

    thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | None = None
    response_format: Mapping[str, Any] | None = None
    stop_loops: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("thinking", "preserve_thinking"):
            if not isinstance(getattr(self, name), bool | None):
                raise RequestError(
                    f"{name} must be True, False or None, not {quoted(getattr(self, name))}"
                )
        if not isinstance(self.stop_loops, bool):
            raise RequestError(f"stop_loops must be True or False, not {quoted(self.stop_loops)}")
        budget = self.thinking_budget
        if budget is not None and (whole(budget) is None or budget < 0):
            raise RequestError(
                f"thinking_budget must be a whole number from 0 on, not {quoted(budget)}"
            )
        check_logprobs(self.logprobs)


def check_logprobs(value: object) -> None:
    """RequestError if it is no number of likeliest tokens."""
    number = whole(value)
    if value is not None and (number is None or not 0 <= number <= MOST_LOGPROBS):
        raise RequestError(
            f"logprobs must be a whole number from 0 to {MOST_LOGPROBS}, not {quoted(value)}"
        )
