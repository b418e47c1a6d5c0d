"""From the ids of an answer to texts and marks.

A mark is a special token where the vocabulary has it; where it has not, and for spellings that no
vocabulary has, it is found in the text, and what may be the beginning of one is held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final, Literal

from offload.stream import StreamDecoder, overlap
from offload.tokenizer import Tokenizer

# text: ordinary; special: some other special token, which is no text; end: of the generation
Kind = Literal[
    "text", "special", "end", "think", "end_think", "section", "end_section", "call", "arguments",
    "end_call",
]  # fmt: skip

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
THINK_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {THINK_OPEN: "think", THINK_CLOSE: "end_think"}
)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing in an answer. text: as the model wrote it, marks and special tokens literally.

    is_token: a mark that is one token, so nobody speaks of it in words.
    """

    kind: Kind
    text: str
    is_token: bool = False


class Lexer:
    """Of one answer."""

    def __init__(
        self, tokenizer: Tokenizer, marks: Mapping[str, Kind], *, in_text: frozenset[str]
    ) -> None:
        """marks: text -> what it means. in_text: those that count as ordinary text, too."""
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        ids = {text: tokenizer.special_id(text) for text in marks}
        self._of_id = {
            token_id: Event(marks[text], text, is_token=True)
            for text, token_id in ids.items()
            if token_id is not None
        }
        self._of_text = {text: marks[text] for text in in_text if ids.get(text) is None}
        self._beginnings = {mark[0] for mark in self._of_text}
        self.held = ""  # the beginning of a possible mark

    def push(self, token_id: int) -> list[Event]:
        """What `token_id` adds; an end of generation has no text."""
        mark = self._of_id.get(token_id)
        if mark is not None:
            return [*self.flush(), mark]
        if token_id in self._tokenizer.eog_ids:
            return [*self.flush(), Event("end", "")]
        text = self._decoder.push(token_id)
        if text:
            return self._scan(text)
        special = self._specials.get(token_id) if self._tokenizer.is_control(token_id) else None
        return [Event("special", special)] if special else []

    def flush(self) -> list[Event]:
        """What was held back."""
        text, self.held = self.held + self._decoder.flush(), ""
        return [Event("text", text)] if text else []

    @cached_property
    def _specials(self) -> dict[int, str]:
        return {i: text for text, i in self._tokenizer.specials.items()}

    def _scan(self, text: str) -> list[Event]:
        if not self.held and self._beginnings.isdisjoint(text):
            return [Event("text", text)]
        events: list[Event] = []
        seen, self.held = self.held + text, ""
        while True:
            places = [(place, mark) for mark in self._of_text if (place := seen.find(mark)) >= 0]
            if not places:
                break
            place, mark = min(places)
            if place:
                events.append(Event("text", seen[:place]))
            events.append(Event(self._of_text[mark], mark))
            seen = seen[place + len(mark) :]
        keep = max(overlap(seen, mark) for mark in self._of_text)
        self.held = seen[len(seen) - keep :]
        shown = seen[: len(seen) - keep]
        return [*events, Event("text", shown)] if shown else events
