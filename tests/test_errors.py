from __future__ import annotations

import sys

import pytest

from offload.errors import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blk.0.attn_q.weight", "blk.0.attn_q.weight"),
        ("Кими 月之暗面 é", "Кими 月之暗面 é"),
        ("a\x1b[31mred\r\n", r"a\x1b[31mred\r\n"),
        ("\x00\x07\x7f\x9b", r"\x00\x07\x7f\x9b"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("zero\u200bwidth\ufeff\u00ad", r"zero\u200bwidth\ufeff\xad"),
        ("\ue000\U000f0000", r"\ue000\U000f0000"),
        ("line\u2028para\u2029", r"line\u2028para\u2029"),
        ("filler\u3164 selector\ufe0f", r"filler\u3164 selector\ufe0f"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no UTF-8
        ("", ""),
    ],
)
def test_what_a_reader_cannot_see_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_every_character_becomes_printable() -> None:
    for code in range(0, sys.maxunicode + 1, 7):
        assert shown(chr(code)).isprintable(), hex(code)


def test_long_names_lose_their_middle() -> None:
    assert shown("start" + "x" * 100_000 + "end", 30) == f"start{'x' * 15} ... {'x' * 7}end"
    assert shown("y" * 30, 30) == "y" * 30
    assert len(shown("\x1b" * 1000, 30)) < 150


def test_anything_can_be_shown() -> None:
    assert shown(5) == "5"
