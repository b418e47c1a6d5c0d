"""What is read of the fields of a chat body: switches of thinking, choices, null and -1."""

from __future__ import annotations

from typing import Any

import pytest

from offload.server.errors import FailureError
from offload.server.sampling import read_sampling, read_wishes

OFF, ON = {"thinking": False}, {"thinking": True}
KEPT, DROPPED = {"preserve_thinking": True}, {"preserve_thinking": False}


@pytest.mark.parametrize(
    ("body", "wishes"),
    [
        ({}, {}),
        ({"thinking": None, "tools": [], "tool_choice": None, "chat_template_kwargs": None}, {}),
        ({"chat_template_kwargs": {"thinking": False}}, OFF),
        ({"chat_template_kwargs": {"enable_thinking": False}}, OFF),
        ({"chat_template_kwargs": {"thinking": None, "enable_thinking": True}}, ON),
        ({"chat_template_kwargs": {"preserve_thinking": True}}, KEPT),
        ({"enable_thinking": False}, OFF),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}}, ON),
        ({"thinking": {"type": "enabled", "keep": "all"}}, ON | KEPT),
        ({"thinking": {"type": "enabled", "keep": "none"}}, ON | DROPPED),
        ({"thinking": {"keep": None}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, ON | {"thinking_budget": 99}),
        ({"thinking_budget": -1}, {}),
        ({"reasoning_effort": "none"}, OFF),
        ({"reasoning_effort": "high"}, {}),
        ({"reasoning": {"effort": "none"}}, OFF),
        ({"reasoning": {"enabled": False}}, OFF),
        ({"reasoning": {"max_tokens": 9}}, {"thinking_budget": 9}),
        ({"preserve_thinking": False}, DROPPED),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"tool_choice": "f"}),
        ({"tool_choice": {"type": "function", "name": "f"}}, {"tool_choice": "f"}),
    ],
)
def test_wishes(body: dict[str, Any], wishes: dict[str, Any]) -> None:
    assert read_wishes(body) == wishes


def test_a_choice_without_a_name_is_refused() -> None:
    with pytest.raises(FailureError, match="tool_choice"):
        read_wishes({"tool_choice": {"type": "function"}})


def test_null_is_the_default_and_minus_one_is_unset() -> None:
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens")
    assert read_sampling(dict.fromkeys(names)) == {}
    assert read_sampling({"top_k": -1, "seed": -1, "max_tokens": -1, "n_predict": 7}) == {}
    assert read_sampling({"max_completion_tokens": None, "max_tokens": 5}) == {"max_tokens": 5}
    assert read_sampling({"presence_penalty": -1, "stop": ""}) == {"presence_penalty": -1}
    assert read_sampling({"stop": ["", "x"], "repeat_penalty": 1.1}) == {
        "stop": ["x"], "repetition_penalty": 1.1,
    }  # fmt: skip
