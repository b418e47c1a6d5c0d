"""Bodies of OpenAI's Responses API become chat bodies."""

from __future__ import annotations

from typing import Any

import pytest

from offload.errors import RequestError
from offload.server.responses_body import chat_body

HI = {"role": "user", "content": "Hi"}
ADD = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}
ADD_IN_CHAT = {"type": "function", "function": {k: v for k, v in ADD.items() if k != "type"}}


def said(role: str, text: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def call(number: int, name: str = "add", arguments: str = "{}") -> dict[str, Any]:
    head = {"type": "function_call", "call_id": f"call_{number}"}
    return {**head, "name": name, "arguments": arguments}


def thought(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}


def messages(given: Any, **more: Any) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = chat_body({"input": given, **more})["messages"]
    return result


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def test_input_may_be_a_text() -> None:
    assert messages("Hi") == [HI]
    assert messages("Hi", instructions="Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_items_may_have_no_type() -> None:
    assert messages([HI, {"role": "developer", "content": "Hurry."}]) == [
        HI,
        {"role": "developer", "content": "Hurry."},
    ]


def test_reasoning_text_and_calls_that_follow_each_other_are_one_turn() -> None:
    items = [
        said("user", "1+2?"),
        thought("I add."),
        said("assistant", "Wait.", "output_text"),
        call(1, arguments='{"a": 1}'),
        call(2),
        {"type": "function_call_output", "call_id": "call_1", "output": "3"},
        {"type": "function_call_output", "call_id": "call_2", "output": parts("4")},
        thought("Done."),
        said("assistant", "3 and 4.", "output_text"),
        said("assistant", "Or not.", "output_text"),
    ]

    def in_chat(number: int, arguments: str) -> dict[str, Any]:
        function = {"name": "add", "arguments": arguments}
        return {"id": f"call_{number}", "type": "function", "function": function}

    assert messages(items) == [
        {"role": "user", "content": parts("1+2?")},
        {
            "role": "assistant",
            "content": parts("Wait."),
            "reasoning_content": "I add.",
            "tool_calls": [in_chat(1, '{"a": 1}'), in_chat(2, "{}")],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "tool", "tool_call_id": "call_2", "content": parts("4")},
        {"role": "assistant", "content": parts("3 and 4."), "reasoning_content": "Done."},
        {"role": "assistant", "content": parts("Or not.")},
    ]


def test_custom_calls_of_a_history_are_calls() -> None:
    item = {"type": "custom_tool_call", "call_id": "call_1", "name": "patch", "input": "*** Begin"}
    (turn,) = messages([item])
    assert turn["tool_calls"][0]["function"] == {
        "name": "patch",
        "arguments": {"input": "*** Begin"},
    }


def test_reasoning_that_comes_back_as_its_summary_is_reasoning() -> None:
    summary = [{"type": "summary_text", "text": "I add."}]
    for content, expected in ((None, "I add."), (thought("In full.")["content"], "In full.")):
        (turn,) = messages([{"type": "reasoning", "summary": summary, "content": content}])
        assert turn["reasoning_content"] == expected


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "AAAA"},
        {"type": "reasoning", "summary": [], "content": None},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "local_shell_call_output", "id": "x", "output": "x"},
        {"type": "mcp_approval_request", "id": "x"},
        {"type": "tool_search_output", "tools": []},
        {"type": "additional_tools", "tools": []},
    ],
    ids=lambda item: str(item["type"]),
)
def test_items_of_other_servers_are_left_out(item: dict[str, Any]) -> None:
    assert messages([HI, item]) == [HI]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "input_image", "image_url": "data:,"}, "data:,"),
        ({"type": "input_image", "file_id": "file_1"}, ""),
        ({"type": "refusal", "refusal": "No."}, "No."),
        (
            {"type": "input_file", "file_data": "AA"},
            "[input_file: this server reads only plain text]",
        ),
    ],
)
def test_parts_that_are_not_text(part: dict[str, Any], expected: str) -> None:
    ((got,),) = (turn["content"] for turn in messages([{"role": "user", "content": [part]}]))
    assert expected == (got["text"] if got["type"] == "text" else got["image_url"]["url"])


@pytest.mark.parametrize("kind", ["namespace", "custom", "web_search", "image_generation", "mcp"])
def test_tools_of_other_servers_are_told_by_their_type(kind: str) -> None:
    chat = chat_body({"input": "Hi", "tools": [{"type": kind, "name": "x"}, ADD]})
    assert chat["tools"] == [{"type": kind}, ADD_IN_CHAT]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
        ({"type": "web_search"}, None),
        ({"type": "custom", "name": "patch"}, None),
        ({"type": "allowed_tools", "mode": "required", "tools": [ADD]}, "required"),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    sub = {**ADD, "name": "sub"}
    chat = chat_body({"input": "Hi", "tools": [ADD, sub], "tool_choice": choice})
    assert chat.get("tool_choice") == expected
    is_limited = isinstance(choice, dict) and choice["type"] == "allowed_tools"
    assert len(chat["tools"]) == (1 if is_limited else 2)


def test_choice_of_any_tool_is_left_out_where_all_were() -> None:
    chat = chat_body({"input": "Hi", "tools": [{"type": "web_search"}], "tool_choice": "required"})
    assert "tool_choice" not in chat


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (None, None),
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
        ),
    ],
)
def test_format(form: Any, expected: Any) -> None:
    chat = chat_body({"input": "Hi", "text": {"format": form, "verbosity": "low"}})
    assert chat.get("response_format") == expected


def test_other_fields() -> None:
    ignored = {"store": True, "include": ["reasoning.encrypted_content"], "truncation": "auto"}
    reasoning = {"effort": "none", "summary": "auto"}
    body = {
        "input": "Hi",
        "max_output_tokens": 1,
        "reasoning": reasoning,
        "temperature": 0,
        **ignored,
    }
    chat = chat_body(body)
    assert chat["max_completion_tokens"] == 1
    assert chat["reasoning"]["effort"] == "none"
    assert chat["temperature"] == 0
    nothing: dict[str, Any] = {"previous_response_id": None, "background": False, "text": None}
    assert chat_body({"input": "Hi", "tools": None, **nothing})["tools"] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": [HI, {"type": "item_reference", "id": "msg_1"}]}, '"item_reference"'),
        ({"input": [{"type": "compaction", "encrypted_content": "AA"}]}, '"compaction"'),
        ({"input": [HI, {"content": "Hi"}]}, "item 2"),
        ({"input": [7]}, "item 1"),
        ({"input": 7}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "user", "content": 7}]}, "content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}, "text"),
        ({"instructions": 7}, "instructions"),
        ({"tools": 7}, "tools"),
        ({"tools": [7]}, "tool"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"text": "x"}, "text"),
        ({"text": {"format": "json"}}, "format"),
    ],
)
def test_what_cannot_be_served_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError) as error:
        chat_body({"input": "Hi", **change})
    assert word in str(error.value)
