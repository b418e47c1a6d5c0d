"""Bodies that no client would send: read, or refused by name, and never a bug."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import RequestError
from offload.server import anthropic_body, responses_body
from offload.server.billing_header import without_billing_headers

TEXT = {"type": "text", "text": "Hi"}
USED: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [TEXT], "is_error": True}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}}
PAGES = {"type": "document", "title": "T", "source": {"type": "content", "content": [TEXT]}}
MESSAGES: dict[str, Any] = {
    "system": [TEXT],
    "messages": [
        {"role": "user", "content": [TEXT, IMAGE, PAGES]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, TEXT, USED]},
        {"role": "user", "content": [RESULT, TEXT]},
    ],
    "tools": [{"name": "add", "input_schema": {}}, {"type": "web_search_1", "name": "web"}],
    "tool_choice": {"type": "tool", "name": "add", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 9},
    "output_config": {"format": {"type": "json_schema", "schema": {}}},
}
RESPONSES: dict[str, Any] = {
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [TEXT]},
    ],
    "tools": [{"type": "function", "name": "add", "parameters": {}}, {"type": "custom"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "add"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "reasoning": {"effort": "high"},
}
APIS = [(anthropic_body, MESSAGES), (responses_body, RESPONSES)]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.just("x" * 10_000),
    st.sampled_from(["system", "tool", "text", "item_reference", "any", "add"]),
    st.lists(st.integers() | st.text(max_size=3) | st.just({}), max_size=2),
    st.dictionaries(st.sampled_from(["type", "role", "text", "name"]), st.integers() | st.text()),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


@pytest.mark.parametrize(("api", "usual"), APIS, ids=["messages", "responses"])
@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), ODD), min_size=1, max_size=3))
def test_odd_body(api: Any, usual: dict[str, Any], changes: list[tuple[int, Any]]) -> None:
    body = copy.deepcopy(usual)
    for number, value in changes:
        spots = list(places(body))
        container, key = spots[number % len(spots)]
        container[key] = copy.deepcopy(value)
    words = None
    try:
        chat = api.chat_body(body)
    except RequestError as exc:
        words = str(exc)
    if words is None:
        assert all(isinstance(message, dict) for message in chat["messages"])
        without_billing_headers(chat["messages"])
    else:
        assert 0 < len(words) < 500


@pytest.mark.parametrize(("api", "usual"), APIS, ids=["messages", "responses"])
def test_usual_body_is_read(api: Any, usual: dict[str, Any]) -> None:
    assert len(api.chat_body(usual)["messages"]) == 5 - (api is responses_body)
