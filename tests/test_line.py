"""Who waits for room: what fits passes what does not, a few times, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_model import ask, make_steps
from hypothesis import given
from hypothesis import strategies as st
from test_steps import Worker, ids

from offload.engine import Engine
from offload.line import MOST_PASSED, Line
from offload.server.desk import Desk, Start
from offload.server.ticket import Ticket
from offload.steps import Steps


def test_the_first_that_fits_is_next() -> None:
    line: Line[int] = Line()
    for size in (9, 3, 5):
        line.join(size)
    assert line.next(lambda size: size < 10, always) == 9
    assert line.next(lambda size: size < 6, always) == 3
    assert line.next(lambda size: size < 3, always) is None
    line.leave(3)
    assert line.next(lambda size: size < 6, always) == 5
    line.leave(3)
    assert list(line) == [9, 5]


def always(one: Any, before: Any) -> bool:
    return True


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=60), st.integers(0, 20))
def test_nobody_is_delayed_more_often_than_that(asked: list[tuple[int, bool]], room: int) -> None:
    line: Line[tuple[int, int, bool]] = Line()
    delayed = dict.fromkeys(range(len(asked)), 0)

    def fits(one: tuple[int, int, bool]) -> bool:
        return one[1] <= room

    def delays(one: tuple[int, int, bool], before: object) -> bool:
        return one[2]

    for number, (size, is_delay) in enumerate(asked):
        line.join((number, size, is_delay))
        while (one := line.next(fits, delays)) is not None:
            for before, *_ in line:
                delayed[before] += before < one[0] and one[2]
            line.begin(one, delays)
    assert max(delayed.values(), default=0) <= MOST_PASSED
    assert all(one[2] for one in line if fits(one)), "who delays nobody goes"
    if line and delayed[next(iter(line))[0]] < MOST_PASSED:
        assert not any(map(fits, line))


@pytest.mark.parametrize(("n_large", "may_pass"), [(50, MOST_PASSED), (40, 3 * MOST_PASSED)])
def test_an_answer_without_room_is_passed_by_small_ones(n_large: int, may_pass: int) -> None:
    """Beside the larger one there is no room for a small one, when it is its turn."""
    steps = make_steps(64, wait=True)
    running = ask(steps, [1] * 30, max_tokens=10)
    next(running)
    order: list[str] = []

    def run(name: str, n: int) -> None:
        answer = ask(steps, [ord(name) % 40] * n, max_tokens=5)
        next(answer)
        order.append(name)
        ids(answer)

    large = Worker(lambda: run("L", n_large))
    while not len(steps._waiting):
        time.sleep(0.001)
    for _ in range(may_pass):
        Worker(lambda: run("s", 10)).result()
    last = Worker(lambda: run("s", 10))
    if may_pass == MOST_PASSED:
        time.sleep(0.3)
        assert last.is_alive()
    else:
        last.result()
    running.close()
    large.result()
    last.result()
    assert order.index("L") == may_pass + (may_pass > MOST_PASSED)


class Asking:
    """Asks at a desk whose engine is made of fakes."""

    def __init__(self, desk: Desk, steps: Steps) -> None:
        self.desk, self.steps = desk, steps

    async def ask(self, n: int, max_tokens: int) -> Ticket:
        def start(engine: Engine, progress: Any) -> Any:
            return ask(self.steps, [n % 40] * n, max_tokens=max_tokens)

        return await self.desk.ask([cast("Start", start)])

    def states(self) -> list[tuple[str, int]]:
        return [(view.state, view.position) for view in self.desk.snapshot()]


async def at_a_desk(n_large: int, n_passed: int) -> None:
    steps = make_steps(4000)
    kv = SimpleNamespace(context=4000)
    engine = SimpleNamespace(step=steps.advance, plan=SimpleNamespace(kv=kv))
    desk = Desk(cast("Engine", engine), parallel=3, queue=40)
    try:
        asking = Asking(desk, steps)
        first = await asking.ask(20, 2000)  # whose reader takes nothing: so it stays
        large = await asking.ask(n_large, 24)
        await until(lambda: asking.states()[1:] == [("queued", 1)])
        for _ in range(n_passed):
            small = await asking.ask(5, 3)
            await until(lambda small=small: small.seats[0].state == "over")
            assert large.seats[0].position == 1
        late = []
        if n_passed == MOST_PASSED:
            late = [await asking.ask(5, 3) for _ in range(2)]
            await until(lambda: [seat.seats[0].position for seat in late] == [2, 3])
        assert [seat.seats[0].state for seat in (large, *late)] == ["queued"] * (1 + len(late))
        first.close()
        await until(lambda: large.seats[0].state != "queued")
        await until(lambda: all(seat.seats[0].state == "over" for seat in (large, *late)))
        assert large.seats[0].n_tokens == 24
    finally:
        desk.close()


async def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(("n_large", "n_passed"), [(3975, MOST_PASSED), (3930, 3 * MOST_PASSED)])
def test_a_desk_lets_small_ones_pass_and_keeps_the_place_of_the_large_one(
    n_large: int, n_passed: int
) -> None:
    """Beside the larger one there is no room for a small one, when it is its turn."""
    asyncio.run(at_a_desk(n_large, n_passed))
