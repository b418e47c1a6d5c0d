"""From token ids to text that can be shown at once.

    ids -> StreamDecoder -> whole characters
    text -> StopMatcher -> text before a stop string

Each holds back only what the next token could still change; `flush` gives the rest.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from offload.errors import RequestError
from offload.stats import Channel
from offload.tokenizer import Tokenizer


class StreamDecoder:
    """Whole characters out of a stream of token ids.

    The pieces joined are `b"".join(token bytes).decode("utf-8", "replace")`: at most three bytes
    of a character that is still legal are held, a definite error is U+FFFD at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; control and end tokens are never text."""
        if token_id in self._tokenizer.eog_ids:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD for a character cut short, else ""; the decoder starts afresh."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopMatcher:
    """Cuts a stream of text before the stop string that is completed first.

    The result does not depend on how the text was cut into pieces. Of two stop strings that are
    completed by the same character, the longer one counts.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """stops: literal strings; none of them may be empty (RequestError)."""
        self._stops = tuple(dict.fromkeys(stops))
        if "" in self._stops:
            raise RequestError("a stop string is empty and would stop everything; leave it out.")
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that was met; from then on `push` and `flush` give ""."""
        return self._stopped

    def push(self, text: str) -> str:
        """What can be shown now: the text up to a stop string or to the start of a possible one."""
        if self._stopped is not None:
            return ""
        seen = self._held + text
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := seen.find(stop)) >= 0
        ]
        if found:
            _, start, self._stopped = min(found)
            self._held = ""
            return seen[:start]
        keep = max((overlap(seen, stop) for stop in self._stops), default=0)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def flush(self) -> str:
        """The text held back; the stream has ended without completing it."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True, slots=True)
class CallHead:
    """The tool call of an answer that a piece belongs to. index: in this answer, from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer. text: never empty, but in the first piece of a tool call.

    In the channel "tool_call" it is a piece of the call's arguments, which are JSON as the model
    writes it.
    """

    channel: Channel
    text: str
    call: CallHead | None = None
