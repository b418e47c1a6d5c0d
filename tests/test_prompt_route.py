"""The way of a prompt's experts: a guess, then what chunks took."""

from __future__ import annotations

import pytest

from offload.prompt_route import ExpertCosts, PromptRoute

# K2.5 in TQ1_0, 9.29 MB an expert: DDR5 of 76 GB/s, PCIe of 25 GB/s, 8 cores of 58 G weights/s
DESKTOP = ExpertCosts(read=122e-6, row=95e-6, link=372e-6)
FIRST = next(n for n in range(1, 999) if 384 * (1 - (1 - 8 / 384) ** n) * 372 < n * 8 * 95)


def route(costs: ExpertCosts = DESKTOP, longest: int = 4096) -> PromptRoute:
    return PromptRoute(costs, 384, 8, longest)


def run(one: PromptRoute, rows: int, cpu: float, stream: float, times: int) -> str:
    """The ways of chunks that take so long, by their first letters."""
    ways = ""
    for _ in range(times):
        way = one.choose(rows)
        one.ran(way, rows, cpu if way == "cpu" else stream)
        ways += way[0]
    return ways


def test_rows_that_share_experts_make_it_worth_while() -> None:
    one = route()
    assert one.first == FIRST
    assert [one.choose(rows) for rows in (1, 16, FIRST - 1, FIRST, 4096)] == [
        "cpu", "cpu", "cpu", "stream", "stream",
    ]  # fmt: skip
    assert f"chunks from {FIRST} tokens on are streamed" in one.note
    assert "372 us to the GPU, 122 us to the cores and 95.0 us a row" in one.note
    assert route(longest=128).first is None
    assert "by the CPU" in route(longest=128).note
    never = ExpertCosts(read=0.0, row=1e-9, link=1.0)
    assert route(never, 1 << 30).first is None


def test_what_chunks_took_decides() -> None:
    """Of a size that was tried both ways; where the guess is close, both are tried."""
    one = route()
    assert run(one, 256, cpu=1.0, stream=2.0, times=8) == "ssccc" + "ccc"
    assert one.choose(256) == "cpu"
    assert one.first is not None
    assert one.first > FIRST, "and it moves the guess for others"
    assert "0." in one.note


@pytest.mark.parametrize(("rows", "way"), [(4, "c"), (4096, "s")])
def test_what_is_hopeless_is_not_tried(rows: int, way: str) -> None:
    assert run(route(), rows, cpu=1.0, stream=1.0, times=5) == 5 * way


def test_a_short_chunk_does_not_decide_for_long_ones() -> None:
    one = route()
    run(one, 192, cpu=1.0, stream=1.5, times=9)
    assert one.choose(192) == "cpu"
    assert one.choose(4096) == "stream"
