"""Bodies of Anthropic's Messages API become chat bodies."""

from __future__ import annotations

from typing import Any

import pytest

from offload.errors import RequestError
from offload.server.anthropic_body import chat_body
from offload.server.billing_header import without_billing_headers

HEADER = "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch=a1b2c;"
HI = {"role": "user", "content": "Hi"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def messages(*given: dict[str, Any], system: Any = None) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = chat_body({"messages": list(given), "system": system})[
        "messages"
    ]
    return without_billing_headers(result)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("Be brief.", "Be brief."),
        ([text("Be brief."), text("Be kind.")], "Be brief.\nBe kind."),
        ([{**text("Be brief."), "cache_control": {"type": "ephemeral"}}], "Be brief."),
        (HEADER, None),
        (f"{HEADER}\nBe brief.\n", "Be brief.\n"),
        ([text(HEADER), text("Be brief.")], "Be brief."),
        (f" {HEADER}\n{HEADER}\nBe brief.", "Be brief."),
        ([text(f"About {HEADER}")], f"About {HEADER}"),
    ],
)
def test_system(system: Any, expected: str | None) -> None:
    turns = [] if expected is None else [{"role": "system", "content": expected}]
    assert messages(HI, system=system) == [*turns, HI]


@pytest.mark.parametrize("first", ["system", "developer"])
def test_billing_header_is_dropped_from_openai_messages(first: str) -> None:
    def cleaned(content: Any) -> list[Any]:
        return without_billing_headers([{"role": first, "content": content}, HI])

    assert cleaned(HEADER) == [HI]
    assert cleaned([text(HEADER)]) == [HI]
    assert cleaned(f"{HEADER}\r\nHello") == [{"role": first, "content": "Hello"}, HI]
    assert cleaned([text(HEADER), text("Hello")]) == [
        {"role": first, "content": [text("Hello")]},
        HI,
    ]
    for odd in (None, "", [], 7, [7], [{"type": "image_url"}]):
        assert cleaned(odd) == [{"role": first, "content": odd}, HI]
    assert without_billing_headers(["odd", {"role": "user", "content": HEADER}]) == [
        "odd",
        {"role": "user", "content": HEADER},
    ]


def test_results_of_tools_are_turns_before_the_text_of_their_message() -> None:
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    asked = {
        "role": "user",
        "content": [
            text("And now?"),
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_2",
                "content": [text("see"), {"type": "image", "source": image}],
            },
            {"type": "tool_result", "tool_use_id": "toolu_3", "content": "no", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_4"},
        ],
    }
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert messages(asked) == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": [text("3")]},
        {"role": "tool", "tool_call_id": "toolu_2", "content": [text("see"), url]},
        {"role": "tool", "tool_call_id": "toolu_3", "content": [text("Error: "), text("no")]},
        {"role": "tool", "tool_call_id": "toolu_4", "content": [text("")]},
        {"role": "user", "content": [text("And now?")]},
    ]


def test_results_alone_are_no_turn_of_the_user() -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": "Error: no",
        "is_error": True,
    }
    (turn,) = messages({"role": "user", "content": [result]})
    assert turn["role"] == "tool"
    assert turn["content"] == [text("Error: no")]


def test_assistants_blocks_are_one_turn() -> None:
    blocks = [
        {"type": "thinking", "thinking": "I add.", "signature": "somebody else's"},
        {"type": "redacted_thinking", "data": "AAAA"},
        text("One "),
        text("moment."),
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": "ü"}},
        {"type": "tool_use", "id": "toolu_2", "name": "list"},
    ]
    call = {"name": "add", "arguments": '{"a": "ü"}'}
    assert messages(HI, {"role": "assistant", "content": blocks})[1] == {
        "role": "assistant",
        "content": "One moment.",
        "reasoning_content": "I add.",
        "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": call},
            {"id": "toolu_2", "type": "function", "function": {"name": "list", "arguments": "{}"}},
        ],
    }


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}, "http://x/y.png"),
        ({"type": "image"}, ""),
        (
            {"type": "document", "source": {"type": "text", "data": "Words"}, "title": "T"},
            "T\nWords",
        ),
        ({"type": "document", "source": {"type": "content", "content": [text("In")]}}, "In"),
        (
            {"type": "document", "source": {"type": "base64", "data": "AA"}},
            "[document: this server reads only plain text]",
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [text("Found")]},
            "T\nS\nFound",
        ),
    ],
)
def test_blocks_that_are_not_text(block: dict[str, Any], part: str) -> None:
    (turn,) = messages({"role": "user", "content": [block, {"type": "tool_reference"}]})
    (got,) = turn["content"]
    assert part == (got["text"] if got["type"] == "text" else got["image_url"]["url"])


