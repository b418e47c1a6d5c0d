"""A conversation with tools as Python code leads it: prompt, answer, result, next prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from replies import ARGUMENTS, CALL, SECTION, call, kimi, section
from test_chat import HEAD, LOOP, assistant, format_of, user
from test_kimi_tools import ADD, ADD_TEXT

from offload.answer import Answer
from offload.errors import RequestError
from offload.messages import Message
from offload.requests import Requests
from offload.speech import Speech, Token
from offload.wishes import ChatWishes

DECLARED = f"<|im_system|>tool_declare<|im_middle|>{ADD_TEXT}<|im_end|>"
ASKED = "<|im_user|>user<|im_middle|>Sum 1 and 2<|im_end|><|im_assistant|>assistant<|im_middle|>"


class Recorded(Answer):
    """An answer that says what it is given."""

    def __init__(self, tokens: list[Token]) -> None:
        self._said = iter(tokens)

    def __next__(self) -> Token:
        return next(self._said)

    def close(self) -> None: ...


def answer(
    messages: list[Any], written: str, sampling: dict[str, Any] | None = None, **wishes: Any
) -> tuple[Iterator[Token], str]:
    """Tokens of an answer that the model writes so, and the end of it."""
    requests = Requests(kimi(), format_of("Kimi K2.5"), kimi().n_vocab, 4096)
    request = requests.reply(messages, ChatWishes(**wishes), sampling or {}, None)
    speech = Speech(request, kimi())
    tokens = []
    for token_id in kimi().encode(written):
        tokens += speech.say(token_id, is_last=False)
        if speech.finish is not None:
            break
    return iter(tokens), speech.finish or "none"


def test_a_loop_in_python_renders_the_worked_example() -> None:
    messages: list[Any] = [user("Sum 1 and 2")]
    written = "use add</think>" + section(call("functions.add:0", '{"a": 1, "b": 2}'))
    tokens, finish = answer(messages, f"{written}<|im_end|>", tools=[ADD])
    assert finish == "stop"
    message = Recorded(list(tokens)).message()
    assert message.reasoning_content == "use add"
    (made,) = message.tool_calls
    assert (made.name, made.arguments, made.id) == ("add", '{"a": 1, "b": 2}', "functions.add:0")
    chat = format_of("Kimi K2.5")
    first = chat.build_prompt(messages, tools=[ADD])
    messages += [message, {"role": "tool", "tool_call_id": made.id, "content": "3"}]
    second = chat.build_prompt(messages, tools=[ADD])
    assert second.text == (
        f"{DECLARED}{HEAD}{ASKED}<think>{written}<|im_end|><|im_system|>tool<|im_middle|>"
        "## Return of functions.add:0\n3<|im_end|><|im_assistant|>assistant<|im_middle|><think>"
    )
    assert second.ids[: len(first.ids)] == first.ids
    assert second.calls == 1


def test_tokens_of_a_call_carry_it() -> None:
    tokens, _ = answer([user("x")], "a</think>b" + section(call("add:0", '{"a": 1}')), tools=[ADD])
    said = list(tokens)
    assert {token.channel for token in said if token.text} == {"reasoning", "content", "tool_call"}
    assert "".join(t.text for t in said if t.call is not None) == '{"a": 1}'
    assert {t.call.name for t in said if t.call is not None} == {"add"}


def test_the_end_token_closes_a_call() -> None:
    begun = f"a</think>{SECTION}{CALL}add:0{ARGUMENTS}"
    for end, arguments in (("<|im_end|>", "{}"), ("", "")):
        tokens, _ = answer([user("x")], begun + end, tools=[ADD])
        assert "".join(token.text for token in tokens if token.call is not None) == arguments


def test_choices_of_tools() -> None:
    written = "a</think>b" + section(call("add:0"))
    tokens, _ = answer([user("x")], written, tools=[ADD], tool_choice="none")
    assert {token.channel for token in tokens if token.text} == {"reasoning", "content"}
    for choice, tools in (("required", None), ("sub", [ADD])):
        with pytest.raises(RequestError, match="tool_choice"):
            answer([user("x")], "", tools=tools, tool_choice=choice)


def test_content_held_for_a_stop_string_comes_before_the_call() -> None:
    written = "</think>Fine ST" + section(call("add:0", '{"a": "STOP"}'))
    tokens, _ = answer([user("x")], written, {"stop": ["STOP"]}, tools=[ADD])
    said = [token for token in tokens if token.text or token.call]
    channels = [token.channel for token in said]
    assert channels == sorted(channels)  # content, then the call
    assert "".join(token.text for token in said) == 'Fine ST{"a": "STOP"}'
    tokens, finish = answer(
        [user("x")], "</think>Fine STOP" + section(call("add:0")), {"stop": ["STOP"]}, tools=[ADD]
    )
    assert ("".join(token.text for token in tokens), finish) == ("Fine ", "stop")


@pytest.mark.parametrize("name", ["Kimi K2.5", "Kimi K2.7 Code", "Kimi-K2-Instruct"])
def test_a_turn_more_leaves_the_text_before_it_as_it_was(name: str) -> None:
    chat = format_of(name)
    keep = name == "Kimi K2.5" or None
    turns = [
        *LOOP, assistant("3", reasoning_content="done"), user("And 4?"),
        assistant("", reasoning_content="again", tool_calls=[{**LOOP[1]["tool_calls"][0]}]),
        {"role": "tool", "content": "7", "tool_call_id": "call_x"}, user("So?"),
    ]  # fmt: skip
    texts = [
        chat.build_prompt(turns[:end], tools=[ADD], preserve_thinking=keep).text
        for end in (1, 3, 5, 7, 8)
    ]
    opening = "<|im_assistant|>assistant<|im_middle|>"
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before.rpartition(opening)[0])
    assert texts[-1].count("<think>again</think>") == (name != "Kimi-K2-Instruct")
    assert "## Return of functions.add:0\n3" in texts[-1]
    assert "## Return of functions.add:1\n7" in texts[-1]


# --- histories as agents send them


def text_of(*messages: Any) -> str:
    return format_of("Kimi K2.5").build_prompt([user("Hi"), *messages, user("So?")]).text


def result(content: Any, call_id: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id, **more}


def calls(*ids: str | None, name: str = "add") -> dict[str, Any]:
    made = [{"id": one, "function": {"name": name, "arguments": "{}"}} for one in ids]
    return assistant(None, tool_calls=made)


def returns(text: str) -> list[str]:
    """Number and content of each result, in order."""
    parts = text.split("## Return of functions.")[1:]
    return [part.partition("<|im_end|>")[0].replace("\n", " ") for part in parts]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([result("x")], ["tool:0 x"]),
        ([result("x", "gone"), result("y", "gone")], ["tool:0 x", "tool:0 y"]),
        ([result("x", "functions.add:7", name="n")], ["add:0 x"]),
        ([result("x", "gone", name="sub"), calls("a"), result("y", "a")], ["sub:0 x", "add:1 y"]),
        ([calls("a", "b"), result("B", "b"), result("A", "a")], ["add:1 B", "add:0 A"]),
        ([calls("a", "b"), result("A"), result("B", "")], ["add:0 A", "add:1 B"]),
        ([calls("a"), result("1", "a"), result("2", "a")], ["add:0 1", "add:0 2"]),
        (
            [calls("a"), result("1", "a"), calls("a"), result("2", "a")],
            ["add:0 1", "add:1 2"],
        ),
        ([calls("a", "a"), result("1", "a"), result("2", "a")], ["add:0 1", "add:1 2"]),
        ([calls("functions.add:5"), result("x", "functions_add_5")], ["add:0 x"]),
        ([calls(None, None), result("x", "functions.add:1")], ["add:1 x"]),
        (
            [calls("toolu_1"), calls("toolu_2", name="看-b"), result("x", "toolu_2")],
            ["看-b:1 x"],
        ),
    ],
)
def test_results_find_their_calls(messages: list[Any], expected: list[str]) -> None:
    assert returns(text_of(*messages)) == expected


def test_a_result_without_an_id_goes_to_the_call_of_its_name() -> None:
    both = [
        {"id": one, "function": {"name": name, "arguments": "{}"}}
        for one, name in (("a", "add"), ("b", "sub"))
    ]
    text = text_of(assistant(None, tool_calls=both), result("x", name="sub"), result("y"))
    assert returns(text) == ["sub:1 x", "add:0 y"]


def test_many_calls_take_linear_time() -> None:
    messages: list[Any] = []
    for number in range(3000):
        messages += [calls(f"call_{number}"), result("x", f"call_{number}")]
    assert returns(text_of(*messages))[-1] == "add:2999 x"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"a":1}', '{"a":1}'),
        ('"{\\"a\\": 1}"', '{"a": 1}'),
        ('"text"', '"text"'),
        ('{"a": "', '{"a": "'),
        ({"a": "é"}, '{"a": "é"}'),
        ("", "{}"),
        (None, "{}"),
    ],
)
def test_arguments_of_the_history(arguments: Any, written: str) -> None:
    made = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    text = text_of(assistant(None, tool_calls=[made]))
    assert f"functions.f:0<|tool_call_argument_begin|>{written}<|tool_call_end|>" in text


IMAGE = {"type": "image_url", "image_url": {"url": "data:..."}}
NOTE = "[image: this version cannot see images]"


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ([IMAGE], NOTE),
        ([{"type": "text", "text": "What is this?"}, IMAGE], f"What is this?\n{NOTE}"),
        ([IMAGE, {"type": "input_text", "text": "So?"}, "x"], f"{NOTE}\nSo?x"),
        ([{"type": "input_audio"}], "[input_audio: this version reads only text]"),
        ([{"type": "text", "text": None, "cache_control": {}}], ""),
        ([{"type": "refusal", "refusal": "No."}], "No."),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_parts_of_contents(content: Any, written: str, role: str) -> None:
    text = text_of({"role": role, "content": content, "audio": {"x": 1}})
    assert f"{written}<|im_end|>" in text


@pytest.mark.parametrize(
    "given",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_content": None, "reasoning": "hm"},
        {"reasoning_content": "", "reasoning": "", "reasoning_details": [{"text": "hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"summary": "m"}, 3]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "reasoning": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "redacted_thinking"}]},
        {"content": [{"type": "reasoning", "text": "hm"}], "reasoning_details": []},
    ],
)
def test_reasoning_comes_under_several_names(given: dict[str, Any]) -> None:
    made = {**calls("a"), **given}
    assert f"<think>hm</think>{SECTION}" in text_of(made, result("x", "a"))


def test_late_and_several_system_messages_keep_their_place() -> None:
    text = text_of({"role": "developer", "content": "D"}, {"role": "system", "content": "S"})
    assert text.startswith(HEAD)
    assert "Hi<|im_end|><|im_system|>system<|im_middle|>D<|im_end|><|im_system|>system" in text


def test_the_message_of_an_answer_is_read_back() -> None:
    message = Message(role="assistant", content="x")
    assert "<think></think>x<|im_end|>" in text_of(message)
    assert SECTION + CALL not in text_of(message)
