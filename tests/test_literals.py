"""Many literals in a text: as a pattern would find them, but in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_time import takes_less_than

from offload.errors import GGUFError
from offload.literals import Literals


def by_pattern(literals: set[str]) -> re.Pattern[str]:
    ordered = sorted(literals, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)))


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.text("ab|", min_size=1, max_size=5), min_size=1, max_size=8),
    st.text("ab|c", max_size=40),
)
def test_literals_are_found_as_a_pattern_finds_them(literals: set[str], text: str) -> None:
    pattern = by_pattern(literals)
    found = Literals(literals)
    assert list(found.spans(text)) == [match.span() for match in pattern.finditer(text)]
    lengths = found.lengths(text)
    for place in range(len(text)):
        match = pattern.match(text, place)
        assert lengths.get(place, 0) == (len(match.group()) if match else 0)


def test_no_literals_find_nothing() -> None:
    assert not Literals([])
    assert not Literals([""])
    assert list(Literals([""]).spans("abc")) == []


@pytest.mark.parametrize(
    ("literals", "text"),
    [
        ([f"{'p' * 300}{i}" for i in range(1_000)], "p" * 100_000),
        (["a" * i for i in range(1, 600)], "a" * 100_000),
        (["a" * 5_000 + "b", "a"], "a" * 100_000),
        ([f"<|reserved_{i}|>" for i in range(5_000)], "<|reserved_1 |> x" * 6_000),
    ],
)
def test_long_literals_with_one_beginning_are_fast(literals: list[str], text: str) -> None:
    with takes_less_than(3):
        spans = list(Literals(literals).spans(text))
    assert sum(end - begin for begin, end in spans) in (0, len(text))


def test_too_many_characters_are_refused() -> None:
    with pytest.raises(GGUFError, match="3,000,000 characters"):
        Literals([f"{i:03}" * 1_000 for i in range(1_000)])
