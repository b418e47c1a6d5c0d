"""Who waits for room: what fits passes what does not, a few times, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

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
    assert line.next(lambda size: size < 10) == 9
    assert line.next(lambda size: size < 6) == 3
    assert line.next(lambda size: size < 3) is None
    line.leave(3)
    assert line.next(lambda size: size < 6) == 5
    line.leave(3)
    assert list(line) == [9, 5]


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(0, 20))
def test_nobody_is_passed_more_often_than_that(sizes: list[int], room: int) -> None:
    line: Line[tuple[int, int]] = Line()
    passed = dict.fromkeys(range(len(sizes)), 0)
    for number, size in enumerate(sizes):
        line.join((number, size))
        while (one := line.next(lambda one: one[1] <= room)) is not None:
            line.begin(one)
            for before in line:
                passed[before[0]] += before[0] < one[0]
    assert max(passed.values(), default=0) <= MOST_PASSED
    stuck = [number for number, size in line]
    if stuck and passed[stuck[0]] < MOST_PASSED:
        assert all(size > room for _, size in line)


def test_an_answer_without_room_is_passed_by_small_ones_for_a_while() -> None:
    steps = make_steps(64, wait=True)
    running = ask(steps, [1] * 30, max_tokens=10)
    next(running)
    order: list[str] = []

    def run(name: str, n: int) -> None:
        answer = ask(steps, [ord(name) % 40] * n, max_tokens=5)
        next(answer)
        order.append(name)
        ids(answer)

    large = Worker(lambda: run("L", 50))
    while not len(steps._waiting):
        time.sleep(0.001)
    small = 0
    while len(order) == small and small < 3 * MOST_PASSED:
        worker = Worker(lambda: run("s", 10))
        until = time.monotonic() + 0.3
        while worker.is_alive() and time.monotonic() < until:
            time.sleep(0.001)
        small += 1
    assert order == ["s"] * MOST_PASSED
    running.close()
    large.result()
    worker.result()
    assert order == ["s"] * MOST_PASSED + ["L", "s"]


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


async def at_a_desk() -> None:
    steps = make_steps(4000)
    kv = SimpleNamespace(context=4000)
    engine = SimpleNamespace(step=steps.advance, plan=SimpleNamespace(kv=kv))
    desk = Desk(cast("Engine", engine), parallel=3, queue=40)
    try:
        asking = Asking(desk, steps)
        first = await asking.ask(20, 2000)  # whose reader takes nothing: so it stays
        large = await asking.ask(3900, 24)
        await until(lambda: asking.states()[1:] == [("queued", 1)])
        for _ in range(MOST_PASSED):
            small = await asking.ask(5, 3)
            await until(lambda small=small: small.seats[0].state == "over")
            assert large.seats[0].position == 1
        late = [await asking.ask(5, 3) for _ in range(2)]
        await until(lambda: [seat.seats[0].position for seat in late] == [2, 3])
        assert [seat.seats[0].state for seat in (large, *late)] == ["queued"] * 3
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


def test_a_desk_lets_small_ones_pass_and_keeps_the_place_of_the_large_one() -> None:
    asyncio.run(at_a_desk())
