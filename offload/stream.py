"""From token ids to text that can be shown at once.

    ids -> StreamDecoder -> whole characters
    ids -> ThinkingSplitter -> pieces of "reasoning" and "content"
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

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
TOOL_MARKERS = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")


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
        keep = max((_overlap(seen, stop) for stop in self._stops), default=0)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def flush(self) -> str:
        """The text held back; the stream has ended without completing it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
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


class ThinkingSplitter:
    """Tells the reasoning of an answer from its content, token by token.

    `</think>` or the start of a tool call ends reasoning; `<think>` starts it, unless it is
    running already (K2.5 repeats the one its prompt ended in). Special tokens and ends of
    generation are never text. White space is dropped at the end of reasoning and between
    `</think>` and the content.

    A vocabulary without the two special tokens may still write `<think>` letter by letter; with
    `text_markers` those are found in the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        in_thinking: bool = False,
        strip_content: bool = False,
        text_markers: bool = False,
    ) -> None:
        """Start in reasoning if the prompt ended in `<think>`.

        strip_content: the prompt ended in `</think>`, so white space before content goes too.
        """
        self._decoder = StreamDecoder(tokenizer)
        self._open = tokenizer.special_id(THINK_OPEN)
        close = tokenizer.special_id(THINK_CLOSE)
        tools = [tokenizer.special_id(text) for text in TOOL_MARKERS]
        self._close = {i for i in (close, *tools) if i is not None}
        self._text_markers = text_markers and (self._open is None or close is None)
        self._channel: Channel = "reasoning" if in_thinking else "content"
        self._strip_next = strip_content and not in_thinking  # white space before content
        self._spaces = ""  # white space at the end of reasoning so far
        self._held = ""  # the beginning of a possible text marker

    @property
    def in_thinking(self) -> bool:
        """Whether the next ordinary token is reasoning."""
        return self._channel == "reasoning"

    def push(self, token_id: int) -> list[Piece]:
        """What `token_id` adds; often nothing, rarely more than one piece."""
        if token_id == self._open:
            return self._switch("reasoning")
        if token_id in self._close:
            return self._switch("content")
        return self._text(self._decoder.push(token_id))

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the stream."""
        text, self._held = self._held + self._decoder.flush(), ""
        return self._emit(text)

    def _switch(self, channel: Channel) -> list[Piece]:
        """A special token ends the current channel, and any character cut short; go on."""
        pieces = self.flush()
        self._enter(channel)
        return pieces

    def _enter(self, channel: Channel) -> None:
        if channel != self._channel:
            self._strip_next = channel == "content"
            self._spaces = ""
            self._channel = channel

    def _text(self, text: str) -> list[Piece]:
        if not self._text_markers:
            return self._emit(text)
        pieces: list[Piece] = []
        seen, self._held = self._held + text, ""
        while True:
            places = [(seen.find(mark), mark) for mark in (THINK_OPEN, THINK_CLOSE)]
            found = min((place for place in places if place[0] >= 0), default=None)
            if found is None:
                break
            start, mark = found
            pieces += self._emit(seen[:start])
            self._enter("reasoning" if mark == THINK_OPEN else "content")
            seen = seen[start + len(mark) :]
        keep = max(_overlap(seen, THINK_OPEN), _overlap(seen, THINK_CLOSE))
        self._held = seen[len(seen) - keep :]
        return pieces + self._emit(seen[: len(seen) - keep])

    def _emit(self, text: str) -> list[Piece]:
        if self._channel == "reasoning":
            text = self._spaces + text
            body = text.rstrip()
            self._spaces = text[len(body) :]
            text = body
        elif self._strip_next:
            text = text.lstrip()
            self._strip_next = not text
        return [Piece(self._channel, text)] if text else []
