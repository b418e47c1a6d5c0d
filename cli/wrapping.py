"""Word wrap of text that arrives in pieces, for a terminal.

A word is held until the character after it has come, so that it can still move to the next line.
Code in fences, indented code and table rows are passed on as they are; items of lists go on below
their own text. A word longer than a line is left to the terminal, which cuts it and still copies
it as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

NARROWEST = 12  # columns; below, nothing is wrapped
CODE_INDENT = 4  # columns; a line that starts further right, and is no list item, is code
TAB = 8

_JOINER = "\u200d"
_LIST_ITEM = re.compile(r"[-*+•]|\d{1,9}[.)]")
# where lines of Chinese and Japanese do not begin, and where they do not end
_NO_START = frozenset("、。，．・：；？！゛゜ー々ゝゞヽヾ’”）〕］｝〉》」』】〙〗…‥,.;:!?)]}%")
_NO_END = frozenset("‘“（〔［｛〈《「『【〘〖([{")


def text_width(text: str) -> int:
    """Columns that `text` (no control characters) takes on a terminal."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, wcswidth(text))


@lru_cache(maxsize=4096)
def _is_wide(char: str) -> bool:
    """Whether lines may be broken beside this character: wide ones, except those of Korean."""
    if unicodedata.east_asian_width(char) not in "WF":
        return False
    return not unicodedata.name(char, "").startswith("HANGUL")


@lru_cache(maxsize=4096)
def _joins_the_one_before(char: str) -> bool:
    from wcwidth import wcwidth

    is_skin_tone = 0x1F3FB <= ord(char) <= 0x1F3FF
    return is_skin_tone or char in _NO_START or wcwidth(char) <= 0


def _may_break(word: str, char: str) -> bool:
    """Whether a line may end between `word` and `char`, neither of which is a space."""
    last = word[-1]
    if not _is_wide(last) and not _is_wide(char):
        return False
    if last == _JOINER or last in _NO_END or _joins_the_one_before(char):
        return False
    return not (len(word) == 1 and _is_flag_half(word) and _is_flag_half(char))


def _is_flag_half(char: str) -> bool:
    return 0x1F1E6 <= ord(char) <= 0x1F1FF


class WordWrap:
    """Puts line ends into a stream of text; `width` tells the columns of the terminal now."""

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0  # where the next character would be written
        self._fence = ""  # the mark that ends the code block that we are in
        self._start_line()

    def _start_line(self) -> None:
        self._word = ""  # held: it may have to move
        self._spaces = ""  # before it
        self._is_begun = False  # the kind of line is known
        self._is_verbatim = False
        self._opens_fence = False
        self._is_cut = False  # the word's first part was written, for it is longer than a line
        self._hanging = ""  # what starts the lines that continue this one

    def feed(self, text: str) -> str:
        """What can be written now, after `text` has come."""
        return "".join([self._take(char) for char in text])

    def flush(self) -> str:
        """What was held back."""
        held = self._end_word()
        return held or self._take_spaces(self._is_verbatim)

    def interrupt(self) -> None:
        """Something else ended the line on the terminal: go on at its left edge."""
        self._column = 0

    def _take(self, char: str) -> str:
        if char == "\n":
            held = self._end_word() + "\n"
            self._start_line()
            self._column = 0
            return held
        if self._opens_fence and char == "`" and not self._word:
            self._fence, self._opens_fence = "", False  # ```so``` is no block
        if char in " \t":
            held = self._end_word()
            self._spaces += char
            return held + (self._take_spaces(True) if self._is_verbatim else "")
        held = self._end_word() if self._word and _may_break(self._word, char) else ""
        if self._is_verbatim:
            return held + self._write(char)
        self._word += char
        if self._fence and not self._is_begun and not self._fence.startswith(self._word[:3]):
            return held + self._end_word()  # code: nothing to wait for
        if self._is_cut or text_width(self._word) > self._width():
            held += self._end_word()
            self._is_cut = True
        return held

    def _end_word(self) -> str:
        """Write the word, on the next line if it does not fit on this one."""
        word, self._word = self._word, ""
        was_cut, self._is_cut = self._is_cut, False
        if not word:
            return ""
        is_first = not self._is_begun
        if is_first:
            self._begin(word)
        width = self._width()
        if self._is_verbatim or was_cut or width < NARROWEST:
            return self._take_spaces(True) + self._write(word)
        if self._column == 0 and not is_first:
            self._spaces = ""
        gap = self._span(self._spaces)
        hanging = text_width(self._hanging)
        if self._column + gap + text_width(word) <= width or self._column <= hanging:
            return self._take_spaces(True) + self._write(word)
        self._spaces = ""
        self._column = 0
        return "\n" + self._write(self._hanging) + self._write(word)

    def _begin(self, word: str) -> None:
        """The first word of a line tells what kind of line it is."""
        self._is_begun = True
        indent = self._span(self._spaces)
        if self._fence:
            is_end = word.startswith(self._fence) and not word.strip(self._fence[0])
            self._fence = "" if is_end else self._fence
            self._is_verbatim = True
        elif word[:3] in ("```", "~~~") and "`" not in word[3:].lstrip("`"):
            self._fence = word[:3]
            self._is_verbatim = self._opens_fence = True
        elif _LIST_ITEM.fullmatch(word):
            self._hanging = " " * (indent + len(word) + 1)
        elif indent >= CODE_INDENT or word[0] == "|":
            self._is_verbatim = True
        else:
            self._hanging = " " * indent
        if len(self._hanging) > self._width() // 2:
            self._hanging = ""

    def _take_spaces(self, is_wanted: bool) -> str:
        spaces, self._spaces = self._spaces, ""
        return self._write(spaces) if is_wanted else ""

    def _span(self, spaces: str) -> int:
        """Columns of spaces and tabs that start at the current column."""
        column = self._column
        for char in spaces:
            column += 1 if char == " " else TAB - column % TAB
        return column - self._column

    def _write(self, text: str) -> str:
        is_blank = text.isspace()
        width = max(1, self._width())
        self._column += self._span(text) if is_blank else text_width(text)
        if self._column > width:  # the terminal went to its next line
            self._column = (self._column - 1) % width + 1
        return text
