"""Loops are noticed soon, what repeats on purpose is not, and looking costs little."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from own_time import takes_less_than

from offload.repetition import EVERY, SIGNS, TIMES, TOKENS, WINDOW, RepetitionWatch


def decode(ids: Iterable[int]) -> str:
    return "".join(map(chr, ids))


def watched(text: str) -> list[tuple[int, int] | None]:
    """What is said after each character; one character is one token here."""
    watch = RepetitionWatch(decode)
    return [watch.push(ord(c)) for c in text]


def prose(n: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    words = ["expert", "token", "layer", "cache", "a", "the", "of", "router", "is", "hot"]
    return " ".join(draw.choice(words) for _ in range(n))[:n]


@pytest.mark.parametrize("n", [1, 2, 7, 31, 32, 33, 100, WINDOW // 4 - EVERY])
def test_a_loop_is_noticed_as_soon_as_it_is_long_enough(n: int) -> None:
    unit = prose(n, seed=5)[: n - 1] + "!" if n > 1 else "a"
    before = prose(300)
    said = watched(before + unit * (TIMES + TOKENS // n + 20))
    first = next(i for i, found in enumerate(said) if found)
    needed = max(TOKENS, TIMES * n)
    assert needed - 3 <= first + 1 - len(before) <= needed + EVERY + 1
    assert said[first] == (n, (first + 1 - len(before)) // n) or n > 1
    assert said[-1] is not None
    assert said[-1][0] == n
    whole = TIMES + TOKENS // n + 20
    assert whole <= said[-1][1] <= whole + 1  # the text before may fit by a token or two


def test_the_count_goes_on_beyond_the_window_and_the_loop_may_end() -> None:
    said = watched("expert! " * 1_000 + prose(200) + "hot layer, " * 30)
    assert said[7_999] == (8, 1_000)
    assert said[8_100] is None
    assert said[-1] == (11, 30)


@pytest.mark.parametrize(
    "text",
    [
        prose(5_000),
        "|---" * 30 + "|\n",
        "=" * 200,
        " " * 300,
        "ha " * 30,
        "\n".join(f"- item {i}: yes" for i in range(100)),
        "".join(f"| {i} | {i * 7 % 10} | ok |\n" for i in range(60)),
        "".join(f"{' ' * 4 * (i % 9)}x{i} = {i}\n" for i in range(100)),
        "We all live in a model of experts, " * 3,
        "0, " * 40,
        "- " * 200,
    ],
)
def test_what_repeats_on_purpose_is_no_loop(text: str) -> None:
    assert not any(watched(prose(100) + text + prose(100, seed=1)))


def test_signs_alone_are_a_loop_when_nobody_would_write_so_many() -> None:
    assert any(watched("-=" * SIGNS))


def test_a_loop_with_almost_equal_parts_is_noticed() -> None:
    lines = ["- the router: yes\n", "- the router: yes\n", "- the router: no\n"]
    order = [0, 0, 2, 0, 2, 2]
    unit = "".join(lines[i] for i in order)
    assert watched(unit * 6)[-1] == (len(unit), 6)


def test_watching_costs_microseconds() -> None:
    for text in (prose(20_000), "ab" * 10_000):
        watch = RepetitionWatch(decode)
        ids = list(map(ord, text))
        with takes_less_than(20e-6 * len(ids)):
            for i in ids:
                watch.push(i)
