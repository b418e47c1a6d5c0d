"""The official Python clients, unmodified, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import sse
from server_client import Running, running

import offload
from offload.server.security import Rules
from offload.server.sse import KEEP_ALIVE

NAME, KEY = "kimi-mini", "sk-local"
QUESTION = "What is a routed expert?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
SUM = "What is 2 plus 3?"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2, 3]}, "b": {"enum": [1, 2, 3]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "add", "description": "Adds two numbers.", "input_schema": SCHEMA}
FUNCTION: Any = {"name": "add", "description": "Adds two numbers.", "parameters": SCHEMA}
GREEDY = {"temperature": 0}  # of newer versions only so
TOO_MUCH: list[Any] = [{"role": "user", "content": "word " * 5_000}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(lambda _: offload.load(kv_tokens=4096), rules=Rules(keys=(KEY,))) as one:
        yield one


@pytest.fixture(scope="module")
def url(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


# --- anthropic ------------------------------------------------------------------------------------


def is_sum(arguments: object) -> bool:
    return isinstance(arguments, dict) and arguments.keys() == {"a", "b"}


def test_messages_whole_and_streamed_are_the_same(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": NAME, "max_tokens": 200, "messages": ASKED, "extra_body": GREEDY}
    whole = claude.messages.create(**asked)
    kinds = [block.type for block in whole.content]
    assert kinds == ["thinking", "text"]
    assert whole.stop_reason == "end_turn"
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == kinds
    assert streamed.content[1].text == text == whole.content[1].text
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    count = claude.messages.count_tokens(model=NAME, messages=ASKED)
    for usage in (whole.usage, streamed.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count.input_tokens


def test_messages_call_a_tool_and_read_its_result(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": NAME,
        "max_tokens": 300,
        "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        "thinking": {"type": "enabled", "budget_tokens": 30},
    }
    question: list[Any] = [{"role": "user", "content": SUM}]
    forced: Any = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    with claude.messages.stream(messages=question, tool_choice=forced, **asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert "input_json" in kinds
    whole = claude.messages.create(
        messages=question, tool_choice={**forced, "type": "any"}, **asked
    )
    for message in (streamed, whole):
        assert message.stop_reason == "tool_use"
        call = message.content[-1]
        assert call.type == "tool_use"
        assert call.name == "add"
        assert call.id.startswith("toolu_")
        assert is_sum(call.input)
    (warning,) = whole.model_extra["warnings"]
    assert "web_search_20250305" in warning
    call_id = streamed.content[-1].id
    result = {"type": "tool_result", "tool_use_id": call_id, "content": "5"}
    turn = {"role": "assistant", "content": streamed.to_dict()["content"]}
    question += [turn, {"role": "user", "content": [result, {"type": "text", "text": "So?"}]}]
    answer = claude.messages.create(messages=question, tool_choice={"type": "none"}, **asked)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.cache_read_input_tokens


def test_prefix_is_reused_although_the_billing_header_changes(claude: anthropic.Anthropic) -> None:
    def ask(stamp: str, messages: list[Any]) -> anthropic.types.Message:
        header = (
            f"x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch={stamp};"
        )
        system: list[Any] = [
            {"type": "text", "text": header},
            {
                "type": "text",
                "text": "You are an agent. " * 40,
                "cache_control": {"type": "ephemeral"},
            },
        ]
        return claude.beta.messages.create(
            model=NAME,
            max_tokens=40,
            system=system,
            messages=messages,
            tools=[TOOL],
            thinking={"type": "adaptive"},
            metadata={"user_id": "u"},
            betas=["claude-code-20250219", "interleaved-thinking-2025-05-14"],
        )

    first = ask("a1b2c", ASKED)
    prompt = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    turn = {"role": "assistant", "content": first.to_dict()["content"]}
    second = ask("d3e4f", [*ASKED, turn, {"role": "user", "content": "And a shared one?"}])
    assert (second.usage.cache_read_input_tokens or 0) > 0.9 * prompt


def test_messages_stop_at_a_sequence_and_at_a_limit(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": NAME, "messages": ASKED, "extra_body": GREEDY}
    stopped = claude.messages.create(max_tokens=200, stop_sequences=["expert"], **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "expert")
    cut = claude.messages.create(max_tokens=3, **asked)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


def test_anthropics_errors_are_of_its_own_types(claude: anthropic.Anthropic, url: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: [0-9]+ tokens > 2048"):
        claude.messages.create(model=NAME, max_tokens=9, messages=TOO_MUCH)
    with pytest.raises(anthropic.BadRequestError, match="exceed_context_size_error"):
        claude.messages.create(model=NAME, max_tokens=9, messages=TOO_MUCH)
    assert claude.messages.count_tokens(model=NAME, messages=TOO_MUCH).input_tokens > 5_000
    stranger = anthropic.Anthropic(base_url=url, api_key="sk-none", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        stranger.messages.create(model=NAME, max_tokens=9, messages=ASKED)


# --- openai ---------------------------------------------------------------------------------------

ONE_CALL: Any = {"parallel_tool_calls": False, "extra_body": {"thinking_budget": 30}}


def test_chat_whole_and_streamed_are_the_same(gpt: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": ASKED, "temperature": 0}
    whole = gpt.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    with gpt.chat.completions.stream(stream_options={"include_usage": True}, **asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        streamed = stream.get_final_completion()
    assert text == choice.message.content == streamed.choices[0].message.content
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_chat_calls_a_tool_and_reads_its_result(gpt: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": FUNCTION}
    messages: list[Any] = [{"role": "user", "content": SUM}]
    forced: Any = {"type": "function", "function": {"name": "add"}}
    asked: Any = {"model": NAME, "tools": [tool], "max_tokens": 300, **ONE_CALL}
    with gpt.chat.completions.stream(messages=messages, tool_choice=forced, **asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    whole = gpt.chat.completions.create(messages=messages, tool_choice="required", **asked).choices[
        0
    ]
    for choice in (streamed, whole):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        call = choice.message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "add"
        assert is_sum(json.loads(call.function.arguments))
    turn = whole.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": turn["tool_calls"][0]["id"], "content": "5"}
    answer = gpt.chat.completions.create(
        messages=[*messages, turn, result], tool_choice="none", **asked
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_responses_whole_and_streamed_are_the_same(gpt: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "input": QUESTION, "temperature": 0}
    whole = gpt.responses.create(**asked)
    assert whole.status == "completed"
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    with gpt.responses.stream(**asked) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        streamed = stream.get_final_response()
    assert text == whole.output_text == streamed.output_text
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    again = gpt.responses.create(
        model=NAME,
        input=[*ASKED, *whole.to_dict()["output"], {"role": "user", "content": "And?"}],
        max_output_tokens=9,
    )
    assert again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens >= whole.usage.input_tokens - 1


def test_responses_tell_logprobs_where_they_are_included(gpt: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "input": QUESTION, "temperature": 0, "max_output_tokens": 60}
    logged: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    whole = gpt.responses.create(**asked, **logged)
    with gpt.responses.stream(**asked, **logged) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    parts = [response.output[-1].content[0] for response in (whole, streamed)]  # type: ignore[union-attr,index]
    for part in parts:
        assert part.type == "output_text"
        assert part.logprobs
        assert "".join(entry.token for entry in part.logprobs).startswith(part.text)
        for entry in part.logprobs:
            assert bytes(entry.bytes).decode() == entry.token
            assert entry.logprob == entry.top_logprobs[0].logprob
            assert len(entry.top_logprobs) == 3
    assert parts[0].logprobs == parts[1].logprobs  # type: ignore[union-attr]
    pieces = [(entry.token, entry.logprob) for delta in deltas for entry in delta.logprobs]
    assert pieces == [(entry.token, entry.logprob) for entry in parts[0].logprobs]  # type: ignore[union-attr]
    done = next(event for event in events if event.type == "response.output_text.done")
    assert [entry.token for entry in done.logprobs] == [token for token, _ in pieces]
    plain = gpt.responses.create(**asked)
    assert plain.output[-1].content[0].logprobs == []  # type: ignore[union-attr,index]
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        gpt.responses.create(**asked, top_logprobs=21)


def test_responses_call_a_tool_and_read_its_result(gpt: openai.OpenAI) -> None:
    tools: list[Any] = [
        {"type": "function", "strict": True, **FUNCTION},
        {"type": "web_search"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
    ]
    given: list[Any] = [{"role": "user", "content": SUM}]
    asked: Any = {"model": NAME, "tools": tools, "max_output_tokens": 300, **ONE_CALL}
    forced: Any = {"type": "function", "name": "add"}
    with gpt.responses.stream(input=given, tool_choice=forced, **asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    whole = gpt.responses.create(input=given, tool_choice="required", **asked)
    for response in (streamed, whole):
        call = response.output[-1]
        assert call.type == "function_call"
        assert call.name == "add"
        assert is_sum(json.loads(call.arguments))
    given += whole.to_dict()["output"]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "5"})
    answer = gpt.responses.create(input=given, tool_choice="none", **asked)
    assert answer.status in ("completed", "incomplete")


def test_responses_answer_a_probe_and_refuse_what_they_do_not_keep(gpt: openai.OpenAI) -> None:
    probe = gpt.responses.create(model=NAME, input="ping", max_output_tokens=1)
    assert probe.status == "incomplete"
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        gpt.responses.create(model=NAME, input="Hi", previous_response_id=probe.id)
    with pytest.raises(openai.BadRequestError, match="context_length_exceeded"):
        gpt.responses.create(model=NAME, input=TOO_MUCH)


# --- both -----------------------------------------------------------------------------------------


def test_both_find_the_model(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    (model,) = claude.models.list()
    assert (model.id, model.type, model.display_name) == (NAME, "model", NAME)
    assert claude.models.retrieve(NAME).created_at == model.created_at
    assert [model.id for model in gpt.models.list()] == [NAME]


@pytest.mark.parametrize(
    ("path", "first", "patience", "field"),
    [
        ("/v1/messages", "message_start", "ping", "messages"),
        ("/v1/responses", "response.created", "response.in_progress", "input"),
    ],
)
def test_clients_are_told_that_we_are_there_while_their_prompt_is_read(
    path: str,
    first: str,
    patience: str,
    field: str,
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert KEEP_ALIVE < 10
    monkeypatch.setattr("offload.server.sse.KEEP_ALIVE", 0.01)
    text = path + " word" * 600
    body = {field: [{"role": "user", "content": text}], "stream": True, "max_tokens": 2}
    answer = server.client.post(path, json=body, headers={"x-api-key": KEY})
    kinds = [event["type"] for event in sse.events(answer.content)]
    assert kinds[0] == first
    begun = next(i for i, kind in enumerate(kinds) if kind.endswith(("block_start", "item.added")))
    assert set(kinds[1:begun]) == {patience}
    assert begun > 3


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_half_a_character_is_no_error(path: str, server: Running) -> None:
    field = "input" if path.endswith("responses") else "messages"
    message = '[{"role": "user", "content": "cut: \\ud83d"}]'
    body = f'{{"{field}": {message}, "max_tokens": 1, "user": "\\uDE00"}}'
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    answer = server.client.post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
