"""Every answer is the one that it would be alone, whatever runs beside it and however that ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import TinyModel

import offload
from offload.answer import Answer
from offload.engine import Engine
from offload.repetition import RepetitionWatch
from offload.sampler import Sampler
from offload.sequence import Sequence
from offload.speech import Speech
from offload.stream import StopMatcher, StreamDecoder
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=2, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
CONTEXT = 96
CHUNKS = (1, 5, 16, 512)
SYSTEM = "The system says a lot. "
TEXTS = ("a", "Hello there", SYSTEM, SYSTEM + "One", SYSTEM + "Two of them", "x" * 60, "End")
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.3, "stop": ["e", "\x00"]},
)
Case = tuple[str, int, int | None, int]  # text, sampling, max_tokens, seed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("company") / "tiny.gguf", MODEL)


@pytest.fixture(scope="module")
def alone(path: Path) -> Iterator[Engine]:
    with offload.load(path, context=CONTEXT, threads=1) as made:
        yield made


@pytest.fixture(scope="module", params=CHUNKS)
def engine(path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with offload.load(path, context=CONTEXT, threads=1, chunk=request.param) as made:
        yield made


def ask(engine: Engine, case: Case) -> Answer:
    text, sampling, most, seed = case
    return engine.generate(text, seed=seed, max_tokens=most, **SAMPLING[sampling])


EXPECTED: dict[Case, list[offload.Token]] = {}


def expected(alone: Engine, case: Case) -> list[offload.Token]:
    """What the case gives in an engine that has nothing in its cache."""
    if case not in EXPECTED:
        with alone._steps.holder.alone():
            alone._steps.tidy()
            alone._steps.slots.drop_all()
        EXPECTED[case] = list(ask(alone, case))
    return EXPECTED[case]


def some_case(rng: random.Random) -> Case:
    most = rng.choice((1, 4, 12, None))
    return rng.choice(TEXTS), rng.randrange(len(SAMPLING)), most, rng.randrange(3)


class Interrupted(BaseException):
    """Like KeyboardInterrupt, which pytest would take for its own."""


class Torn:
    """Raises Interrupted around some call of some function of a step, as a signal would."""

    PLACES = (
        (Sampler, "sample"), (StopMatcher, "push"), (StreamDecoder, "push"), (Speech, "say"),
        (RepetitionWatch, "push"), (Sequence, "count"), (Sequence, "take"),
    )  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place: object = None
        self.calls = 0  # until then

        for place in self.PLACES:
            original = getattr(*place)

            def torn(
                *args: Any, original: Any = original, place: object = place, **options: Any
            ) -> Any:
                self.tick(place)
                made = original(*args, **options)
                self.tick(place)
                return made

            monkeypatch.setattr(*place, torn)

    def tick(self, place: object) -> None:
        if place is self.place:
            self.calls -= 1
            if self.calls == 0:
                raise Interrupted

    def arm(self, rng: random.Random) -> None:
        self.place, self.calls = rng.choice(self.PLACES), rng.randrange(1, 8)

    def disarm(self) -> None:
        self.place = None


@pytest.mark.parametrize("seed", range(8))
def test_random_company_changes_nothing(
    engine: Engine, alone: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    torn = Torn(monkeypatch) if seed % 2 else None
    open_: list[tuple[Case, Answer, list[offload.Token]]] = []
    for _ in range(120):
        what = rng.random()
        if what < 0.15 or not open_:
            case = some_case(rng)
            open_.append((case, ask(engine, case), []))
            continue
        for _, answer, got in open_:  # so that they take part in what comes
            while answer.sequence.said and rng.random() < 0.8:
                got.extend(answer.ready() or [])
        case, answer, got = one = rng.choice(open_)
        if what > 0.98:
            answer.close()
            open_.remove(one)
            continue
        if torn is not None and what > 0.8:
            torn.arm(rng)
        try:
            for _ in range(rng.choice((1, 1, 3, 100))):
                got.append(next(answer))
        except StopIteration:
            if torn is not None:
                torn.disarm()
            assert got == expected(alone, case), case
            open_.remove(one)
        except offload.RequestError:  # no room
            assert not got
            open_.remove(one)
        except Interrupted:
            open_.remove(one)
        if torn is not None:
            torn.disarm()
        assert got == expected(alone, case)[: len(got)], case
    for case, answer, got in open_:
        try:
            got.extend(answer)
        except offload.RequestError:
            assert not got
            continue
        assert got == expected(alone, case), case


@pytest.mark.parametrize("wait", [False, True])
def test_threads_change_nothing(path: Path, alone: Engine, wait: bool) -> None:
    rng = random.Random(7)
    work = [[some_case(rng) for _ in range(6)] for _ in range(4)]
    wanted = {case: expected(alone, case) for cases in work for case in cases}
    wrong: list[object] = []
    with offload.load(path, context=CONTEXT, threads=1, chunk=7, wait=wait) as engine:

        def run(cases: list[Case]) -> None:
            for case in cases:
                try:
                    got = list(ask(engine, case))
                except offload.RequestError as exc:
                    if wait or "tokens of the KV cache" not in str(exc):
                        wrong.append(exc)
                    continue
                except BaseException as exc:
                    wrong.append(exc)
                    return
                if got != wanted[case]:
                    wrong.append((case, got))

        threads = [threading.Thread(target=run, args=(cases,), daemon=True) for cases in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert wrong == []


def test_a_batch_gives_the_same(path: Path, alone: Engine) -> None:
    rng = random.Random(3)
    cases = [some_case(rng) for _ in range(17)]
    with offload.load(path, context=CONTEXT, threads=1, chunk=20) as engine:
        got = list(
            engine.batch(
                [case[0] for case in cases],
                options=[
                    {"max_tokens": most, "seed": seed, **SAMPLING[sampling]}
                    for _, sampling, most, seed in cases
                ],
                at_once=5,
            )
        )
        kept = list(engine.batch([[1, 2], "x", [{"role": "user", "content": "Hi"}]], max_tokens=2))
    assert sorted(done.index for done in got) == list(range(17))
    assert [done.index for done in got] != list(range(17))
    for done in got:
        tokens = expected(alone, cases[done.index])
        assert done.text == "".join(token.text for token in tokens)
        assert done.error is None
    assert len(kept) == 3


def test_logits_in_company(path: Path, alone: Engine) -> None:
    wanted = alone.logits(list(range(50)))
    with offload.load(path, context=CONTEXT, threads=1, chunk=7) as engine:
        case = ("Hello there", 1, None, 1)
        answer = ask(engine, case)
        got = [next(answer)]
        np.testing.assert_array_equal(engine.logits(list(range(50))), wanted)
        assert got + list(answer) == expected(alone, case)


def test_a_short_request_is_answered_within_two_steps_of_a_long_prompt(path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 200, 600).tolist()
    with offload.load(path, context=700, kv_tokens=1400, threads=1, chunk=32) as engine:
        long = engine.generate(ids, max_tokens=3, temperature=0)
        long.begin()
        got = []
        for i in range(5):
            engine.step()
            slot = long.sequence.slot
            assert slot is not None
            before = slot.length
            short = engine.generate([i], max_tokens=1, temperature=0)
            short.begin()
            for _ in range(2):
                engine.step()
            got.append(short.ready())
            assert got[-1]
            assert slot.length >= before + 32
        together = list(long)
    with offload.load(path, context=700, threads=1) as engine:
        for i, tokens in enumerate(got):
            assert list(engine.generate([i], max_tokens=1, temperature=0)) == tokens
        assert list(engine.generate(ids, max_tokens=3, temperature=0)) == together


def test_a_prompt_whose_reader_goes_ends_before_the_next_layer(path: Path, alone: Engine) -> None:
    with offload.load(path, context=700, kv_tokens=1400, threads=1, chunk=512) as engine:
        told: list[int] = []

        def go(progress: offload.LoadProgress) -> None:
            told.append(progress.done_bytes)
            if len(told) == 2:
                prompt.close()

        case = ("Hello there", 1, None, 1)
        staying = ask(engine, case)
        got = [next(staying)]
        prompt = engine.generate([7] * 600, max_tokens=3, progress=go)
        prompt.begin()
        got += staying
        assert got == expected(alone, case)
        assert len(told) == 2  # once a layer
        assert list(prompt) == []
