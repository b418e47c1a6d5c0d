"""A conversation that grows keeps its rows: forms follow from its ids, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kimi_vocab
import numpy as np
import pytest
from fake_model import TURNS, alone, ask, make_steps, model_of
from hypothesis import given
from hypothesis import strategies as st

import offload
from offload import batch, batching
from offload.batch import Runs, Span, differ_at, expanded_runs
from offload.batching import well_cut
from offload.chat import choose_format
from offload.engine import Engine
from offload.tokenizer import load_tokenizer
from offload.turns import learn_turns

OPEN, END = list(TURNS.opening), 47


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanded in pieces of 4 from position 8 on."""
    monkeypatch.setattr(batch, "EXACT_CONTEXT", 8)
    monkeypatch.setattr(batch, "EXPANDED_TOKENS", 4)
    monkeypatch.setattr(batching, "SHARING", 4)


# --- where answers stand ----------------------------------------------------------------------


def test_answers_are_found_in_the_ids() -> None:
    ids = [1, 2, *OPEN, 5, 6, END, 7, 45, 1, *OPEN, END, 3, *OPEN, *OPEN, 4]
    assert TURNS.answers(np.array(ids)) == [(4, 7), (12, 13), (16, 19)]
    assert TURNS.answers(np.array([1, *OPEN])) == [(3, 3)]
    assert TURNS.answers(np.array([45])) == TURNS.answers(np.array([], int)) == []


@pytest.mark.parametrize(
    "name", ["Kimi-K2.5", "Kimi-K2-Thinking", "Kimi-K2-Instruct", "Moonlight-16B-A3B"]
)
@pytest.mark.parametrize("thinking", [None, False])
def test_kimi_formats_tell_their_turns(name: str, thinking: bool | None) -> None:
    data = kimi_vocab.metadata(general__name=name)
    tokenizer = load_tokenizer(data, "")
    format_ = choose_format(data, tokenizer)
    if thinking is False and format_.thinking_mode != "switch":
        return
    turns = learn_turns(lambda talk: format_.build_prompt(talk).ids, tokenizer.eog_ids)
    assert turns is not None
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": "{}"}}
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "Hello, <|im_end|> you"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "result", "tool_call_id": "functions.f:0"},
        {"role": "assistant", "content": "Well.", "reasoning_content": "so"},
        {"role": "user", "content": "Why?"},
    ]
    end = tokenizer.special_id("<|im_end|>")
    prompts = [format_.build_prompt(talk[:n], thinking=thinking).ids for n in (1, 3, 5)]
    found = [turns.answers(np.array(ids)) for ids in prompts]
    assert [len(answers) for answers in found] == [1, 2, 3]
    for ids, answers in zip(prompts, found, strict=True):
        assert all(ids[stop - 1] == end for _, stop in answers[:-1])
        assert len(ids) - answers[-1][0] <= 1  # </think> of instant answers
    assert len({answers[0][0] for answers in found}) == 1


def test_a_template_tells_its_turns_and_a_broken_one_nothing() -> None:
    specials = {"<|im_start|>": 1, "<|im_end|>": 2, "<think>": 3}

    def write(talk: list[dict[str, str]]) -> list[int]:
        ids: list[int] = []
        for turn in talk:
            ids += [1, *turn["role"].encode(), 10, *turn["content"].encode(), 2, 10]
        return [*ids, 1, *b"assistant\n", 3, 10]

    turns = learn_turns(write, frozenset({2}))
    assert turns is not None
    assert turns.opening == (2, 10, 1, *b"assistant\n")
    assert turns.ends == {specials["<|im_end|>"]}

    def refuse(talk: list[dict[str, str]]) -> list[int]:
        raise offload.RequestError("no conversation")

    assert learn_turns(refuse, frozenset({2})) is None


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
def test_each_turn_has_pieces_of_its_own() -> None:
    assert expanded_runs(11) == ()
    assert expanded_runs(12) == ((8, 12),)
    assert expanded_runs(40, [(21, 23), (26, 30), (40, 40)]) == ((8, 20), (30, 38))
    assert expanded_runs(40, [(3, 17)]) == ((17, 37),)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_conversation_that_grows_changes_no_form(turns: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "EXACT_CONTEXT", 8)
        patch.setattr(batch, "EXPANDED_TOKENS", 4)
        at, answers, before = 0, [], ()
        for asked, answered in turns:
            at += asked
            now = expanded_runs(at, [*answers, (at, at)])
            differs = differ_at(before, now)
            assert differs is None or differs >= at - asked
            answers.append((at, at + answered))
            at += answered
            before = now


