"""POST /v1/chat/completions: a body becomes an ask, events become OpenAI's chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from offload.server.ask import Ask, chat_starts
from offload.server.errors import refused
from offload.server.events import Ended
from offload.server.limits import Body, check_counts
from offload.server.openai_logprobs import chat_logprobs
from offload.server.openai_reply import OpenAIReply, Shape, Told, finish_reason
from offload.server.sampling import (
    read_count,
    read_flag,
    read_sampling,
    read_top_logprobs,
    read_wishes,
)
from offload.server.sse import Said
from offload.speech import Token
from offload.tokenizer import Tokenizer

SHAPE = Shape(prefix="chatcmpl", whole="chat.completion", chunk="chat.completion.chunk")


def read(body: Body, model: str, tokenizer: Tokenizer) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    check_counts(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refused("messages must be a list of at least one message", param="messages")
    if body.get("functions") or body.get("function_call") not in (None, "none", "auto"):
        raise refused(
            "functions and function_call are the old form of tools, which this server does not "
            "speak; send tools and tool_choice",
            param="functions",
        )
    n = read_count(body, "n")
    wishes = read_wishes(body) | _logprobs(body)
    return Ask(
        starts=chat_starts(messages, wishes, read_sampling(body), n),
        reply=ChatReply(model, tokenizer, n, Told.read(body), has_logprobs="logprobs" in wishes),
        is_stream=read_flag(body, "stream"),
        name="chat",
    )


def _logprobs(body: Body) -> dict[str, Any]:
    wanted, number = read_flag(body, "logprobs"), read_top_logprobs(body)
    return {"logprobs": number} if wanted or number else {}


class ChatReply(OpenAIReply):
    """Of n answers to one conversation."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, n: int, told: Told, *, has_logprobs: bool
    ) -> None:
        super().__init__(SHAPE, model, n, told)
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._calls: list[set[int]] = [set() for _ in range(n)]  # begun, by answer

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The role of each answer."""
        delta = '{"role":"assistant","content":""}'
        return b"".join(self._chunk(index, delta) for index in range(self._n))

    def _token(self, index: int, token: Token) -> bytes:
        if token.call is not None:
            delta = self._call_delta(index, token)
        elif not token.text and token.logprobs is None:
            return b""  # half a character, or a marker
        elif token.channel == "tool_call":
            delta = "{}"  # a marker between calls
        else:
            name = "reasoning_content" if token.channel == "reasoning" else "content"
            delta = f'{{"{name}":{json.dumps(token.text)}}}'
        if token.logprobs is None:
            return self._chunk(index, delta)
        return self._chunk(index, delta, json.dumps(chat_logprobs(self._tokenizer, [token])))

    def _call_delta(self, index: int, token: Token) -> str:
        """Name and id come once: clients add up what comes."""
        call, begun = token.call, self._calls[index]
        assert call is not None
        function, head = f'"arguments":{json.dumps(token.text)}', ""
        if call.index not in begun:
            begun.add(call.index)
            head = f'"id":{json.dumps(call.id)},"type":"function",'
            function = f'"name":{json.dumps(call.name)},{function}'
        return f'{{"tool_calls":[{{"index":{call.index},{head}"function":{{{function}}}}}]}}'

    def _chunk(self, index: int, delta: str, logprobs: str = "null") -> bytes:
        return (
            f'{self._head}{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            '"finish_reason":null}]}\n\n'
        ).encode()

    def _last(self, index: int, ended: Ended) -> dict[str, Any]:
        reason = finish_reason(ended, has_calls=bool(self._calls[index]))
        return {"index": index, "delta": {}, "logprobs": None, **reason}

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.ended is not None
        calls = [
            {
                "id": head.id,
                "type": "function",
                "function": {"name": head.name, "arguments": arguments},
            }
            for head, arguments in said.calls
        ]
        content, reasoning = said.text("content"), said.text("reasoning")
        message: dict[str, Any] = {"role": "assistant", "content": content or None}
        if not calls:
            message["content"] = content
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        logprobs = chat_logprobs(self._tokenizer, said.tokens) if self._has_logprobs else None
        reason = finish_reason(said.ended, has_calls=bool(calls))
        return {"index": index, "message": message, "logprobs": logprobs, **reason}