def test_late_system_messages_stay_where_they_are() -> None:
    late = {"role": "system", "content": [text(HEADER), text("Hurry.")]}
    assert messages(HI, late)[1] == {"role": "system", "content": "Hurry."}


def test_tools_of_the_client_are_functions() -> None:
    custom = {**TOOL, "type": "custom", "name": "sub", "cache_control": {}, "strict": True}
    bare = {"name": "now"}
    chat = chat_body({"messages": [HI], "tools": [TOOL, SEARCH, custom, bare]})
    kinds = [tool["type"] for tool in chat["tools"]]
    assert kinds == ["function", SEARCH["type"], "function", "function"]
    assert [tool["function"] for tool in chat["tools"] if "function" in tool] == [
        {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
        {"name": "sub", "description": "Adds.", "strict": True, "parameters": {"type": "object"}},
        {"name": "now", "parameters": {}},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        (
            {"type": "tool", "name": "add"},
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
        ),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"type": "tool", "name": "web_search"}, {}),
    ],
)
def test_tool_choice(choice: Any, expected: dict[str, Any]) -> None:
    chat = chat_body({"messages": [HI], "tools": [TOOL, SEARCH], "tool_choice": choice})
    keys = ("tool_choice", "parallel_tool_calls")
    assert {key: chat[key] for key in keys if key in chat} == expected


def test_choice_of_any_tool_is_left_out_where_all_were() -> None:
    chat = chat_body({"messages": [HI], "tools": [SEARCH], "tool_choice": {"type": "any"}})
    assert chat["tools"] == [{"type": SEARCH["type"]}]
    assert "tool_choice" not in chat


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ({"type": "disabled"}, {"type": "disabled"}),
        ({"type": "enabled", "budget_tokens": 99}, {"type": "enabled", "budget_tokens": 99}),
        ({"type": "adaptive"}, None),
        (None, None),
    ],
)
def test_thinking(thinking: Any, expected: Any) -> None:
    assert chat_body({"messages": [HI], "thinking": thinking}).get("thinking") == expected


def test_other_fields() -> None:
    schema = {"type": "object"}
    body = {
        "model": "claude",
        "messages": [HI],
        "max_tokens": 7,
        "stream": True,
        "temperature": 0.5,
        "top_k": 5,
        "stop_sequences": ["\n\n"],
        "metadata": {"user_id": "u"},
        "n": 3,
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema}},
    }
    chat = chat_body(body)
    for same in ("model", "max_tokens", "stream", "temperature", "top_k"):
        assert chat[same] == body[same]
    assert chat["stop"] == ["\n\n"]
    assert "n" not in chat
    assert chat["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [], "system": "Hi"}, "messages"),
        ({"messages": [7]}, "message 1"),
        ({"messages": [HI, {"role": "tool", "content": "x"}]}, "message 2"),
        ({"messages": [{"role": "user", "content": 7}]}, "content"),
        ({"messages": [{"role": "user", "content": [7]}]}, "block"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "text"),
        ({"system": 7}, "system"),
        ({"system": [None]}, "system"),
        ({"tools": 7}, "tools"),
        ({"tools": [7]}, "tool"),
        ({"tools": [{"input_schema": {}}]}, "name"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, '"some"'),
        ({"tool_choice": {"type": "tool", "name": "sub"}, "tools": [TOOL]}, '"sub"'),
        ({"tool_choice": {"type": "any"}}, '"any"'),
        ({"thinking": "on"}, "thinking"),
        ({"output_format": {"type": "xml"}}, '"xml"'),
    ],
)
def test_what_cannot_be_read_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError) as error:
        chat_body({"messages": [HI], **change})
    assert word in str(error.value)
