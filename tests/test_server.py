"""The server with the embedded model: what clients of OpenAI's protocols get."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server_client import HI, Running, read_answer, request, running

QUESTION = [{"role": "user", "content": "What is a routed expert?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


def said(chunks: list[dict], name: str = "content", index: int = 0) -> str:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


def test_a_stream_says_what_the_whole_answer_says(server: Running) -> None:
    asked = {"messages": QUESTION, "temperature": 0}
    whole = server.chat(**asked).json()
    chunks = server.stream(**asked)
    message = whole["choices"][0]["message"]
    assert "router" in message["content"]
    assert said(chunks) == message["content"]
    assert said(chunks, "reasoning_content") == message["reasoning_content"]
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_usage_is_a_chunk_of_its_own_where_it_is_asked_for(server: Running) -> None:
    chunks = server.stream(stream_options={"include_usage": True}, max_tokens=5)
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert not any("usage" in chunk for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


def test_the_second_turn_finds_the_first_in_the_cache(server: Running) -> None:
    first = server.chat(max_tokens=20).json()
    again = server.chat(max_tokens=20).json()
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 1 - 8
    assert again["timings"]["cache_n"] == cached
    assert again["timings"]["prompt_n"] + cached == again["usage"]["prompt_tokens"]


def test_several_choices_differ_by_their_seeds_and_come_again(server: Running) -> None:
    asked = {"n": 3, "seed": 5, "max_tokens": 30, "temperature": 2.0}
    texts = [
        [c["message"].get("reasoning_content", "") for c in server.chat(**asked).json()["choices"]]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    chunks = server.stream(**asked)
    assert [said(chunks, "reasoning_content", i) for i in range(3)] == texts[0]


def test_null_is_default_and_minus_one_is_unset(server: Running) -> None:
    names = ("temperature", "top_p", "max_tokens", "seed", "stop", "n", "logprobs", "tools")
    names += ("stream", "stream_options", "response_format", "tool_choice", "reasoning_effort")
    assert server.chat(**dict.fromkeys(names)).status_code == 200
    unset = {"seed": -1, "top_k": -1, "max_tokens": -1, "temperature": -1, "n": -1}
    assert server.chat(**unset).status_code == 200


def test_what_clients_send_beside_is_ignored(server: Running) -> None:
    beside = {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
    beside |= {"parallel_tool_calls": False, "prompt_cache_key": "x", "verbosity": "low"}
    assert server.chat(max_tokens=2, whatever=[1, {"x": None}], **beside).status_code == 200


def test_what_is_not_done_is_told_beside_the_answer(server: Running) -> None:
    asked = {
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "web_search_options": {},
        "store": True,
        "verbosity": "low",
        "reasoning_effort": "high",
        "grammar": "root ::= [a-z]",
        "prediction": {"type": "content", "content": "x"},
        "service_tier": "auto",
    }
    warnings = server.chat(max_tokens=2, **asked).json()["warnings"]
    named = ["modalities", "web_search_options", "store", "reasoning_effort", "verbosity"]
    assert [line.split(":")[0] for line in warnings] == [*named, "grammar"]
    assert server.stream(max_tokens=2, **asked)[-1]["warnings"] == warnings
    quiet = {"modalities": ["text"], "store": False, "verbosity": "medium", "audio": None}
    quiet |= {"reasoning_effort": "medium", "function_call": "none", "functions": []}
    assert "warnings" not in server.chat(max_tokens=2, **quiet).json()
    asked = {"input": "Hi", "max_output_tokens": 2, "truncation": "auto", "store": True}
    asked |= {"text": {"verbosity": "high"}, "reasoning": {"effort": "low"}}
    told = server.client.post("/v1/responses", json=asked).json()
    named = ["store", "truncation", "reasoning.effort", "text.verbosity"]
    assert [line.split(":")[0] for line in told["warnings"]] == named
    asked = {"messages": HI, "max_tokens": 2, "output_config": {"effort": "max"}}
    told = server.client.post("/v1/messages", json=asked).json()
    assert told["warnings"][0].startswith("output_config.effort: 'max'")
    asked = {"prompt": "a", "max_tokens": 2, "response_format": {"type": "json_object"}}
    told = server.client.post("/v1/completions", json=asked).json()
    assert told["warnings"][0].startswith("response_format")


@pytest.mark.parametrize(
    "old",
    [
        {"functions": [{"name": "f", "parameters": {}}]},
        {"function_call": {"name": "f"}},
        {"messages": [*HI, {"role": "function", "name": "f", "content": "1"}]},
        {"messages": [*HI, {"role": "assistant", "function_call": {"name": "f"}}, *HI]},
    ],
)
def test_the_old_form_of_tools_is_refused_by_the_name_of_the_new(
    server: Running, old: dict[str, Any]
) -> None:
    response = server.chat(**old)
    assert response.status_code == 400
    assert "tool" in response.json()["error"]["message"].partition("; send ")[2]


def test_a_bias_by_token_is_followed(server: Running) -> None:
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 12, "thinking": False}
    usual = server.chat(**asked, logprobs=True).json()["choices"][0]
    first = usual["logprobs"]["content"][0]["id"]
    assert server.chat(**asked, logit_bias={}).json()["choices"][0]["message"] == usual["message"]
    without = server.chat(**asked, logit_bias={str(first): -100}, logprobs=True)
    told = without.json()["choices"][0]["logprobs"]["content"]
    assert first not in [entry["id"] for entry in told]
    drawn = {**asked, "temperature": 1.5, "seed": 4, "logit_bias": {str(first): 100}}
    told = server.chat(**drawn, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert {entry["id"] for entry in told} == {first}
    text = server.client.post(
        "/v1/completions", json={"prompt": "a", "logit_bias": {str(first): 100}, "max_tokens": 3}
    )
    name = bytes(usual["logprobs"]["content"][0]["bytes"]).decode()
    assert text.json()["choices"][0]["text"] == 3 * name


def test_a_bias_does_not_break_a_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    tokens = server.client.post("/tokenize", json={"content": "true"}).json()["tokens"]
    bias = {str(token): 100 for token in tokens}
    asked = {"response_format": form, "thinking": False, "max_tokens": 60, "seed": 1}
    answers = [server.chat(**asked, logit_bias=bias).json() for _ in range(2)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert json.loads(texts[0]) == {"a": True}
    assert texts[0] == texts[1]


def test_stop_strings_end_the_answer_before_them(server: Running) -> None:
    whole = server.chat(messages=QUESTION, temperature=0, stop=["feed-forward", ""]).json()
    choice = whole["choices"][0]
    assert choice["message"]["content"].endswith("small ")
    assert choice["finish_reason"] == "stop"


def test_thinking_is_switched_in_every_way_that_clients_know(server: Running) -> None:
    for switch in (
        {"chat_template_kwargs": {"thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"reasoning": {"effort": "none"}},
    ):
        message = server.chat(max_tokens=5, **switch).json()["choices"][0]["message"]
        assert "reasoning_content" not in message
        assert message["content"]


def test_logprobs_have_openais_shape(server: Running) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "temperature": 0}
    content = server.chat(**asked).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    for entry in content:
        assert entry["token"] == entry["top_logprobs"][0]["token"]
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    streamed = [
        entry
        for chunk in server.stream(**asked)
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_a_prompt_that_is_too_long_is_refused_in_the_words_agents_know(server: Running) -> None:
    response = server.chat(messages=[{"role": "user", "content": "word " * 3000}], stream=True)
    error = response.json()["error"]
    assert response.status_code == error["code"] == 400
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 2048 < error["n_prompt_tokens"]
    for words in ("exceeds the available context size", "context_length_exceeded"):
        assert words in error["message"]


def test_an_answer_that_fills_the_context_ends_by_its_length(server: Running) -> None:
    def asked(n: int, most: int) -> dict:
        body = {"prompt": [5] * n, "max_tokens": most, "temperature": 0}
        return server.client.post("/v1/completions", json=body).json()

    full = asked(2040, -1)
    assert full["choices"][0]["finish_reason"] == "length"
    assert full["usage"]["total_tokens"] == 2049
    assert "context_length_exceeded" in full["warnings"][0]
    assert "warnings" not in asked(2040, 4)


def test_the_servers_own_defaults_are_for_what_a_request_does_not_say(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.host, "defaults", {"temperature": 0.0, "thinking_budget": 3})
    body = {"messages": QUESTION, "max_tokens": 40}

    def told(**more: object) -> tuple[str, int]:
        reply = server.client.post("/v1/chat/completions", json=body | more).json()
        usage = reply["usage"]["completion_tokens_details"]
        return reply["choices"][0]["message"]["content"], usage["reasoning_tokens"]

    assert told()[1] == 3 + 1  # the mark that closes it
    assert told(seed=1) == told(seed=2, temperature=None)  # greedy
    assert told(thinking={"type": "enabled", "budget_tokens": 1})[1] == 1 + 1


def test_half_a_surrogate_pair_is_no_error(server: Running) -> None:
    body = b'{"prompt": "a\\ud83d", "max_tokens": 2, "echo": true}'
    headers = {"content-type": "application/json"}
    answer = server.client.post("/v1/completions", content=body, headers=headers)
    assert answer.json()["choices"][0]["text"].startswith("a\ufffd")


def test_completions_go_on_with_texts_and_ids(server: Running) -> None:
    post = server.client.post
    text = "In the beginning"
    asked = {"prompt": text, "max_tokens": 8, "temperature": 0}
    one = post("/v1/completions", json=asked).json()["choices"][0]["text"]
    ids = post("/tokenize", json={"content": text}).json()["tokens"]
    both = post("/v1/completions", json={**asked, "prompt": [ids, text], "n": 1}).json()
    assert [c["text"] for c in both["choices"]] == [one, one]
    assert both["usage"]["prompt_tokens"] == 2 * len(ids)
    assert both["usage"]["completion_tokens"] == 16
    echoed = post("/v1/completions", json={**asked, "echo": True}).json()
    assert echoed["choices"][0]["text"] == text + one
    chunks = server.stream("/v1/completions", **asked, echo=True)
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == text + one
    told = post("/v1/completions", json={**asked, "logprobs": 1}).json()["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == one
    assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
    assert all(len(top) == 1 for top in told["top_logprobs"])
    for refused in ({"suffix": "x"}, {"best_of": 3}, {"echo": True, "logprobs": 1}, {"prompt": []}):
        assert post("/v1/completions", json={**asked, **refused}).status_code == 400


def test_a_text_that_goes_in_circles_ends_where_that_is_asked_for(server: Running) -> None:
    asked = {"prompt": "In the beginning", "temperature": 0, "max_tokens": 400}
    for stop, reason in ((None, None), (True, "loop")):
        body = asked | {"stop_loops": stop}
        answer = server.client.post("/v1/completions", json=body).json()
        assert answer["timings"]["repetition"]["times"] > 3, "it does"
        assert answer["choices"][0].get("stop_reason") == reason
        assert (answer["usage"]["completion_tokens"] < 400) == (reason is not None)


def test_tokens_there_and_back(server: Running) -> None:
    post = server.client.post
    text = "Grüße, <|im_end|> 世界"
    ids = post("/tokenize", json={"content": text, "parse_special": False}).json()["tokens"]
    assert post("/detokenize", json={"tokens": ids}).json()["content"] == text
    pieces = post("/tokenize", json={"content": "hello world", "with_pieces": True}).json()
    assert "".join(token["piece"] for token in pieces["tokens"]) == "hello world"
    assert post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert post("/detokenize", json={"tokens": "x"}).status_code == 400


def test_a_long_text_that_is_cut_into_tokens_holds_up_nobody(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def waits(*_: object) -> Any:
        assert answered.wait(10), "other requests are answered meanwhile"
        return []

    tokenizer = server.host.engine.tokenizer
    for name, path, body in (
        ("encode_parts", "/tokenize", {"content": "x"}),
        ("decode", "/detokenize", {"tokens": [1]}),
    ):
        answered.clear()
        monkeypatch.setattr(type(tokenizer), name, waits)
        with server.connect() as sock:
            sock.sendall(request(body, path))
            time.sleep(0.1)
            assert server.client.get("/health").status_code == 200
            answered.set()
            assert b" 200 " in read_answer(sock, is_stream=False)[:20]


def test_the_model_and_its_context_are_told(server: Running) -> None:
    get = server.client.get
    models = get("/v1/models").json()
    (model,) = models["data"]
    assert model["id"] == "kimi-mini" == models["models"][0]["slug"]
    assert model["max_model_len"] == model["meta"]["n_ctx"] == 2048
    assert model["meta"]["n_ctx_train"] == 2048
    assert get("/v1/models/kimi-mini").json() == model
    assert get("/v1/models/gpt-4").status_code == 404
    for path in ("/props", "/v1/props"):
        props = get(path).json()
        assert props["default_generation_settings"]["n_ctx"] == 2048
        assert props["total_slots"] == 4
    slots = get("/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert get("/health").json() == {"status": "ok"}


def test_metrics_count(server: Running) -> None:
    def value(name: str) -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    before = value("kimi_offload_tokens_predicted_total")
    server.chat(max_tokens=7)
    assert value("kimi_offload_tokens_predicted_total") == before + 7
    assert value("kimi_offload_requests_processing") == 0


def test_head_and_options_are_answered(server: Running) -> None:
    client = server.client
    assert client.head("/health").status_code == 200
    assert client.head("/health").content == b""
    for path in ("/health", "/v1/chat/completions", "/v1/models"):
        response = client.options(path)
        assert response.status_code == 204
        assert "OPTIONS" in response.headers["allow"]
    assert "POST" in client.options("/v1/chat/completions").headers["allow"]


def test_errors_are_json(server: Running) -> None:
    client = server.client
    missing = client.get("/nowhere")
    assert missing.status_code == missing.json()["error"]["code"] == 404
    wrong = client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == 405


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": HI, "temperature": "hot"},
        {"messages": HI, "temperature": 99},
        {"messages": HI, "n": 0},
        {"messages": HI, "n": 1000},
        {"messages": HI, "stream": "yes"},
        {"messages": HI, "top_logprobs": 21},
        {"messages": HI, "max_tokens": 0},
        {"messages": HI, "max_tokens": 1.5},
        {"messages": HI, "stop": [7]},
        {"messages": HI, "stop": ["x"] * 65},
        {"messages": HI, "dry_sequence_breakers": ["x"] * 65},
        {"messages": HI, "dry_sequence_breakers": ["x" * 1025]},
        {"messages": HI, "seed": 2**65},
        {"messages": HI, "logit_bias": {"1": 101}},
        {"messages": HI, "logit_bias": {"999999999": 1}},
        {"messages": HI, "logit_bias": {"a": 1}},
        {"messages": HI, "logit_bias": {str(i): 1 for i in range(301)}},
        {"messages": HI * 10_001},
        {"messages": HI, "tool_choice": {"type": "function"}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_wrong_values_are_refused_before_anything_is_sent(server: Running, wrong: dict) -> None:
    response = server.client.post("/v1/chat/completions", json={"stream": True, **wrong})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_everything_that_is_described_is_there_and_answers_as_described(server: Running) -> None:
    described = server.client.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            answer = server.client.request(method, path, json={} if method == "post" else None)
            assert str(answer.status_code) in operation["responses"], (method, path)
            content = operation["responses"][str(answer.status_code)]["content"]
            assert answer.headers["content-type"].partition(";")[0] in content
