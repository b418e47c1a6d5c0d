"""Streams one answer: content to standard output, thinking beside it."""

from __future__ import annotations

import sys
from typing import Literal

from cli._render import CLEAR_LINE, DIM, PLAIN, has_style, is_terminal, neutralise, write


class AnswerWriter:
    """Streams one answer: content to standard output, thinking dimmed before it.

    On a terminal both appear on standard output. Where standard output is piped, it gets the
    content only, unchanged, and thinking goes to standard error.
    """

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show_thinking = show_thinking
        self._on_terminal = is_terminal(sys.stdout)
        self._aside = sys.stdout if self._on_terminal else sys.stderr
        self._channel: Literal["none", "thinking", "content"] = "none"
        self._styled = has_style(self._aside)
        self._line_is_open = False
        self._wrote_content = False

    def write(self, text: str, channel: Literal["thinking", "content"] = "content") -> None:
        """Write the next piece of the answer, as it came from the model."""
        if not text:
            return
        if channel != self._channel:
            self._leave()
            self._enter(channel)
        if channel == "thinking":
            self._write_thinking(text)
        else:
            self._write_content(text)

    def finish(self) -> None:
        """End the answer: style off, and a newline where the text did not end with one."""
        self._leave()
        if self._channel == "content" and self._line_is_open:
            write(sys.stdout, "\n")
        self._channel = "none"

    def _enter(self, channel: Literal["thinking", "content"]) -> None:
        self._channel = channel
        self._line_is_open = False
        if channel != "thinking" or not (self._show_thinking or self._on_terminal):
            return
        if self._show_thinking:
            write(self._aside, DIM if self._styled else "[thinking]\n")
        elif self._styled:
            write(self._aside, f"{DIM}thinking ...{PLAIN}")

    def _leave(self) -> None:
        if self._channel != "thinking":
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
        write(self._aside, neutralise(text) if is_terminal(self._aside) else text)
        self._line_is_open = not text.endswith("\n")

    def _write_content(self, text: str) -> None:
        if self._on_terminal:
            if not self._wrote_content:
                text = text.lstrip("\n")
            text = neutralise(text)
        if text:
            write(sys.stdout, text)
            self._wrote_content = True
            self._line_is_open = not text.endswith("\n")
