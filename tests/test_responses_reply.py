"""Answers as OpenAI's Responses API tells them, read by the types of its own client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import said
import sse
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from offload.server.errors import Failure
from offload.server.events import Ended, Event, Queued, Reading
from offload.server.responses_reply import ResponseReply
from offload.server.sse import Said
from offload.speech import Logprobs, Token

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
SUMMED: dict[str, Any] = {"reasoning": {"effort": "high", "summary": "auto"}}


def told(tokens: list[Token], ended: Ended, body: dict[str, Any] | None = None) -> bytes:
    reply = ResponseReply("kimi", body or {})
    happened: list[Event] = [Queued(1), Reading(1, 20, 0), *tokens, ended]
    frames = [reply.begin([20]), *(reply.frame(0, event) for event in happened)]
    return b"".join(frames) + reply.end()


def whole(tokens: list[Token], ended: Ended, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return ResponseReply("kimi", body or {}).whole([Said(tokens, ended)])


def read(frames: bytes) -> Response:
    """What the client makes of a stream; every event is of a type that it knows, in full."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    last = None
    for number, event in enumerate(sse.events(frames)):
        assert event["sequence_number"] == number
        for made in state.handle_event(EVENT.validate_python(event)):
            last = made
    assert last is not None
    return Response.model_validate(last.response.model_dump(warnings=False))


def comparable(output: list[Any]) -> list[dict[str, Any]]:
    """Items as the server wrote them, without their ids."""
    items = [item.model_dump(exclude_none=True, warnings=False) for item in output]
    return [
        {k: v for k, v in item.items() if k not in ("id", "parsed_arguments")} for item in items
    ]


def test_logprobs_of_half_characters_come_with_their_message() -> None:
    tokenizer: Any = SimpleNamespace(token_bytes=lambda i: b"\xc3\xa9"[i % 2 : i % 2 + 1])
    tokens = [
        Token(i, text, channel, None, Logprobs(-0.5, ((i, -0.5),)))
        for i, (text, channel) in enumerate(
            [("Hm", "reasoning"), ("", "content"), ("é", "content"), ("", "content")]
        )
    ]
    reply = ResponseReply("kimi", {}, tokenizer)
    frames = [reply.begin([20]), *(reply.frame(0, event) for event in (*tokens, said.ended()))]
    events = list(sse.events(b"".join(frames)))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    ids = [[entry["id"] for entry in delta["logprobs"]] for delta in deltas]
    assert ids == [[1, 2], [3]]
    once = ResponseReply("kimi", {}, tokenizer).whole([Said(tokens, said.ended())])
    for item in (once["output"][1], read(b"".join(frames)).model_dump()["output"][1]):
        assert [entry["id"] for entry in item["content"][0]["logprobs"]] == [1, 2, 3]


@pytest.mark.parametrize("body", [{}, SUMMED], ids=["clear", "summary"])
def test_stream_and_whole_response_are_the_same_to_the_client(body: dict[str, Any]) -> None:
    streamed = read(told(said.CALLS, said.ended(), body))
    response = Response.model_validate(whole(said.CALLS, said.ended(), body))
    assert comparable(streamed.output) == comparable(response.output)
    assert streamed.usage == response.usage
    assert streamed.status == response.status == "completed"
    reasoning, message, add, listed = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert [part.text for part in reasoning.content] == ["I add, then list."]
    assert [part.text for part in reasoning.summary] == (["I add, then list."] if body else [])
    assert message.type == "message"
    assert response.output_text == "One moment: …"
    assert add.type == listed.type == "function_call"
    assert (add.name, add.arguments) == ("add", '{"a": 1, "b": 2}')
    assert (listed.name, listed.arguments) == ("list", "{}")
    assert add.call_id != listed.call_id
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 9, 29)
    assert usage.input_tokens_details.cached_tokens == 15
    assert usage.output_tokens_details.reasoning_tokens == 2


def test_events_of_an_answer_in_order() -> None:
    kinds = [event["type"] for event in sse.events(told(said.CALLS, said.ended()))]
    shown = [
        kind.removeprefix("response.") for i, kind in enumerate(kinds) if kind not in kinds[:i]
    ]
    assert shown == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_text.delta",
        "output_text.done",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "completed",
    ]
    for end in ("added", "done"):
        assert kinds.count(f"response.output_item.{end}") == 4
        assert kinds.count(f"response.content_part.{end}") == 2


def test_summary_is_streamed_where_it_was_asked_for() -> None:
    events = sse.events(told([said.thought("Hm."), said.said("Yes")], said.ended(), SUMMED))
    of_reasoning = [event["type"] for event in events if event.get("output_index") == 0]
    assert of_reasoning == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]


def test_deltas_join_to_what_is_done() -> None:
    events = sse.events(told(said.CALLS, said.ended()))
    for kind, field in (("output_text", "text"), ("function_call_arguments", "arguments")):
        joined: dict[str, str] = {}
        for event in events:
            if event["type"] == f"response.{kind}.delta":
                joined[event["item_id"]] = joined.get(event["item_id"], "") + event["delta"]
        done = {e["item_id"]: e[field] for e in events if e["type"] == f"response.{kind}.done"}
        assert joined == done


def test_answer_that_was_cut_is_incomplete() -> None:
    tokens = [said.said("On"), said.called(said.ADD, '{"a')]
    response = read(told(tokens, said.ended("length")))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [getattr(item, "status", "") for item in response.output] == ["completed", "incomplete"]
    assert comparable(response.output) == comparable(
        Response.model_validate(whole(tokens, said.ended("length"))).output
    )


def test_answer_without_a_word_is_complete() -> None:
    assert read(told([], said.ended())).output == []


def test_failure_is_a_response_of_its_own() -> None:
    reply = ResponseReply("kimi", {})
    frames = reply.begin([20]) + reply.frame(0, said.said("Yes"))
    failure = Failure(status=500, kind="server_error", message="a device failed")
    response = read(frames + reply.failed(failure))
    assert response.status == "failed"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", "a device failed")
    assert response.output_text == "Yes"


def test_keep_alive_changes_nothing() -> None:
    def frames(*, patient: bool) -> bytes:
        reply = ResponseReply("kimi", {})
        parts = [reply.begin([20])]
        for token in said.CALLS:
            parts += [reply.keep_alive if patient else b"", reply.frame(0, token)]
        return b"".join([*parts, reply.keep_alive, reply.frame(0, said.ended())])

    patient, brisk = read(frames(patient=True)), read(frames(patient=False))
    assert comparable(patient.output) == comparable(brisk.output)
    assert len(sse.events(frames(patient=True))) > len(sse.events(frames(patient=False))) + 9


def test_response_repeats_its_request() -> None:
    tools = [{"type": "function", "name": "add", "parameters": {}, "strict": False}]
    body = {"instructions": "Be brief.", "tools": tools, "metadata": {"a": "b"}, "top_p": 0.5}
    response = Response.model_validate(whole([], said.ended(), body | {"max_output_tokens": 7}))
    assert response.instructions == "Be brief."
    assert response.metadata == {"a": "b"}
    assert [tool.type for tool in response.tools] == ["function"]
    assert (response.top_p, response.max_output_tokens) == (0.5, 7)
    assert response.parallel_tool_calls is True
    assert response.store is False  # type: ignore[attr-defined]
