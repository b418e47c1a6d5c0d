"""Replies that are held to a form: JSON, calls of tools, a budget of thinking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import offload
from offload.guide import Guide

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 8},
                    "days": {"enum": [1, 2]},
                },
                "required": ["city", "days"],
            },
        },
    }
    for name in ("get_weather", "get_weather_map", "größe-2")
]
ASKED = [{"role": "user", "content": "How is the weather in Bonn?"}]
SECTION, CALL = "<|tool_calls_section_begin|>", "<|tool_call_begin|>"
ARGUMENTS, CALL_END = "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SECTION_END, END = "<|tool_calls_section_end|>", "<|im_end|>"


@pytest.fixture(scope="module")
def engine() -> Iterator[offload.Engine]:
    with offload.load() as engine:
        yield engine


def written(engine: offload.Engine, ids: list[int]) -> str:
    """The text of ids with special tokens in it."""
    names = {i: text for text, i in engine.tokenizer.specials.items()}
    texts: list[bytes] = [
        names[i].encode() if i in names else engine.tokenizer.token_bytes(i) for i in ids
    ]
    return b"".join(texts).decode("utf-8", "replace")


def reply(engine: offload.Engine, **wishes: Any) -> str:
    """All that the model writes, special tokens too, up to the end."""
    wishes.setdefault("max_tokens", 400)
    answer = engine.chat(ASKED, **wishes)
    list(answer)
    assert answer.stats.finish_reason == "stop", written(engine, answer.sequence.generated)
    return written(engine, answer.sequence.generated)


def check_calls(text: str, names: set[str]) -> int:
    """How many well-formed calls there are in a section, and nothing after it."""
    _, begins, rest = text.partition(SECTION)
    assert begins
    inner, ends, after = rest.partition(SECTION_END)
    assert ends
    assert after in (END, "[EOS]", "[EOT]")
    first, *calls = inner.split(CALL)
    assert first == ""
    for number, call in enumerate(calls):
        head, _, arguments = call.removesuffix(CALL_END).partition(ARGUMENTS)
        assert head.removeprefix("functions.").removesuffix(f":{number}") in names
        given = json.loads(arguments)
        assert set(given) == {"city", "days"}
        assert len(given["city"]) <= 8
        assert given["days"] in (1, 2)
    return len(calls)


@pytest.mark.parametrize("seed", range(6))
def test_a_json_answer_follows_its_schema_at_any_temperature(
    engine: offload.Engine, seed: int
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "count": {"type": "integer", "minimum": 1, "maximum": 99},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["name", "count"],
    }
    text = reply(
        engine,
        thinking=seed % 2 == 0,
        thinking_budget=8,
        temperature=[0, 1, 2, 5][seed % 4],
        dry_multiplier=0.8 * (seed % 3),
        dry_allowed_length=1,
        repetition_penalty=1 + seed % 2,
        seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    content = text.rpartition("</think>")[2].removesuffix(END)
    given = json.loads(content.removesuffix("[EOS]").removesuffix("[EOT]"))
    assert list(given) in (["name", "count"], ["name", "count", "tags"])
    assert len(given["name"]) <= 12
    assert 1 <= given["count"] <= 99
    assert set(given.get("tags", [])) <= {"a", "b"}


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_forced_call_is_well_formed(
    engine: offload.Engine, thinking: bool, temperature: float
) -> None:
    options = {"thinking": thinking, "temperature": temperature, "seed": 1, "tools": TOOLS}
    names = {tool["function"]["name"] for tool in TOOLS}
    one = reply(
        engine, tool_choice="required", parallel_tool_calls=False, thinking_budget=5, **options
    )
    assert check_calls(one, names) == 1
    assert ("</think>" in one) == thinking
    named = reply(engine, tool_choice="größe-2", thinking_budget=5, **options)
    assert check_calls(named, {"größe-2"}) == 1


def guide_of(engine: offload.Engine, **wishes: Any) -> Guide:
    from offload.reply_rules import ReplyRules
    from offload.wishes import ChatWishes

    prompt = engine.format.build_prompt(
        ASKED, thinking=wishes.get("thinking"), tools=wishes.get("tools")
    )
    make, _ = ReplyRules(engine.tokenizer, engine.format).guide(prompt, ChatWishes(**wishes))
    assert make is not None
    return make()


def say(engine: offload.Engine, guide: Guide, text: str) -> None:
    """Tell the guide a text with special tokens in it, every token of which it must allow."""
    for token_id in engine.tokenizer.encode(text):
        allowed = guide.allowed()
        if allowed is not None:
            assert token_id in ids_of(allowed), (text, engine.tokenizer.decode([token_id]))
        guide.push(token_id)


def ids_of(allowed: Any) -> set[int]:
    import numpy as np

    if isinstance(allowed, np.ndarray):
        return set(np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little")))
    return set(allowed)


def texts_of(engine: offload.Engine, guide: Guide) -> set[str]:
    return {written(engine, [int(i)]) for i in ids_of(guide.allowed())}


def test_a_call_that_the_model_begins_by_itself_is_held_to_its_form(
    engine: offload.Engine,
) -> None:
    for before in ("", SECTION):
        guide = guide_of(engine, tools=TOOLS)
        say(engine, guide, "I could think.</think>Text first." + before)
        assert guide.allowed() is None or texts_of(engine, guide) == {CALL}
        say(engine, guide, CALL + "functions.get_weather_map:0" + ARGUMENTS + '{"any": [1]}')
        assert texts_of(engine, guide) == {CALL_END}
        say(engine, guide, CALL_END)
        ends = {"[EOS]", "[EOT]", END}
        assert texts_of(engine, guide) == (
            {CALL, SECTION_END} if before else {CALL, SECTION_END} | ends
        )
        say(engine, guide, CALL + "functions.get_weather:1" + ARGUMENTS + "{}" + CALL_END)
        say(engine, guide, SECTION_END)
        assert texts_of(engine, guide) == ends


def test_a_call_ends_reasoning(engine: offload.Engine) -> None:
    guide = guide_of(engine, tools=TOOLS, tool_choice="required")
    say(engine, guide, "Let me see" + SECTION)
    assert texts_of(engine, guide) == {CALL}


def test_numbers_of_calls_go_on_from_the_conversation(engine: offload.Engine) -> None:
    call = {"id": "x", "function": {"name": "get_weather", "arguments": "{}"}}
    talk = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call, call | {"id": "y"}]},
        {"role": "tool", "tool_call_id": "x", "content": "dry"},
        {"role": "tool", "tool_call_id": "y", "content": "wet"},
    ]
    answer = engine.chat(
        talk, tools=TOOLS, tool_choice="get_weather", thinking=False, max_tokens=200
    )
    list(answer)
    assert f"{CALL}functions.get_weather:2{ARGUMENTS}" in written(engine, answer.sequence.generated)


def test_no_call_comes_where_none_is_wanted(engine: offload.Engine) -> None:
    guide = guide_of(engine, tools=TOOLS, tool_choice="none")
    allowed = ids_of(guide.allowed())
    assert len(allowed) == engine.tokenizer.n_vocab - 5
    assert engine.tokenizer.special_id(CALL) not in allowed


def test_json_or_a_call(engine: offload.Engine) -> None:
    wishes: dict[str, Any] = {"tools": TOOLS, "response_format": {"type": "json_object"}}
    guide = guide_of(engine, **wishes)
    assert not {END, "[EOS]"} & texts_of(engine, guide)  # reasoning alone is no answer
    say(engine, guide, "Hm.</think>")
    assert {SECTION, CALL, "{"} <= texts_of(engine, guide)
    say(engine, guide, '{"a": 1}')
    assert texts_of(engine, guide) == {"[EOS]", "[EOT]", END}
    guide = guide_of(engine, thinking=False, **wishes)
    say(engine, guide, SECTION + CALL)


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_ends_reasoning(engine: offload.Engine, budget: int) -> None:
    answer = engine.chat(ASKED, thinking_budget=budget, max_tokens=60, seed=0)
    list(answer)
    ids = answer.sequence.generated
    assert ids.index(engine.tokenizer.specials["</think>"]) == budget
    free = engine.chat(ASKED, thinking=False, thinking_budget=budget, max_tokens=5, seed=0)
    list(free)
    assert engine.tokenizer.specials["</think>"] not in free.sequence.generated


def test_a_budget_waits_for_the_end_of_a_character(engine: offload.Engine) -> None:
    guide = guide_of(engine, thinking_budget=1)
    single = {engine.tokenizer.token_bytes(i): i for i in range(256)}
    for byte in "世".encode():
        assert guide.allowed() is None
        guide.push(single[bytes([byte])])
    assert texts_of(engine, guide) == {"</think>"}


def test_what_is_loosened_is_said(engine: offload.Engine) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}
    answer = engine.chat(
        ASKED,
        thinking=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": odd}},
    )
    assert any("may be a" in note and "response_format" in note for note in answer.notes)
    tool = {"name": "f", "strict": True, "parameters": odd}
    answer = engine.chat(ASKED, tools=[{"type": "function", "function": tool}])
    assert any("may be a" in note and "tool f" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"response_format": {"type": "yaml"}}, "'yaml'"),
        ({"response_format": {"type": "json_schema"}}, "without a schema"),
        ({"response_format": "json"}, "mapping"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_wishes_that_cannot_be_read_are_refused(
    engine: offload.Engine, wishes: dict[str, Any], message: str
) -> None:
    with pytest.raises(offload.RequestError, match=message):
        engine.chat(ASKED, **wishes)


def test_a_started_answer_cannot_become_json(engine: offload.Engine) -> None:
    with pytest.raises(offload.RequestError, match="from its beginning"):
        engine.chat(
            [*ASKED, {"role": "assistant", "content": "Well"}],
            response_format={"type": "json_object"},
        )


def test_without_the_library_only_what_needs_it_is_refused(
    engine: offload.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offload import grammar

    monkeypatch.setattr(grammar.importlib.util, "find_spec", lambda name: None)
    strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
    assert engine.chat(ASKED, tools=strict).notes
    for wishes in ({"response_format": {"type": "json_object"}}, {"tool_choice": "required"}):
        with pytest.raises(offload.RequestError, match=r"pip install 'kimi-offload\[serve\]'"):
            engine.chat(ASKED, tools=TOOLS, **wishes)


@pytest.mark.parametrize("seed", range(3))
def test_a_held_answer_is_the_same_in_company_and_after_interruptions(
    engine: offload.Engine, seed: int
) -> None:
    options: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "thinking_budget": 6,
        "max_tokens": 80,
        "seed": seed,
    }
    alone = engine.chat(ASKED, **options)
    message = alone.message()
    (call,) = message.tool_calls
    assert set(json.loads(call.arguments)) == {"city", "days"}
    others = [engine.chat(ASKED, thinking=False, seed=i, max_tokens=80) for i in range(2)]
    held = engine.chat(ASKED, **options)
    for answer in (*others, held):
        answer.begin()
    sequence, texts = held.sequence, []
    while (tokens := held.ready()) is None or tokens:
        if tokens is None:
            engine.step()
        elif len(texts) % 3 == seed:
            sequence.mend(lambda: None)  # as after an interruption
            texts.append(tokens)
        else:
            texts.append(tokens)
    assert sequence.generated == alone.sequence.generated
    assert held.stats.finish_reason == "stop"


BEYOND = {"type": "string", "pattern": "^(.*[aeiou].{200})+c$"}  # more than the library can follow


def test_an_answer_that_gets_beyond_its_schema_stays_json_and_that_is_said(
    engine: offload.Engine,
) -> None:
    schema = {"type": "object", "properties": {"s": BEYOND}, "required": ["s"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = engine.chat(ASKED, thinking=False, response_format=form, max_tokens=300, seed=1)
    assert not answer.notes
    text = answer.message().content
    assert answer.stats.finish_reason in ("stop", "length")
    if answer.stats.finish_reason == "stop":
        assert json.loads(text)
    (note,) = answer.notes
    assert "held to JSON, no longer to its schema: lexer error" in note
    tool = {"name": "f", "parameters": schema}
    guide = guide_of(engine, tools=[{"function": tool}], tool_choice="f", thinking=False)
    say(engine, guide, f'{SECTION}{CALL}functions.f:0{ARGUMENTS}{{"s": "')
    for text in ("eat a pear " * 60, '", "t": 1}', CALL_END + SECTION_END):
        say(engine, guide, text)
    assert "no longer to its schema" in guide.note


@pytest.mark.parametrize("fault", [offload.OffloadError("no more"), IndexError("ours")])
@pytest.mark.parametrize("where", ["push", "allowed"])
def test_an_error_of_a_guide_ends_no_answer(
    engine: offload.Engine, monkeypatch: pytest.MonkeyPatch, fault: Exception, where: str
) -> None:
    from offload.reply_guide import ReplyGuide

    def fail(self: Any, *given: Any) -> None:
        raise fault

    free = engine.chat(ASKED, thinking=False, temperature=0)
    expected = free.message()
    held = engine.chat(
        ASKED, thinking=False, response_format={"type": "json_object"}, max_tokens=20
    )
    begun = next(held).text
    monkeypatch.setattr(ReplyGuide, where, fail)
    assert begun + held.message().content
    assert held.stats.finish_reason in ("stop", "length")
    assert held.notes == (f"the rest of the answer is free, no longer held to its form: {fault}",)
    assert engine.chat(ASKED, thinking=False, temperature=0).message() == expected
