"""One answer at a time: the second is refused or waits, and never ends the first."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from offload.turns import Cancelled, Turns
from tiny_gguf import TinyModel

import offload
from offload import OffloadError, RequestError
from offload.engine import Engine
from quant.ggml import GGMLType

MODEL = TinyModel(
    hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32, dense_width=64,
    types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPT = "In the beginning there was a prompt of some length."
QUESTION = [{"role": "user", "content": "What is a hot expert?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("turns") / "tiny.gguf", MODEL)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with offload.load(path, context=256, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def patient(path: Path) -> Iterator[Engine]:
    with offload.load(path, context=256, threads=1, wait=True) as made:
        yield made


def ids(tokens: Iterator[offload.Token]) -> list[int]:
    return [token.id for token in tokens]


class Worker(threading.Thread):
    """Runs one function and keeps what it returned or raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.work()
        except BaseException as exc:
            self.outcome = exc

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        return self.outcome


def calls(engine: Engine) -> dict[str, Callable[[], object]]:
    return {
        "generate": lambda: engine.generate("x"),
        "chat": lambda: engine.chat(QUESTION),
        "logits": lambda: engine.logits([1]),
    }


@pytest.mark.parametrize("name", ["generate", "chat", "logits"])
def test_a_second_answer_is_refused_and_the_first_goes_on(engine: Engine, name: str) -> None:
    expected = ids(engine.generate(PROMPT, **GREEDY))
    running = engine.generate(PROMPT, **GREEDY)
    got = [next(running).id]
    with pytest.raises(RequestError, match=r"giving another answer.*close\(\).*wait=True"):
        calls(engine)[name]()
    refused = Worker(calls(engine)[name]).result()
    assert isinstance(refused, RequestError)
    assert got + ids(running) == expected
    calls(engine)[name]()


def test_an_answer_not_begun_holds_nothing(engine: Engine) -> None:
    first, second = engine.generate(PROMPT, **GREEDY), engine.generate("else", **GREEDY)
    got = [next(second).id]
    with pytest.raises(RequestError, match="giving another answer"):
        next(first)
    got += ids(second)
    assert ids(engine.generate("else", **GREEDY)) == got
    assert ids(first) == []  # a refused iterator has ended, as every iterator that raised


@pytest.mark.parametrize("end", ["close", "exhaust", "forget", "cycle", "fail", "cancel", "thread"])
def test_every_end_gives_the_engine_free(engine: Engine, end: str) -> None:
    expected = ids(engine.generate(PROMPT, **GREEDY))
    running = engine.generate("something", **GREEDY)
    next(running)
    if end == "close":
        running.close()
    elif end == "exhaust":
        list(running)
    elif end == "forget":
        del running
    elif end == "cycle":
        cycle: list[object] = [running]
        cycle.append(cycle)
        del running, cycle
        gc.collect()
    elif end == "fail":

        def fail(*_: object) -> None:
            raise KeyError("mine")

        engine.trace_routing(fail)
        with pytest.raises(KeyError):
            next(running)
        engine.trace_routing(None)
    elif end == "cancel":
        engine.cancel()
    else:
        Worker(running.close).result()
    assert ids(engine.generate(PROMPT, **GREEDY)) == expected
    assert engine.logits([1, 2]).shape == (2, MODEL.vocab)


def test_a_cancelled_answer_that_nobody_reads_on_ends_when_it_is_read(engine: Engine) -> None:
    expected = ids(engine.generate(PROMPT, **GREEDY))
    stopped = engine.generate("something", **GREEDY)
    next(stopped)
    engine.cancel()
    running = engine.generate(PROMPT, **GREEDY)
    got = [next(running).id]
    assert list(stopped) == []
    assert got + ids(running) == expected


def test_waiting_threads_all_get_their_right_answers(patient: Engine) -> None:
    prompts = [PROMPT, "another one", PROMPT[5:], "x"]
    expected = [ids(patient.generate(p, **GREEDY)) for p in prompts]
    logits = patient.logits([1, 2, 3])
    for _ in range(3):
        workers = [Worker(lambda p=p: ids(patient.generate(p, **GREEDY))) for p in prompts]
        other = Worker(lambda: patient.logits([1, 2, 3]))
        assert [worker.result() for worker in workers] == expected
        assert (other.result() == logits).all()


