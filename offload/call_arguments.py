"""The arguments of one call, as they come: what can be shown, and whether a string is open."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Final, Literal

from offload.call_objects import leading_object
from offload.messages import unwrapped

# empty: white space so far; object: JSON; quoted: JSON inside a JSON string; free: anything else
_Form = Literal["empty", "object", "quoted", "free"]
_FORMS: Final[Mapping[str, _Form]] = {"{": "object", "[": "object", '"': "quoted"}
_WORD: Final = 100  # characters before an object that are a fence, a bracket, or an id once more


class Arguments:
    """Of one call.

    White space around them is dropped, and so is what follows a complete object; control
    characters in strings, which JSON does not allow, are written as escapes. What begins
    otherwise is held back until they end: an object in a JSON string, in a fence or behind one
    word counts alone, and null is nothing.
    """

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._form: _Form = "empty"
        self._held = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._done = False
        self.rest = ""  # what followed a complete object
        self.before = ""  # what stood before one

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return "".join(self._shown)

    @property
    def given(self) -> str:
        """All that came, shown or not."""
        return self.text + self._held

    @property
    def in_string(self) -> bool:
        """Whether a string of theirs is open, so that a mark in it is text."""
        return self._in_string

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but white space so far."""
        return self._form == "empty"

    @property
    def is_valid(self) -> bool:
        """Whether they are JSON as they stand."""
        try:
            json.loads(self.given)
        except (ValueError, RecursionError):
            return False
        return True

    @property
    def is_open(self) -> bool:
        """Whether an object has begun and not ended."""
        return self._form == "object" and not self._done

    @property
    def is_done(self) -> bool:
        """Whether the object, or the string, is closed."""
        return self._done

    def push(self, text: str) -> str:
        """What of it can be shown now."""
        if self._form == "empty":
            text = text.lstrip()
            if text:
                self._form = _FORMS.get(text[0], "free")
        if self._form in ("object", "quoted"):
            text = self._watched(text)
        if self._form in ("quoted", "free"):
            self._held += text
            return ""
        if text:
            self._shown.append(text)
        return text

    def close(self) -> str:
        """What is left."""
        rest = ""
        if self._form in ("quoted", "free"):
            self.before, rest = _meant(self._held, self.rest)
        self._held = ""
        self._shown.append(rest)
        return rest

    def fork(self) -> Arguments:
        """The same once more; what comes to one of the two does not come to the other."""
        other = copy.copy(self)
        other._shown = [*self._shown]
        return other

    def _watched(self, text: str) -> str:
        """`text` up to where the value is complete; a line break in a string is written as one."""
        shown, begun = "", 0
        for place, char in enumerate(text):
            if self._done:
                self.rest += text[place:]
                return shown + text[begun:place]
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
                if char < " ":
                    shown += text[begun:place] + json.dumps(char)[1:-1]
                    begun = place + 1
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            self._done = self._depth <= 0 and not self._in_string
        return shown + text[begun:]


def _meant(held: str, rest: str) -> tuple[str, str]:
    """(a word, what else arguments that begin as no object stand for); rest: after a string."""
    given = held.strip()
    inner = unwrapped(given)
    if not rest.strip() and (inner != given or not given):
        return "", inner
    given = f"{held}{rest}".strip()
    before, brace, after = given.partition("{")
    if len(before) <= _WORD and len(before.split()) <= 1:
        found, _ = leading_object(brace + after)
        if found:
            return before, found
    return "", "" if given == "null" else given
