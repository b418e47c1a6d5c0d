"""How calls of tools in one reply are written, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from offload.grammar import Grammar
from offload.tokenizer import TextPart, Tokenizer
from offload.tools import ToolMarks


@dataclass(frozen=True, kw_only=True)
class CallRules:
    """Calls of tools in a reply.

    arguments: by name of the tool. is_forced: there must be one. is_single: there may be no second.
    written: calls in the prompt.
    """

    tokenizer: Tokenizer
    marks: ToolMarks
    arguments: Mapping[str, Grammar]
    is_forced: bool
    is_single: bool
    written: int

    @cached_property
    def starts(self) -> dict[int, str]:
        """The special tokens that open a call, and what of the marks stands before the call."""
        known = set(self.tokenizer.specials.values())
        firsts = {}
        for before in dict.fromkeys(("", self.marks.section_begin)):
            text = before + self.marks.call_begin
            token_id = self.tokenizer.encode(text, special=True)[0]
            if token_id in known:
                firsts[token_id] = before
        return firsts

    def head(self, before: str, name: str, number: int) -> list[int]:
        """The tokens of a call up to its arguments, and of what stands before it."""
        marks = self.marks
        return self.tokenizer.encode_parts(
            [
                TextPart(before + marks.call_begin + marks.id_prefix, special=True),
                TextPart(name + (f":{number}" if marks.numbered else "")),
                TextPart(marks.argument_begin, special=True),
            ]
        )

    def tail(self, section_end: str) -> list[int]:
        """The tokens after the last call's arguments."""
        return self.tokenizer.encode(self.marks.call_end + section_end, special=True)
