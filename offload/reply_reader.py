"""ReplyReader: the pieces of an answer, token by token; nothing that a model writes ends it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from offload.reply_lexer import Kind, Lexer
from offload.reply_parser import ReplyParser
from offload.stream import Piece, StreamDecoder
from offload.tokenizer import Tokenizer
from offload.tools import Tool

log = logging.getLogger(__name__)


class ReplyReader:
    """Of one answer. Special tokens and ends of generation are never text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        marks: Mapping[str, Kind],
        *,
        in_text: frozenset[str] = frozenset(),
        tools: Sequence[Tool] = (),
        in_thinking: bool = False,
        strips: bool = False,
        has_content: bool = False,
        next_number: int = 0,
    ) -> None:
        """marks, in_text: see `Lexer`; tools .. next_number: see `ReplyParser`.

        in_thinking: the prompt ended in `<think>`.
        """
        self._tokenizer = tokenizer
        self._lexer = Lexer(tokenizer, marks, in_text=in_text)
        self._parser = ReplyParser(
            tools,
            state="reasoning" if in_thinking else "content",
            strips=strips,
            has_content=has_content,
            next_number=next_number,
        )
        self._plain: StreamDecoder | None = None  # after a fault of ours: all is content

    @property
    def has_failed(self) -> bool:
        """Whether a fault of the parser made all that followed content."""
        return self._plain is not None

    def push(self, token_id: int) -> list[Piece]:
        """What `token_id` adds; often nothing."""
        return self._read(token_id)

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        return self._read(None)

    def _read(self, token_id: int | None) -> list[Piece]:
        if self._plain is None:
            unshown, held = self._parser.unshown, self._lexer.held
            try:
                events = self._lexer.flush() if token_id is None else self._lexer.push(token_id)
                pieces = [piece for event in events for piece in self._parser.feed(event)]
                return pieces + self._parser.end() if token_id is None else pieces
            except Exception:
                log.exception("an answer could not be parsed; the rest of it is shown as it is")
                self._plain = StreamDecoder(self._tokenizer)
                return [*_content(unshown + held), *self._read(token_id)]
        decoder = self._plain
        return _content(decoder.flush() if token_id is None else decoder.push(token_id))


def _content(text: str) -> list[Piece]:
    return [Piece("content", text)] if text else []
