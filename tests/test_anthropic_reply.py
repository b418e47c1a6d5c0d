"""Answers as Anthropic's Messages API tells them, read by the types of its own client."""

from __future__ import annotations

import json
from typing import Any

import pytest
import said
import sse
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from offload.server.anthropic_reply import MessageReply, failure_body
from offload.server.errors import Failure
from offload.server.events import Ended, Queued, Reading
from offload.server.sse import Said
from offload.speech import Token
from offload.stats import FinishReason, Repetition

EVENT = TypeAdapter(RawMessageStreamEvent)


def told(tokens: list[Token], ended: Ended) -> bytes:
    """A stream."""
    reply = MessageReply("kimi")
    frames = [reply.begin([20])]
    frames += [reply.frame(0, event) for event in (Queued(1), Reading(1, 20, 0), *tokens, ended)]
    return b"".join(frames) + reply.end()


def whole(tokens: list[Token], ended: Ended) -> dict[str, Any]:
    return MessageReply("kimi").whole([Said(tokens, ended)])


def read(frames: bytes) -> Message:
    """What the client makes of a stream; every event is of a type that it knows, in full."""
    message = None
    buffers: dict[int, bytes] = {}
    for event in sse.events(frames):
        parsed = EVENT.validate_python(event)
        message = accumulate_event(event=parsed, current_snapshot=message, json_bufs=buffers)
    assert message is not None
    return message


def comparable(message: Message) -> dict[str, Any]:
    same = {"role", "model", "content", "stop_reason", "stop_sequence", "usage"}
    fields = message.model_dump(include=same, warnings=False)
    for block in fields["content"]:
        block.pop("id", None)
    return fields


def test_stream_and_whole_message_are_the_same_to_the_client() -> None:
    message = read(told(said.CALLS, said.ended()))
    whole_one = Message.model_validate(whole(said.CALLS, said.ended()))
    assert comparable(message) == comparable(whole_one)
    thinking, text, add, listed = whole_one.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "I add, then list."
    assert thinking.signature
    assert text.type == "text"
    assert text.text == "One moment: …"
    assert add.type == listed.type == "tool_use"
    assert (add.name, add.input, listed.name, listed.input) == ("add", {"a": 1, "b": 2}, "list", {})
    assert whole_one.stop_reason == "tool_use"
    assert whole_one.usage.input_tokens == 5  # computed; the other 15 were cached
    assert whole_one.usage.cache_read_input_tokens == 15
    assert whole_one.usage.output_tokens == 9
    assert whole_one.usage.output_tokens_details is not None
    assert whole_one.usage.output_tokens_details.thinking_tokens == 2


def test_blocks_follow_each_other_without_gaps() -> None:
    events = sse.events(told(said.CALLS, said.ended()))
    assert events[0]["type"] == "message_start"
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] == 20
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    open_index, last = None, -1
    for event in events[1:-2]:
        kind, index = event["type"], event["index"]
        if kind == "content_block_start":
            assert open_index is None
            assert index == last + 1
            open_index = last = index
            assert event["content_block"].get("input", {}) == {}
        assert index == open_index
        if kind == "content_block_stop":
            open_index = None
    assert open_index is None
    assert last == 3


def test_thinking_is_signed_before_its_block_stops() -> None:
    events = sse.events(told([said.thought("Hm."), said.said("Yes")], said.ended()))
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "signature_delta", "text_delta"]


def test_ids_of_calls_are_of_the_form_that_is_allowed_and_differ() -> None:
    ids = {
        event["content_block"]["id"]
        for _ in range(2)
        for event in sse.events(told(said.CALLS, said.ended()))
        if event["type"] == "content_block_start" and "id" in event["content_block"]
    }
    assert len(ids) == 4
    assert all(name.startswith("toolu_") and name[6:].isalnum() for name in ids)


@pytest.mark.parametrize(
    ("finish", "stop_string", "tokens", "reason"),
    [
        ("stop", None, [said.said("Yes.")], "end_turn"),
        ("stop", "\nUser:", [said.said("Yes.")], "stop_sequence"),
        ("length", None, [said.said("Y")], "max_tokens"),
        ("length", None, [said.called(said.ADD, '{"a')], "max_tokens"),
        ("loop", None, [said.said("Yes.")], "end_turn"),
        ("stop", None, [], "end_turn"),
        ("stop", None, said.CALLS, "tool_use"),
    ],
)
def test_stop_reason(
    finish: FinishReason, stop_string: str | None, tokens: list[Token], reason: str
) -> None:
    message = read(told(tokens, said.ended(finish, stop_string=stop_string)))
    assert (message.stop_reason, message.stop_sequence) == (reason, stop_string)


@pytest.mark.parametrize("text", ['{"a": [1, ', "[1]", '"{}"', '{"a": NaN}', "no"])
def test_whole_message_keeps_arguments_that_are_no_object(text: str) -> None:
    (block,) = whole([said.called(said.ADD, text)], said.ended())["content"]
    assert block["input"] == {"INVALID_JSON": text}


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (400, "exceed_context_size_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (503, "unavailable_error", "overloaded_error"),
    ],
)
def test_failures_have_anthropics_shape(status: int, kind: str, expected: str) -> None:
    failure = Failure(status=status, kind=kind, message="so it is", extra={"n_ctx": 9})
    body = failure_body(failure)
    assert (body["type"], body["error"]["type"]) == ("error", expected)
    own_words = f"{kind}: so it is" if kind.startswith("exceed") else "so it is"
    assert body["error"]["message"] == own_words
    assert body["error"]["n_ctx"] == 9
    assert sse.events(MessageReply("kimi").failed(failure)) == [body]


def test_loop_is_told() -> None:
    ended = said.ended("loop")
    ended.stats.repetition = Repetition(n_tokens=3, times=50, channel="content")
    timings = [
        sse.events(told([said.said("Yes")], ended))[-2]["timings"],
        whole([said.said("Yes")], ended)["timings"],
    ]
    assert timings[0] == timings[1]
    assert timings[0]["repetition"]["times"] == 50


def test_keep_alive_is_an_event() -> None:
    assert sse.events(MessageReply("kimi").keep_alive) == [{"type": "ping"}]


def test_whatever_a_model_writes_is_one_line_of_json() -> None:
    text = 'a\n\nevent: x\r\ndata: "\\\u2028\x00'
    message = read(told([said.said(text)], said.ended()))
    assert message.content[0].type == "text"
    assert message.content[0].text == text
    assert json.dumps(text) in told([said.said(text)], said.ended()).decode()
