"""Guides, logprobs and loops: what an answer is told beside its text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import offload
from offload.guide import all_but, with_ids
from offload.sampler import Sampler
from offload.sampling_params import SamplingParams
from offload.speech import Logprobs


@pytest.fixture(scope="module")
def engine() -> Iterator[offload.Engine]:
    with offload.load() as engine:
        yield engine


def bits(mask: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-len(mask) // 32) * 32, np.bool_)
    padded[: len(mask)] = mask
    return np.packbits(padded, bitorder="little").view(np.uint32)


def test_a_sampler_takes_only_what_is_allowed() -> None:
    logits = np.array([5, 1, 3, 2], np.float32)
    mask = np.array([False, True, False, True])
    for allowed in (bits(mask), [3, 1]):
        ids, probabilities = Sampler(SamplingParams()).distribution(logits, (), allowed)
        assert ids.tolist() == [1, 3]
        assert probabilities[1] / probabilities[0] == pytest.approx(math.e)
        assert Sampler(SamplingParams(temperature=0)).sample(logits, (), allowed) == 3
    logits[[1, 3]] = -np.inf
    with pytest.raises(offload.OffloadError, match="rules out all"):
        Sampler(SamplingParams()).sample(logits, (), bits(mask))


@pytest.mark.parametrize("share", [0.001, 0.02, 0.9, 1])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.9, "min_p": 0.01}])
def test_bits_mean_what_ids_mean_few_or_many(share: float, options: dict[str, float]) -> None:
    rng = np.random.default_rng(int(share * 1000))
    logits = rng.normal(size=20_011).astype(np.float32) * 3
    logits[rng.random(20_011) < 0.3] = -np.inf
    mask = rng.random(20_011) < share
    params = SamplingParams(**options, repetition_penalty=1.2, dry_multiplier=0.8, seed=1)
    recent = [*np.flatnonzero(mask)[:4], 7, *np.flatnonzero(mask)[:4], 7]
    ours = Sampler(params).distribution(logits, recent, bits(mask))
    theirs = Sampler(params).distribution(logits, recent, np.flatnonzero(mask).tolist())
    possible = ours[1] > 0
    np.testing.assert_array_equal(ours[0][possible], theirs[0])
    np.testing.assert_allclose(ours[1][possible], theirs[1], rtol=1e-5)


def test_all_but_some_and_some_more() -> None:
    words = all_but([0, 33], 40)
    mask = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
    assert np.flatnonzero(~mask).tolist() == [0, 33, *range(40, 64)]
    assert with_ids(words, [33, 0]).tolist() == all_but([], 40).tolist()


@pytest.mark.parametrize("allowed", [[3], bits(np.arange(50) == 3)])
def test_what_is_forced_survives_every_penalty(allowed: list[int] | np.ndarray) -> None:
    params = SamplingParams(
        repetition_penalty=10,
        presence_penalty=2,
        frequency_penalty=2,
        dry_multiplier=100,
        dry_allowed_length=1,
        min_p=1,
        top_k=1,
        top_p=1e-9,
    )
    logits = np.full(50, 9, np.float32)
    logits[3] = -1e38
    assert Sampler(params).sample(logits, [3] * 99, allowed) == 3


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


def test_a_loop_ends_an_answer_where_that_is_asked_for_and_dry_avoids_it(
    engine: offload.Engine,
) -> None:
    prompt = engine.tokenizer.encode(" of the children of Israel,") * 20
    said: dict[str, offload.RunStats] = {}
    for name, options in (
        ("free", {}),
        ("ended", {"stop_loops": True}),
        ("dry", {"stop_loops": True, "dry_multiplier": 0.8, "dry_allowed_length": 1}),
    ):
        answer = engine.generate(prompt, temperature=0, max_tokens=300, **options)
        list(answer)
        said[name] = answer.stats
    assert said["free"].repetition is not None
    assert said["ended"].finish_reason == "loop"
    assert said["ended"].decode_tokens < said["free"].decode_tokens
    assert said["dry"].repetition is None


def test_an_answer_becomes_a_message(engine: offload.Engine) -> None:
    question = [{"role": "user", "content": "What is a routed expert?"}]
    answer = engine.chat(question, temperature=0)
    message = answer.message()
    assert message.role == "assistant"
    assert "FFN" in message.content or "feed-forward" in message.content
    assert message.reasoning_content
    again = engine.chat([*question, message, *question], temperature=0, thinking=False)
    assert again.message().content
