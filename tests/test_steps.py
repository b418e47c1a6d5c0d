"""Steps on a model of few microseconds: who takes part, who waits, who is disturbed."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_model import alone, answer_to, ask, make_steps, model_of, request
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import batch
from offload.answer import Answer, completions
from offload.batching import WORTH, shares
from offload.errors import GGUFError, OffloadError, RequestError
from offload.steps import Steps

LONG = list(range(1, 41))


def ids(answer: Answer) -> list[int]:
    return [token.id for token in answer]


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


# --- what a step holds ------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=9), st.integers(1, 600))
def test_prompts_share_a_chunk(unread: list[int], chunk: int) -> None:
    counts = shares(unread, chunk)
    assert sum(counts) == min(chunk, sum(unread))
    assert all(0 <= count <= n for count, n in zip(counts, unread, strict=True))
    assert counts[0] >= min(unread[0], chunk / 2)
    # of the others, the shorter goes first
    for i in range(1, len(unread)):
        for j in range(1, len(unread)):
            if unread[i] < unread[j] and counts[j]:
                assert counts[i] == unread[i]


def test_between_two_tokens_of_an_answer_lies_one_step_with_a_chunk() -> None:
    steps = make_steps(400, chunk=16)
    answering = ask(steps, [1, 2], max_tokens=60)
    first = [next(answering).id]
    others = [ask(steps, [i] * 80, max_tokens=2) for i in range(3, 6)]
    for other in others:
        other.begin()
    before = len(model_of(steps).batches)
    for token in answering:
        first.append(token.id)
    assert first == alone(400, [1, 2], max_tokens=60)
    made = model_of(steps).batches[before:]
    assert len(made) == 59  # a token each
    assert all(made_.n_tokens <= 16 + 1 + 3 for made_ in made)
    assert sum(made_.n_tokens > 4 for made_ in made) >= 15


def test_a_short_request_overtakes_a_long_prompt() -> None:
    steps = make_steps(1000, chunk=16)
    long, short = ask(steps, [7] * 800, max_tokens=2), ask(steps, [8] * 20, max_tokens=2)
    long.begin()
    for _ in range(3):
        steps.advance(long.sequence)
    next(short)
    assert len(model_of(steps).batches) == 3 + 3  # 8 tokens of its 20 in each step
    assert ids(long) == alone(1000, [7] * 800, max_tokens=2)


def test_the_oldest_prompt_is_not_starved() -> None:
    steps = make_steps(5000, chunk=16)
    long = ask(steps, [7] * 160, max_tokens=2)
    long.begin()
    for i in range(40):
        ask_and_keep = ask(steps, [8 + i % 30] * 14, max_tokens=1)
        ask_and_keep.begin()
        steps.advance(long.sequence)
        if long.sequence.said:
            break
        ask_and_keep.close()
    assert len(model_of(steps).batches) <= 20  # half of each chunk at least


def test_an_answer_that_nobody_reads_costs_nothing() -> None:
    steps = make_steps()
    abandoned = ask(steps, [1, 2, 3], max_tokens=30)
    next(abandoned)
    before = len(model_of(steps).batches)
    assert ids(ask(steps, [4], max_tokens=20)) == alone(64, [4], max_tokens=20)
    spans = [len(b.spans) for b in model_of(steps).batches[before:]]
    assert spans.count(2) <= 2
    assert len(ids(abandoned)) == 29


def test_identical_prompts_are_read_once() -> None:
    steps = make_steps(400, budget=400)
    answers = [ask(steps, [*LONG, i], max_tokens=3) for i in range(4)]
    for answer in answers:
        answer.begin()
    got = [ids(answer) for answer in answers]
    assert got == [alone(64, [*LONG, i], max_tokens=3) for i in range(4)]
    # the last few of them each for itself, which is no worse than waiting
    assert sum(b.n_tokens for b in model_of(steps).batches) < len(LONG) + 3 * WORTH + 4 + 4 * 2
    assert [answer.stats.reused_tokens > 40 - WORTH for answer in answers] == [False, *[True] * 3]


def test_two_conversations_in_turns_keep_their_prefixes() -> None:
    steps = make_steps(100)
    talks = [[1, 2, 3, 4, 5], [1, 2, 9, 9, 9]]
    for turn in range(4):
        for talk in talks:
            answer = ask(steps, talk, max_tokens=4)
            talk += [*ids(answer), 7]
            if turn:
                assert answer.stats.reused_tokens == answer.stats.prompt_tokens - 2


def test_statistics_of_an_answer_in_company() -> None:
    steps = make_steps(100)
    a, b = ask(steps, LONG, max_tokens=5), ask(steps, [1, 2], max_tokens=5)
    a.begin()
    ids(b)
    ids(a)
    for answer in (a, b):
        stats = answer.stats
        assert stats.decode_tokens == 4
        assert stats.finish_reason == "length"
        assert 0 < stats.prompt_seconds <= stats.time_to_first_token
        assert 0 < stats.decode_bytes <= 4000
        assert stats.longest_gap > 0


def test_times_of_blocks_are_read_once_a_step_and_are_its_own() -> None:
    steps = make_steps(100)
    model, readings = model_of(steps), []

    def block_seconds() -> list[float]:
        readings.append(model.bytes_read)
        return [1e-9 * model.bytes_read] * 6  # a microsecond a pass

    model.block_seconds = block_seconds  # type: ignore[method-assign]
    first = ask(steps, [1, 2], max_tokens=5)
    ids(first)
    assert len(readings) == 1 + len(model.batches)
    assert first.stats.block_seconds == pytest.approx([4e-6] * 6)
    model.bytes_read += 50_000  # something else went through the model
    second = ask(steps, [3, 4], max_tokens=5)
    ids(second)
    assert second.stats.block_seconds == pytest.approx([4e-6] * 6)
    assert len(readings) == 2 + len(model.batches)


def test_a_batch_keeps_to_its_limits_and_survives_one_bad_answer() -> None:
    steps = make_steps(64, chunk=8)
    model_of(steps).damaged = 47
    prompts = [[i] * 10 for i in range(1, 8)] + [[47]]
    requests = [request(prompt, max_tokens=1 + i) for i, prompt in enumerate(prompts)]
    done = list(completions(requests, lambda asked: answer_to(steps, asked), steps, 3))
    assert sorted(one.index for one in done) == list(range(8))
    for one in done:
        if one.index == 7:
            assert isinstance(one.error, GGUFError)
            continue
        ids_ = alone(64, prompts[one.index], max_tokens=1 + one.index)
        assert one.error is None
        assert one.ids == tuple(ids_)
        assert one.text == "".join(chr(65 + i) for i in ids_)
        assert one.stats.decode_tokens == one.index
    assert max(len(b.spans) for b in model_of(steps).batches) == 3
    running = ask(steps, [1] * 50, max_tokens=10)  # leaves room for one at a time
    next(running)
    alone_each = completions(requests[:3], lambda asked: answer_to(steps, asked), steps, 3)
    with pytest.raises(RequestError, match="are left by 1 unfinished"):
        next(alone_each)


def test_leaving_a_batch_ends_its_answers() -> None:
    steps = make_steps(64)
    requests = [request([i], max_tokens=i) for i in (1, 20, 30)]
    done = completions(requests, lambda asked: answer_to(steps, asked), steps, 3)
    assert next(done).index == 0
    done.close()  # type: ignore[attr-defined]
    assert len(ids(ask(steps, [1] * 40, max_tokens=24))) == 24


# --- rows -------------------------------------------------------------------------------------


def test_answers_that_do_not_fit_are_refused_with_the_numbers() -> None:
    steps = make_steps(64)
    running = ask(steps, [1] * 10, max_tokens=30)
    got = [next(running).id]
    with pytest.raises(
        RequestError, match=r"needs 30 tokens.*25 of 64 are left by 1 unfinished.*wait=True"
    ):
        next(ask(steps, [2] * 21, max_tokens=10))
    assert ids(ask(steps, [2] * 21, max_tokens=5)) == alone(64, [2] * 21, max_tokens=5)
    assert got + ids(running) == alone(64, [1] * 10, max_tokens=30)
    assert ids(ask(steps, [2] * 21, max_tokens=10)) == alone(64, [2] * 21, max_tokens=10)


def test_a_refused_iterator_has_ended() -> None:
    steps = make_steps(64)
    running = ask(steps, [1] * 60)
    next(running)
    refused = ask(steps, [2] * 60)
    with pytest.raises(RequestError):
        next(refused)
    running.close()
    assert ids(refused) == []


def test_those_who_wait_come_first_served() -> None:
    steps = make_steps(64, wait=True)
    order: list[str] = []

    def run(name: str) -> None:
        answer = ask(steps, [ord(name) % 40] * 50, max_tokens=10)
        next(answer)
        order.append(name)
        ids(answer)

    running = ask(steps, [1] * 50, max_tokens=10)
    next(running)
    workers = []
    for name in "bcd":
        workers.append(Worker(lambda name=name: run(name)))
        while len(steps._waiting) < len(workers):
            time.sleep(0.001)
    running.close()
    run("a")
    for worker in workers:
        assert worker.result() is None
    assert order == ["b", "c", "d", "a"]


def test_waiting_for_ones_own_answer_is_refused() -> None:
    steps = make_steps(64, wait=True)
    running = ask(steps, [1] * 50, max_tokens=10)
    got = [next(running).id]
    with pytest.raises(RequestError, match="this thread has not finished.*never end"):
        next(ask(steps, [2] * 50, max_tokens=10))
    assert got + ids(running) == alone(64, [1] * 50, max_tokens=10)


def test_an_answer_passed_on_to_another_thread_is_waited_for() -> None:
    steps = make_steps(64, wait=True)
    running = ask(steps, [1] * 50, max_tokens=10)
    next(running)
    Worker(lambda: [next(running) for _ in range(5)]).result()
    waiting = Worker(lambda: ids(ask(steps, [2] * 50, max_tokens=10)))
    time.sleep(0.02)
    assert waiting.is_alive()
    running.close()
    assert len(waiting.result()) == 10


def test_answers_without_a_limit_share_what_there_is() -> None:
    """The younger waits when rows run out, and neither answer is shorter for it."""
    steps = make_steps(64)
    answers = [
        ask(
            steps,
            [i, i],
        )
        for i in (1, 2, 3)
    ]
    got: list[list[int]] = [[], [], []]
    left = set(range(3))
    while left:
        for i in list(left):
            token = next(answers[i], None)
            if token is None:
                left.remove(i)
            else:
                got[i].append(token.id)
    assert got == [alone(64, [i, i]) for i in (1, 2, 3)]


@pytest.mark.parametrize("expanded", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 8, 64]), st.sampled_from([48, 80, 200]))
def test_random_company(expanded: bool, seed: int, chunk: int, budget: int) -> None:
    """Also where contexts are long: with prompts of two forms, which must not be mixed up."""
    with pytest.MonkeyPatch.context() as patch:
        if expanded:
            patch.setattr(batch, "EXACT_CONTEXT", 8)
            patch.setattr(batch, "EXPANDED_TOKENS", 4)
        random_company(random.Random(seed), make_steps(48, budget=budget, chunk=chunk))


def random_company(rng: random.Random, steps: Steps) -> None:
    running: list[tuple[list[int], dict[str, Any], Answer, list[int]]] = []
    said: list[list[int]] = [[1, 2, 3]]

    def check(prompt: list[int], options: dict[str, Any], got: list[int], *, whole: bool) -> None:
        expected = alone(48, prompt, **options)
        assert got == expected if whole else got == expected[: len(got)]
        said.append(([*prompt, *got])[:40])

    for _ in range(60):
        if not running or rng.random() < 0.2:
            start = rng.choice(said)
            prompt = [*start[: rng.randrange(1, 41)], *rng.choices(range(48), k=rng.randrange(6))]
            options = {"temperature": rng.choice((0, 1.0)), "seed": rng.randrange(99)}
            if rng.random() < 0.6:
                options["max_tokens"] = rng.randrange(1, 9)
            running.append((prompt, options, ask(steps, prompt, **options), []))
        one = rng.choice(running)
        prompt, options, answer, got = one
        try:
            for _ in range(rng.randrange(1, 8)):
                got.append(next(answer).id)
        except StopIteration:
            running.remove(one)
            check(prompt, options, got, whole=True)
        except RequestError:
            assert not got
            running.remove(one)
        if rng.random() < 0.1:
            answer.close()
            running = [x for x in running if x is not one]
            check(prompt, options, got, whole=False)
    for prompt, options, answer, got in running:
        try:
            got.extend(ids(answer))
        except RequestError:
            assert not got
            continue
        check(prompt, options, got, whole=True)
    with steps.holder.alone():
        steps.tidy()
        steps.slots.drop_all()
    assert steps.slots.free_rows == steps.slots.budget
    assert not model_of(steps).kv.slots


def test_a_slot_lost_in_an_interruption_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = make_steps(64)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offload.sequence.Sequence.sit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(ask(steps, [1] * 50))
    assert ids(ask(steps, [2] * 50)) == alone(64, [2] * 50)


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "exhaust", "forget", "cycle", "interrupt", "thread"])
def test_every_end_frees_the_slot_and_disturbs_nobody(end: str) -> None:
    steps = make_steps(64)
    other = ask(steps, [5, 6], max_tokens=12)
    got = [next(other).id]
    running = ask(steps, [1] * 30, max_tokens=20)
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
    elif end == "interrupt":
        got.extend(token.id for token in iter_ready(other))

        def interrupt() -> None:
            raise KeyboardInterrupt

        model_of(steps).during = interrupt
        with pytest.raises(KeyboardInterrupt):
            list(running)
        model_of(steps).during = lambda: None
    else:
        Worker(running.close).result()
    third = ask(steps, [2] * 30, max_tokens=20)
    assert ids(third) == alone(64, [2] * 30, max_tokens=20)
    assert got + ids(other) == alone(64, [5, 6], max_tokens=12)


def iter_ready(answer: Answer) -> list[Any]:
    """What is there already."""
    return [token for _ in list(answer.sequence.said) for token in answer.ready() or []]


def test_damaged_logits_end_one_answer() -> None:
    steps = make_steps(64)
    model_of(steps).damaged = 47
    good, bad = ask(steps, [1, 2], max_tokens=8), ask(steps, [3, 47], max_tokens=8)
    good.begin()
    bad.begin()
    assert ids(good) == alone(64, [1, 2], max_tokens=8)
    with pytest.raises(GGUFError, match="damaged"):
        next(bad)
    assert ids(bad) == []


def test_an_error_in_a_callback_ends_its_answer() -> None:
    steps = make_steps(200, chunk=4)

    def fail(_: object) -> None:
        raise KeyError("mine")

    good, bad = ask(steps, [1, 2], max_tokens=8), ask(steps, LONG, progress=fail, max_tokens=8)
    good.begin()
    bad.begin()
    assert ids(good) == alone(64, [1, 2], max_tokens=8)
    with pytest.raises(KeyError, match="mine"):
        next(bad)


def test_a_refused_slot_is_the_answers_error() -> None:
    steps = make_steps(64)
    good, bad = ask(steps, [1, 2], max_tokens=8), ask(steps, [2, 3], max_tokens=8)
    got = [next(good).id]
    model_of(steps).kv.is_full = True
    bad.begin()
    assert got + ids(good) == alone(64, [1, 2], max_tokens=8)
    with pytest.raises(OffloadError, match="refuses"):
        next(bad)


def test_a_callback_cannot_ask_for_tokens() -> None:
    steps = make_steps(64)
    inner, outer = ask(steps, [1], max_tokens=3), ask(steps, [2], max_tokens=3)
    seen = []

    def inside() -> None:
        model_of(steps).during = lambda: None
        with pytest.raises(RequestError, match="after it has returned"):
            next(inner)
        seen.append(1)

    model_of(steps).during = inside
    assert ids(outer) == alone(64, [2], max_tokens=3)
    assert seen


def test_an_interrupt_in_one_thread_does_not_end_another_threads_answer() -> None:
    steps = make_steps(200)

    def interrupt() -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.001)

    model_of(steps).during = interrupt
    workers = [Worker(lambda i=i: ids(ask(steps, [i], max_tokens=40))) for i in (1, 2)]
    interrupts = 0
    for _ in range(10):
        try:
            list(ask(steps, [9], max_tokens=40))
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts
    assert [w.result() for w in workers] == [alone(64, [i], max_tokens=40) for i in (1, 2)]


# --- cancel and close -------------------------------------------------------------------------


def test_a_pass_for_a_reader_that_goes_is_given_up_before_its_next_layer() -> None:
    steps = make_steps(200, chunk=16)
    model, going = model_of(steps), ask(steps, LONG, max_tokens=5)
    model.during = going.close
    assert ids(going) == []
    assert (model.layers, len(model.batches)) == (1, 0)
    model.during = lambda: None
    again = ask(steps, LONG, max_tokens=5)
    assert ids(again) == alone(200, LONG, max_tokens=5)
    assert again.stats.reused_tokens == 0


def test_those_who_stay_lose_one_pass_at_most_and_no_bit() -> None:
    steps = make_steps(400, chunk=16)
    model, staying = model_of(steps), ask(steps, [5, 6], max_tokens=30)
    got = [next(staying).id]
    readers: list[Answer] = []

    def go() -> None:
        """The prompt in this pass is left, and another one comes."""
        readers[-1].close()
        readers.append(ask(steps, [7 + len(readers)] * 40, max_tokens=5))
        readers[-1].begin()

    readers.append(ask(steps, LONG, max_tokens=5))
    readers[-1].begin()
    model.during = go
    layers, made = model.layers, len(model.batches)
    for token in staying:
        got.append(token.id)
        passes = len(model.batches) - made
        assert model.layers - layers <= 3 * passes  # given up after the first of two, or whole
    assert got == alone(400, [5, 6], max_tokens=30)
    assert len(readers) > 40


def test_a_reader_that_goes_from_a_small_part_of_a_pass_ends_nothing() -> None:
    steps = make_steps(400, chunk=16)
    model = model_of(steps)
    small, long = ask(steps, [1, 2], max_tokens=30), ask(steps, LONG, max_tokens=5)
    next(small)
    long.begin()
    layers, made = model.layers, len(model.batches)
    model.during = small.close
    assert ids(long) == alone(400, LONG, max_tokens=5)
    assert model.layers - layers == 2 * (len(model.batches) - made)


def test_a_token_for_a_reader_that_goes_is_given_up() -> None:
    steps = make_steps(64)
    model, going = model_of(steps), ask(steps, [1, 2], max_tokens=30)
    next(going)
    made, model.during = len(model.batches), going.close
    assert list(going) == []
    assert len(model.batches) == made


def test_many_requests_leave_nothing_behind() -> None:
    steps = make_steps(64, chunk=16)
    rng = random.Random(5)
    for i in range(1000):
        answer = ask(steps, [1 + i % 40, *rng.choices(range(1, 40), k=4)], max_tokens=2)
        if i % 3:
            next(answer)
        if i % 7 == 0:
            answer.close()
        else:
            list(answer)
    steps.advance()
    held = steps._sequences, steps._waiting, steps.jobs, steps.slots._lent
    assert not any(held)
    slots, kv = steps.slots._slots, model_of(steps).kv.slots
    assert len(slots) == len(kv) <= 64 // 5
    assert all(len(slot.ids) <= 7 and slot.ids.base is None for slot in slots)
    assert not steps.slots.free_rows < 0


def test_cancel_ends_all_that_run_and_none_that_waits() -> None:
    steps = make_steps(64, wait=True)
    running = [ask(steps, [i] * 10, max_tokens=20) for i in (1, 2)]
    for answer in running:
        next(answer)
    waiting = Worker(lambda: ids(ask(steps, [4] * 10, max_tokens=20)))
    while not steps._waiting:
        time.sleep(0.001)
    steps.cancel()
    assert [list(answer) for answer in running] == [[], []]
    assert [answer.stats.finish_reason for answer in running] == ["cancelled"] * 2
    assert waiting.result() == alone(64, [4] * 10, max_tokens=20)


def test_cancelled_answers_that_nobody_reads_on_give_their_room() -> None:
    steps = make_steps(64)
    stopped = ask(steps, [1] * 50)
    next(stopped)
    steps.cancel()
    assert ids(ask(steps, [2] * 50)) == alone(64, [2] * 50)
    assert list(stopped) == []


def test_cancel_in_a_pass_loses_nothing_of_later_answers() -> None:
    steps = make_steps(64)
    model_of(steps).during = steps.cancel
    assert ids(ask(steps, LONG)) == []
    model_of(steps).during = lambda: None
    assert ids(ask(steps, LONG)) == alone(64, LONG)


def test_cancel_before_the_first_token_is_heard_once() -> None:
    steps = make_steps(64)
    asked = ask(steps, [1])
    steps.cancel()
    later = ask(steps, [1], max_tokens=3)
    assert ids(asked) == []
    assert len(ids(later)) == 3


def test_close_ends_those_who_read_and_those_who_wait() -> None:
    steps = make_steps(64, wait=True)
    running = ask(steps, [1] * 50)
    next(running)
    waiting = Worker(lambda: ids(ask(steps, [2] * 50)))
    while not steps._waiting:
        time.sleep(0.001)
    steps.close()
    assert "the engine is closed" in str(waiting.result())
    assert model_of(steps).is_closed
    with pytest.raises(OffloadError, match="the engine is closed"):
        list(running)
    steps.close()


def test_close_in_a_pass_frees_the_model_after_it() -> None:
    steps = make_steps(64)
    model_of(steps).during = steps.close
    with pytest.raises(OffloadError, match="the engine is closed"):
        list(ask(steps, LONG))
    assert model_of(steps).is_closed


def test_close_by_another_thread_while_many_read() -> None:
    steps = make_steps(200)
    model_of(steps).during = lambda: time.sleep(0.002)
    workers = [Worker(lambda i=i: ids(ask(steps, [i]))) for i in range(1, 5)]
    time.sleep(0.03)
    steps.close()
    assert model_of(steps).is_closed
    for worker in workers:
        assert isinstance(worker.result(), OffloadError)


def test_a_finaliser_inside_the_lock_does_not_block() -> None:
    steps = make_steps(64)
    running = ask(steps, [1])
    next(running)
    with steps.holder.lock:  # as if the garbage collector ran here
        running.close()
        assert len(ids(ask(steps, [2], max_tokens=4))) == 4
