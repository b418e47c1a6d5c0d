"""Runs: the tokens of an answer, grouped as protocols with blocks or items tell them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from offload.speech import Token
from offload.stats import Channel
from offload.stream import CallHead


@dataclass(slots=True)
class Run:
    """Consecutive tokens of one channel, or of one call. texts: pieces, joined by `text`.

    logprobs: of its tokens, as they are told, where they are.
    """

    channel: Channel
    call: CallHead | None
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far; of a call that was written without arguments "{}"."""
        return "".join(self.texts) or ("{}" if self.call else "")

    def takes(self, token: Token) -> bool:
        """Whether a token goes on with it."""
        if self.call is None or token.call is None:
            return self.channel == token.channel and self.call is token.call
        return self.call.index == token.call.index


def shows(token: Token) -> bool:
    """Whether it has text, or begins a call."""
    return bool(token.text) or token.call is not None


class Runs:
    """Takes the tokens of an answer as they come; what shows nothing belongs to none."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self.all: list[Run] = []
        for token in tokens:
            if shows(token):
                self.take(token)

    def begins(self, token: Token) -> bool:
        """Whether a token that shows something begins a run."""
        return not self.all or not self.all[-1].takes(token)

    def take(self, token: Token) -> None:
        """One that shows something."""
        if self.begins(token):
            self.all.append(Run(token.channel, token.call))
        if token.text:
            self.all[-1].texts.append(token.text)
