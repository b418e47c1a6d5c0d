"""POST /v1/chat/completions: a body becomes an ask, events become OpenAI's chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from offload.arguments import quoted
from offload.server.ask import Ask, chat_starts
from offload.server.errors import Failure, refused
from offload.server.events import Ended, Event, Reading
from offload.server.limits import Body, check_counts
from offload.server.openai_logprobs import logprob_entry
from offload.server.sampling import read_count, read_flag, read_sampling, read_wishes
from offload.server.sse import Said, data_line
from offload.server.usage import timings, usage
from offload.speech import Token
from offload.tokenizer import Tokenizer
from offload.wishes import MOST_LOGPROBS

DONE = b"data: [DONE]\n\n"


def read(body: Body, model: str, tokenizer: Tokenizer) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    check_counts(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refused("messages must be a list of at least one message", param="messages")
    n = read_count(body, "n")
    wishes = read_wishes(body) | _logprobs(body)
    options = body.get("stream_options")
    return Ask(
        starts=chat_starts(messages, wishes, read_sampling(body), n),
        reply=ChatReply(
            model,
            tokenizer,
            n,
            has_logprobs="logprobs" in wishes,
            tells_usage=isinstance(options, dict) and bool(options.get("include_usage")),
            tells_progress=read_flag(body, "return_progress"),
        ),
        is_stream=read_flag(body, "stream"),
        name="chat",
    )


def _logprobs(body: Body) -> dict[str, Any]:
    wanted, top = read_flag(body, "logprobs"), body.get("top_logprobs")
    if top is not None and (not isinstance(top, int) or not 0 <= top <= MOST_LOGPROBS):
        raise refused(
            f"top_logprobs must be a whole number from 0 to {MOST_LOGPROBS}, not {quoted(top)}",
            param="top_logprobs",
        )
    return {"logprobs": top or 0} if wanted or top else {}


def finish_reason(ended: Ended, has_calls: bool) -> str:
    """In OpenAI's words."""
    if has_calls:
        return "tool_calls"
    return "length" if ended.stats.finish_reason == "length" else "stop"


class ChatReply:
    """Chunks of a stream, or the whole object, of n answers."""

    keep_alive = b": keep-alive\n\n"

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        n: int,
        *,
        has_logprobs: bool = False,
        tells_usage: bool = False,
        tells_progress: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._tells_usage = tells_usage
        self._tells_progress = tells_progress
        self._calls: list[set[int]] = [set() for _ in range(n)]
        self._ended: list[Ended | None] = [None] * n
        self._began = time.monotonic()
        self._fixed = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        chunk = {**self._fixed, "object": "chat.completion.chunk"}
        self._head = f'data: {json.dumps(chunk, separators=(",", ":"))[:-1]},"choices":['

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The role of each answer."""
        delta = '{"role":"assistant","content":""}'
        return b"".join(self._chunk(index, delta) for index in range(len(self._calls)))

    def frame(self, index: int, event: Event) -> bytes:
        """A token's delta; how a queue and a prompt get on, where that was asked for."""
        if isinstance(event, Token):
            return self._token(index, event)
        if isinstance(event, Ended):
            self._ended[index] = event
            return self._finish(index, event)
        if isinstance(event, Reading):
            return self._progress(event) if self._tells_progress else b""
        return f": queued {event.position}\n\n".encode()

    def end(self) -> bytes:
        """The usage, where it was asked for in a chunk without a choice, and the end mark."""
        if not self._tells_usage:
            return DONE
        ended = self._all_ended
        told = json.dumps({"usage": usage(ended, prompts=1), "timings": timings(ended[0])})
        return f"{self._head}],{told[1:]}\n\n".encode() + DONE

    def failed(self, failure: Failure) -> bytes:
        """An event of its own, then the connection ends."""
        return data_line(failure.openai())

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        """The whole object."""
        ended = [one.ended for one in said if one.ended is not None]
        return {
            **self._fixed,
            "object": "chat.completion",
            "choices": [self._choice(index, one) for index, one in enumerate(said)],
            "usage": usage(ended, prompts=1),
            "timings": timings(ended[0]),
        }

    def _token(self, index: int, token: Token) -> bytes:
        text = json.dumps(token.text)
        call = token.call
        if call is not None:
            calls = self._calls[index]
            function = f'"arguments":{text}'
            head = ""
            if call.index not in calls:
                calls.add(call.index)
                head = f'"id":{json.dumps(call.id)},"type":"function",'
                function = f'"name":{json.dumps(call.name)},{function}'
            delta = f'{{"tool_calls":[{{"index":{call.index},{head}"function":{{{function}}}}}]}}'
        elif token.channel == "tool_call" or not token.text and not token.logprobs:
            return b""  # a marker, or half a character
        else:
            name = "reasoning_content" if token.channel == "reasoning" else "content"
            delta = f'{{"{name}":{text}}}'
        logprobs = "null"
        if token.logprobs is not None:
            logprobs = json.dumps({"content": [logprob_entry(self._tokenizer, token)]})
        return self._chunk(index, delta, logprobs)

    def _chunk(self, index: int, delta: str, logprobs: str = "null", finish: str = "null") -> bytes:
        return (
            f'{self._head}{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":{finish}}}]}}\n\n'
        ).encode()

    def _finish(self, index: int, ended: Ended) -> bytes:
        finish = finish_reason(ended, bool(self._calls[index]))
        chunk = {
            **self._fixed,
            "object": "chat.completion.chunk",
            "choices": [
                {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish}
                | _stop_reason(ended)
            ],
            "timings": timings(ended),
        }
        if not self._tells_usage and len(self._all_ended) == len(self._ended):
            chunk["usage"] = usage(self._all_ended, prompts=1)
        return data_line(chunk)

    @property
    def _all_ended(self) -> list[Ended]:
        return [one for one in self._ended if one is not None]

    def _progress(self, event: Reading) -> bytes:
        told = {
            "total": event.total,
            "cache": event.reused,
            "processed": event.done,
            "time_ms": round((time.monotonic() - self._began) * 1e3),
        }
        return f'{self._head}],"prompt_progress":{json.dumps(told)}}}\n\n'.encode()

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.ended is not None
        calls = [
            {
                "id": head.id,
                "type": "function",
                "function": {"name": head.name, "arguments": arguments or "{}"},
            }
            for head, arguments in said.calls
        ]
        content, reasoning = said.text("content"), said.text("reasoning")
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message |= {"tool_calls": calls, "content": content or None}
        told = [t for t in said.tokens if t.logprobs is not None]
        entries = [logprob_entry(self._tokenizer, token) for token in told]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": entries, "refusal": None} if self._has_logprobs else None,
            "finish_reason": finish_reason(said.ended, bool(calls)),
        } | _stop_reason(said.ended)


def _stop_reason(ended: Ended) -> dict[str, str]:
    return {"stop_reason": "loop"} if ended.stats.finish_reason == "loop" else {}
