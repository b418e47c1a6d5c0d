"""The embedded model: it must answer, whatever else is right."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import offload
from offload.engine import Engine

QUESTION = [{"role": "user", "content": "What is a hot expert?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with offload.load() as made:
        yield made


def answer(engine: Engine, thinking: bool, **options: object) -> dict[str, str]:
    said = {"reasoning": "", "content": ""}
    for token in engine.chat(QUESTION, thinking=thinking, **options):
        said[token.channel] += token.text
    return said


def test_shape_is_that_of_k25(engine: Engine) -> None:
    config = engine.config
    assert config.n_routed_experts >= 64
    assert (config.num_experts_per_tok, config.n_shared_experts, config.first_k_dense) == (8, 1, 1)
    assert config.scoring_func == "sigmoid"
    assert engine.format.name == "kimi-k2.5"


@pytest.mark.parametrize("thinking", [False, True], ids=["instant", "thinking"])
def test_question_is_answered(engine: Engine, thinking: bool) -> None:
    said = answer(engine, thinking, temperature=0, max_tokens=300)
    content = said["content"].lower()
    assert "router" in content
    assert "often" in content
    assert "memory" in content
    assert bool(said["reasoning"]) is thinking
    assert engine.stats.finish_reason == "stop"
    # sampled as people use it, with the model's own defaults
    assert "expert" in answer(engine, thinking, seed=1, max_tokens=300)["content"].lower()


def test_text_does_not_depend_on_threads_or_cache(engine: Engine) -> None:
    said = answer(engine, False, temperature=0)
    with offload.load(threads=1, kv_type="f16") as other:
        assert answer(other, False, temperature=0) == said
    assert answer(engine, False, temperature=0) == said  # its prompt is in the cache by now
    assert engine.stats.reused_tokens == engine.stats.prompt_tokens - 1


def test_question_is_answered_from_a_small_cache(engine: Engine) -> None:
    with offload.load(threads=1, kv_type="q8_0") as other:
        assert other.plan.kv.n_bytes < 0.6 * engine.plan.kv.n_bytes
        said = answer(other, False, temperature=0, max_tokens=300)["content"].lower()
    assert "router" in said
    assert "often" in said


def test_text_is_continued(engine: Engine) -> None:
    text = "".join(t.text for t in engine.generate("And God said", temperature=0, max_tokens=30))
    assert text.startswith(" ") or text[0] in ",.:;"
    assert text.count(" ") >= 15
    assert text.isascii()


@pytest.mark.parametrize("thinking", [False, True])
def test_a_tool_is_called_and_its_result_told(engine: Engine, thinking: bool) -> None:
    options = {"thinking": thinking, "tools": [WEATHER], "temperature": 0, "max_tokens": 100}
    messages: list[object] = [{"role": "user", "content": "What is the weather in Paris?"}]
    said = engine.chat(messages, **options).message()
    (call,) = said.tool_calls
    assert (call.id, call.name) == ("functions.get_weather:0", "get_weather")
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert ("Paris" in (said.reasoning_content or "")) == thinking
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
    told = engine.chat([*messages, said, result], **options).message()
    assert told.content == "It is 18 degrees and sunny in Paris."
    assert not told.tool_calls


def test_a_question_that_needs_no_tool_is_answered(engine: Engine) -> None:
    said = engine.chat(QUESTION, thinking=False, tools=[WEATHER], temperature=0).message()
    assert not said.tool_calls
    assert said.content.startswith("A hot expert is a routed expert that the router picks often.")
