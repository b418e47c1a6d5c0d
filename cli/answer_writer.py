"""Streams one answer: content to standard output, thinking beside it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Literal, TextIO

from cli._render import (
    CLEAR_LINE,
    DIM,
    PLAIN,
    columns,
    has_style,
    is_terminal,
    neutralise,
    say,
    write,
)
from cli.wrapping import WordWrap

HIDDEN = f"{DIM}thinking ...{PLAIN}"
Channel = Literal["reasoning", "content", "tool_call"]


class AnswerWriter:
    """Streams one answer: content to standard output, thinking dimmed before it.

    On a terminal both appear on standard output, wrapped at words. Where standard output is piped,
    it gets the content only, unchanged, and thinking goes to standard error.
    """

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show_thinking = show_thinking
        self._on_terminal = is_terminal(sys.stdout)
        self._aside = sys.stdout if self._on_terminal else sys.stderr
        self._channel: Literal["none"] | Channel = "none"
        self._styled = has_style(self._aside)
        self._line_is_open = False
        self._wrote_content = False
        self._wrap: WordWrap | None = None

    def write(self, text: str, channel: Channel = "content") -> None:
        """Write the next piece of the answer, as it came from the model."""
        if not text:
            return
        if channel != self._channel:
            self._leave()
            self._enter(channel)
        if channel == "reasoning":
            self._write_thinking(text)
        else:
            self._write_content(text)

    def note(self, message: str) -> None:
        """Say something on standard error while the answer runs, on a line of its own."""
        shares_terminal = is_terminal(sys.stderr) and is_terminal(
            sys.stdout if self._channel == "content" else self._aside
        )
        if shares_terminal and self._wrap is not None:
            write(self._stream, self._wrap.flush())
            self._wrap.interrupt()
        if shares_terminal and self._line_is_open:
            write(self._stream, "\n")
            self._line_is_open = False
        is_dimmed = shares_terminal and self._channel == "reasoning" and self._styled
        if is_dimmed and not self._show_thinking:
            write(self._aside, CLEAR_LINE)
        say(message, err=True, dim=True)
        if is_dimmed:
            write(self._aside, DIM if self._show_thinking else HIDDEN)

    def finish(self) -> None:
        """End the answer: style off, and a newline where the text did not end with one."""
        self._leave()
        if self._channel == "content" and self._line_is_open:
            write(sys.stdout, "\n")
        self._channel = "none"

    @property
    def _stream(self) -> TextIO | None:
        return self._aside if self._channel == "reasoning" else sys.stdout

    def _enter(self, channel: Channel) -> None:
        self._channel = channel
        self._line_is_open = False
        if is_terminal(self._stream):
            self._wrap = WordWrap(partial(columns, self._stream))
        if channel != "reasoning" or not (self._show_thinking or self._on_terminal):
            return
        if self._show_thinking:
            write(self._aside, DIM if self._styled else "[thinking]\n")
        elif self._styled:
            write(self._aside, HIDDEN)

    def _leave(self) -> None:
        if self._wrap is not None:
            write(self._stream, self._wrap.flush())
            self._wrap = None
        if self._channel != "reasoning":
            return
        if self._show_thinking:
            write(self._aside, PLAIN if self._styled else "")
            write(self._aside, "\n" if self._line_is_open else "")
            if self._on_terminal:  # set the answer off from it
                write(self._aside, "\n" if self._styled else "[answer]\n")
        elif self._on_terminal and self._styled:
            write(self._aside, CLEAR_LINE)

    def _write_thinking(self, text: str) -> None:
        if not self._show_thinking:
            return
        self._put(text)

    def _write_content(self, text: str) -> None:
        if self._on_terminal and not self._wrote_content:
            text = text.lstrip("\n")
        if text:
            self._put(text)
            self._wrote_content = True

    def _put(self, text: str) -> None:
        self._line_is_open = not text.endswith("\n")
        if self._wrap is not None:
            text = self._wrap.feed(neutralise(text))
        write(self._stream, text)
