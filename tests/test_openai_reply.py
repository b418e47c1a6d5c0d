"""Chunks and whole objects of chat completions, of answers that nobody computed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import said
from replies import kimi

from offload.server.openai_chat import ChatReply
from offload.server.openai_reply import Told
from offload.server.sse import Said
from offload.speech import Logprobs, Token
from offload.stats import FinishReason


def reply(*, has_logprobs: bool = False) -> ChatReply:
    return ChatReply("m", kimi(), 1, Told(), has_logprobs=has_logprobs)


def streamed(tokens: list[Token], finish: FinishReason) -> list[Any]:
    made = reply()
    frames = [made.begin([20]), *(made.frame(0, e) for e in [*tokens, said.ended(finish)])]
    lines = b"".join(frames).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line]


CUT = [said.called(said.ADD), said.called(said.ADD, '{"a')]


@pytest.mark.parametrize(
    ("tokens", "finish", "reason"),
    [
        ([said.said("Yes.")], "stop", "stop"),
        (said.CALLS, "stop", "tool_calls"),
        (CUT, "length", "length"),
        ([said.called(said.ADD)], "length", "length"),
        ([said.said("Y")], "length", "length"),
    ],
)
def test_a_call_that_was_cut_is_sent_as_it_is_and_ends_by_its_length(
    tokens: list[Token], finish: FinishReason, reason: str
) -> None:
    choices = streamed(tokens, finish)
    assert choices[-1]["finish_reason"] == reason
    whole = reply().whole([Said(tokens, said.ended(finish))])["choices"][0]
    assert whole["finish_reason"] == reason
    deltas = [one for choice in choices for one in choice["delta"].get("tool_calls", ())]
    arguments: dict[int, str] = {}
    for one in deltas:
        index = one["index"]
        arguments[index] = arguments.get(index, "") + one["function"]["arguments"]
    calls = whole["message"].get("tool_calls", [])
    assert [call["function"]["arguments"] for call in calls] == list(arguments.values())


def test_the_logprobs_of_all_tokens_are_streamed_those_of_marks_too() -> None:
    tokens = [
        replace(token, logprobs=Logprobs(-float(place), ()))
        for place, token in enumerate([*said.CALLS, Token(5, "", "tool_call")])
    ]
    chunks = [reply().frame(0, token).decode().removeprefix("data: ") for token in tokens]
    told = [json.loads(chunk)["choices"][0]["logprobs"]["content"] for chunk in chunks]
    whole = reply(has_logprobs=True).whole([Said(tokens, said.ended("stop"))])["choices"][0]
    assert [one for chunk in told for one in chunk] == whole["logprobs"]["content"]
    assert len(told) == len(tokens)
