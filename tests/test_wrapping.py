"""Word wrap while text arrives: nothing lost, no word broken, code left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.wrapping import WordWrap, text_width


def wrap(text: str, width: int = 20, piece: int = 1) -> str:
    wrapper = WordWrap(lambda: width)
    pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
    return "".join([wrapper.feed(part) for part in pieces]) + wrapper.flush()


PROSE = "The quick brown fox jumps over the lazy dog and a well-known old tree."


def test_words_go_to_the_next_line_whole() -> None:
    lines = wrap(PROSE).split("\n")
    assert all(len(line) <= 20 for line in lines)
    assert " ".join(lines) == PROSE
    assert lines[0] == "The quick brown fox"


def test_a_word_that_just_fits_stays() -> None:
    assert wrap("12345 78901234567890", 20) == "12345 78901234567890"
    assert wrap("12345 789012345678901", 20) == "12345\n789012345678901"


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="ab \n\t-`|你。e\u0301😀🏽\u200d🇩🇪", max_size=60),
    st.integers(1, 30),
    st.integers(1, 9),
)
def test_only_line_ends_are_added_whatever_the_pieces(text: str, width: int, piece: int) -> None:
    result = wrap(text, width, piece)
    assert result == wrap(text, width, 1)
    squeezed = "".join(text.split())
    assert "".join(result.split()) == squeezed
    if width < 12:
        assert [line.rstrip(" \t") for line in result.split("\n")] == [
            line.rstrip(" \t") for line in text.split("\n")
        ]


def test_a_url_moves_whole_and_is_cut_only_if_longer_than_a_line() -> None:
    url = "https://a.b/" + "x" * 6
    assert wrap(f"see it {url} now", 20) == f"see it\n{url}\nnow"
    long = "https://a.b/" + "x" * 40
    assert wrap(f"see {long} now", 20) == f"see\n{long} now"  # the terminal cuts it


def test_the_column_after_a_long_word_is_known() -> None:
    assert wrap("x" * 45 + " " + "y" * 15, 20) == "x" * 45 + "\n" + "y" * 15
    assert wrap("x" * 45 + " " + "y" * 14, 20) == "x" * 45 + " " + "y" * 14


def test_wide_characters_break_anywhere_but_before_closing_marks() -> None:
    lines = wrap("你" * 15, 20).split("\n")
    assert lines == ["你" * 10, "你" * 5]
    assert wrap("你" * 10 + "。好", 20).split("\n") == ["你" * 9, "你。好"]
    assert wrap("你" * 9 + "「好」", 20).split("\n") == ["你" * 9, "「好」"]
    assert wrap("안녕하세요 " * 3, 20).split("\n")[0] == "안녕하세요"


@pytest.mark.parametrize("cluster", ["👨‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "é"])
def test_clusters_stay_together(cluster: str) -> None:
    for before in range(14, 21):
        result = wrap("x" * before + " " + cluster, 20)
        assert cluster in result
        assert all(text_width(line) <= 20 for line in result.split("\n"))


def test_code_is_left_alone() -> None:
    code = "```python\nfor x in a_long_name(of, something): pass\n\n    deep = 1\n```\n"
    assert wrap(code) == code
    indented = "    a = some_function(argument, another)\n"
    assert wrap(indented) == indented
    table = "| one column | another column | third |\n"
    assert wrap(table) == table
    assert wrap(code + PROSE) == code + wrap(PROSE)


def test_inline_code_opens_no_block() -> None:
    for start in ("```a``` ", "```a b``` "):
        text = start + "is short\n" + PROSE
        assert wrap(text).endswith(wrap(PROSE))


def test_list_items_hang() -> None:
    assert wrap("- one two three four five six", 16) == "- one two three\n  four five six"
    nested = wrap("- a\n    - one two three four five six", 24)
    assert nested == "- a\n    - one two three four\n      five six"


def test_a_resize_counts_from_then_on() -> None:
    width = [40]
    wrapper = WordWrap(lambda: width[0])
    out = wrapper.feed("one two three four five ")
    width[0] = 24
    out += wrapper.feed("six seven eight") + wrapper.flush()
    assert out == "one two three four five\nsix seven eight"


def test_a_word_comes_out_when_the_next_character_came() -> None:
    wrapper = WordWrap(lambda: 20)
    assert wrapper.feed("Hel") == ""
    assert wrapper.feed("lo ") == "Hello"
    assert wrapper.feed("you") == ""
    assert wrapper.flush() == " you"


def test_after_an_interruption_the_line_goes_on_without_its_space() -> None:
    wrapper = WordWrap(lambda: 20)
    assert wrapper.feed("one two") + wrapper.flush() == "one two"
    wrapper.interrupt()
    assert wrapper.feed(" three four ") == "three four"
