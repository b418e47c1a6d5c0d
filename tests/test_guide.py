"""Guides, logprobs and loops: what an answer is told beside its text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

import offload
from offload.guide import both
from offload.sampler import Sampler
from offload.sampling_params import SamplingParams
from offload.speech import Logprobs


@pytest.fixture(scope="module")
def engine() -> Iterator[offload.Engine]:
    with offload.load() as engine:
        yield engine


class Only:
    """Lets the ids come in turn, then all."""

    def __init__(self, ids: list[int]) -> None:
        self._left = list(ids)

    def allowed(self) -> list[int] | None:
        return self._left[:1] or None

    def push(self, token_id: int) -> None:
        del self._left[:1]


def test_a_sampler_takes_only_what_is_allowed() -> None:
    import numpy as np

    logits = np.array([5, 1, 3, 2], np.float32)
    mask = np.array([False, True, False, True])
    for allowed in (mask, [3, 1]):
        ids, probabilities = Sampler(SamplingParams()).distribution(logits, (), allowed)
        assert ids.tolist() == [1, 3]
        assert probabilities[1] / probabilities[0] == pytest.approx(math.e)
        assert Sampler(SamplingParams(temperature=0)).sample(logits, (), allowed) == 3
    logits[[1, 3]] = -np.inf
    with pytest.raises(offload.OffloadError, match="rules out all"):
        Sampler(SamplingParams()).sample(logits, (), mask)


def test_of_two_guides_the_first_that_says_something_counts() -> None:
    guide = both([lambda: Only([]), lambda: Only([7]), lambda: Only([8])])
    assert guide is not None
    assert guide().allowed() == [7]
    assert both([]) is None


def test_logprobs_are_the_models_own(engine: offload.Engine) -> None:
    ids = engine.tokenizer.encode("In the beginning")
    (token,) = engine.generate(ids, temperature=0, max_tokens=1, top_k=1, logprobs=3)
    exact = engine.logits(ids)[-1].astype(float)
    told = token.logprobs
    assert isinstance(told, Logprobs)
    assert told.own == told.top[0][1]
    assert told.top[0][0] == token.id
    assert [i for i, _ in told.top] == sorted(range(len(exact)), key=lambda i: -exact[i])[:3]
    assert sum(math.exp(p) for _, p in told.top) < 1
    assert next(engine.generate(ids, max_tokens=1)).logprobs is None
    with pytest.raises(offload.RequestError, match="logprobs"):
        engine.generate(ids, logprobs=99)


def test_a_loop_ends_an_answer_where_that_is_asked_for(engine: offload.Engine) -> None:
    line = engine.tokenizer.encode(" and again")
    prompt = line * 60
    answer = engine.generate(prompt, temperature=0, max_tokens=700, stop_loops=True)
    list(answer)
    free = engine.generate(prompt, temperature=0, max_tokens=700)
    list(free)
    if free.stats.repetition is None:
        pytest.skip("this model does not go in circles here")
    assert answer.stats.finish_reason == "loop"
    assert len(answer.sequence.generated) < len(free.sequence.generated)


def test_an_answer_becomes_a_message(engine: offload.Engine) -> None:
    question = [{"role": "user", "content": "What is a routed expert?"}]
    answer = engine.chat(question, temperature=0)
    message = answer.message()
    assert message.role == "assistant"
    assert "FFN" in message.content or "feed-forward" in message.content
    assert message.reasoning_content
    again = engine.chat([*question, message, *question], temperature=0, thinking=False)
    assert again.message().content