@given(
    st.integers(0, 30),
    st.integers(1, 30),
    st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted),
)
def test_a_span_is_cut_into_forms(first: int, count: int, edges: list[int]) -> None:
    runs: Runs = tuple(zip(edges[::2], edges[1::2], strict=False))
    span = Span(slot=0, first=first, count=count, expanded=runs)
    forms = [is_expanded for a, b, is_expanded in span.forms() for _ in range(a, b)]
    wanted = [any(a <= p < b for a, b in runs) for p in range(first, span.end)]
    assert forms == wanted
    assert span.is_expanded == any(wanted)


@pytest.mark.usefixtures("short")
def test_steps_end_where_pieces_do() -> None:
    assert well_cut(0, 10, ((9, 17),)) == 9
    assert well_cut(9, 16, ((9, 17),)) == 13
    assert well_cut(9, 12, ((9, 17),)) == 12  # less than a piece is there
    assert well_cut(9, 17, ((9, 17),)) == 17
    assert well_cut(0, 30, ((9, 17),)) == 30


@pytest.mark.usefixtures("short")
def test_a_growing_conversation_is_read_once() -> None:
    steps = make_steps(200, chunk=8)
    talk = [*range(1, 18), *OPEN]
    read = 0
    for turn in range(5):
        before = sum(b.n_tokens for b in model_of(steps).batches)
        answer = ask(steps, talk, max_tokens=5)
        said = [token.id for token in answer]
        read = sum(b.n_tokens for b in model_of(steps).batches) - before
        assert said == alone(200, talk, max_tokens=5)
        if turn:  # all but the last token of the answer before
            assert answer.stats.reused_tokens == answer.stats.prompt_tokens - 18
            assert read == 18 + 4
        talk += [*said, END, *range(20, 34), *OPEN]


@pytest.mark.usefixtures("short")
def test_dropped_reasoning_costs_what_comes_after_it() -> None:
    steps = make_steps(200, chunk=8)
    talk = [*range(1, 18), *OPEN]
    list(ask(steps, talk, max_tokens=9))
    again = [*talk, 30, 31, END, *range(1, 16), *OPEN]  # other ids than those that were said
    answer = ask(steps, again, max_tokens=3)
    assert [token.id for token in answer] == alone(200, again, max_tokens=3)
    assert answer.stats.reused_tokens == len(talk)


# --- a model ----------------------------------------------------------------------------------


@pytest.fixture
def engine(short: None) -> Iterator[Engine]:
    with offload.load(threads=1) as made:
        yield made


@pytest.mark.parametrize("thinking", [False, True])
def test_turns_of_a_chat_are_reused_and_change_nothing(engine: Engine, thinking: bool) -> None:
    talk: list[dict[str, str]] = []
    options: dict[str, Any] = {"thinking": thinking, "temperature": 0, "max_tokens": 12}
    known = 0
    asked = [
        "What is a hot expert? Please say it in a few words that I can understand.",
        "And what does a router do, if you had to explain that to a child of ten years?",
        "Why?",
    ]
    for turn, text in enumerate(asked):
        talk.append({"role": "user", "content": text})
        answer = engine.chat(talk, **options)
        said = list(answer)
        stats = answer.stats
        assert turn == 0 or stats.reused_tokens >= known
        known = stats.prompt_tokens
        if not thinking:  # nothing is dropped: all but the last token
            known += len(said) - 1
        talk.append({"role": "assistant", "content": "".join(t.text for t in said)})
        with engine._steps.alone():
            engine._steps.tidy()
            engine._steps.slots.drop_all()
        fresh = engine.chat(talk[:-1], **options)
        assert list(fresh) == said
        assert fresh.stats.reused_tokens == 0