def test_first_come_first_served(patient: Engine) -> None:
    order: list[str] = []

    def answer(name: str) -> None:
        for _ in patient.generate(PROMPT, **GREEDY):
            if not order or order[-1] != name:
                order.append(name)

    running = patient.generate(PROMPT, **GREEDY)
    next(running)
    workers = []
    for name in "bcd":
        workers.append(Worker(lambda name=name: answer(name)))
        while len(patient._turns._queue) < len(workers):
            time.sleep(0.001)
    running.close()
    answer("a")  # at once, but behind those that have waited
    for worker in workers:
        worker.result()
    assert order == ["b", "c", "d", "a"]


def test_waiting_for_ones_own_answer_is_refused(patient: Engine) -> None:
    expected = ids(patient.generate(PROMPT, **GREEDY))
    early = patient.generate("else", **GREEDY)
    running = patient.generate(PROMPT, **GREEDY)
    got = [next(running).id]
    for call in (*calls(patient).values(), lambda: next(early)):
        with pytest.raises(RequestError, match="this thread has not finished.*never end"):
            call()
    assert got + ids(running) == expected


def test_an_answer_passed_on_to_another_thread_is_waited_for(patient: Engine) -> None:
    running = patient.generate(PROMPT, **GREEDY)
    next(running)
    Worker(lambda: next(running)).result()
    waiting = Worker(lambda: ids(patient.generate(PROMPT, **GREEDY)))
    time.sleep(0.02)
    assert waiting.is_alive()
    running.close()
    assert len(waiting.result()) == 8


def test_cancel_ends_the_running_answer_and_no_waiting_one(patient: Engine) -> None:
    expected = ids(patient.generate(PROMPT, **GREEDY))
    running = patient.generate(PROMPT, temperature=0)
    next(running)
    waiting = Worker(lambda: ids(patient.generate(PROMPT, **GREEDY)))
    time.sleep(0.02)
    patient.cancel()
    assert list(running) == []
    assert waiting.result() == expected


def test_close_wakes_those_who_wait(path: Path) -> None:
    engine = offload.load(path, context=64, threads=1, wait=True)
    running = engine.generate(PROMPT, **GREEDY)
    next(running)
    waiting = [Worker(lambda: list(engine.generate("x"))), Worker(lambda: engine.logits([1]))]
    time.sleep(0.02)
    engine.close()
    for worker in waiting:
        assert isinstance(worker.result(), OffloadError)
        assert "the engine is closed" in str(worker.outcome)
    with pytest.raises(OffloadError, match="the engine is closed"):
        next(running)


def test_many_threads_without_waiting_get_right_answers_or_are_refused(engine: Engine) -> None:
    alone = ids(engine.generate(PROMPT, **GREEDY))
    for _ in range(5):
        workers = [Worker(lambda: ids(engine.generate(PROMPT, **GREEDY))) for _ in range(3)]
        outcomes = [worker.result() for worker in workers]
        answered = [x for x in outcomes if isinstance(x, list)]
        assert answered
        assert all(x == alone for x in answered)
        assert all(isinstance(x, RequestError) for x in outcomes if not isinstance(x, list))


def test_close_inside_a_pass_ends_the_answer(path: Path) -> None:
    engine = offload.load(path, context=64, threads=1)
    engine.trace_routing(lambda *_: engine.close())
    with pytest.raises(OffloadError, match="the engine is closed"):
        list(engine.generate(PROMPT))
    engine.close()


def test_a_finaliser_inside_the_lock_does_not_block() -> None:
    turns = Turns(wait=True)
    first, second = turns.ask(), turns.ask()
    first.begin()
    with turns._changed:  # as if the garbage collector ran here
        first.end()
        second.begin()
    second.end()
    second.end()


def test_cancel_before_begin_is_heard_once() -> None:
    turns = Turns(wait=False)
    asked = turns.ask()
    turns.cancel()
    later = turns.ask()
    asked.begin()
    with pytest.raises(Cancelled):
        asked.check()
    asked.end()
    later.begin()
    later.check()
