"""An answer as Anthropic's Messages API tells it: events of a stream, or one message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from secrets import token_hex
from typing import Any, Literal

from offload.server.errors import Failure
from offload.server.events import Ended, Event
from offload.server.runs import Run, Runs, shows
from offload.server.sse import Said
from offload.server.usage import extras
from offload.speech import Token
from offload.stats import Channel

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageReply:
    """Blocks come one after another, without gaps: thinking, text, tool_use as the model says them.

    A client that waits is told that we are there by an event; it ignores comments.
    """

    keep_alive = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"msg_{token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._runs = Runs()

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """How much of the prompt is cached is told in the end."""
        usage = {**_NO_USAGE, "input_tokens": prompt_tokens[0]}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        return _event("message_start", message=message | {"usage": usage})

    def frame(self, index: int, event: Event) -> bytes:
        """Of a token, its delta; of the end, what it was and what it has cost."""
        if isinstance(event, Token):
            return self._token(event)
        if not isinstance(event, Ended):
            return b""
        reason, sequence = _stop(self._runs.all, event)
        return self._stop_block() + _event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": sequence},
            usage=_usage(event),
            **extras(event),
        )

    def end(self) -> bytes:
        """The end mark."""
        return _event("message_stop")

    def failed(self, failure: Failure) -> bytes:
        """An event of its own, then the connection ends."""
        return _event(**failure_body(failure))

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        """The message."""
        runs, ended = Runs(said[0].tokens).all, said[0].ended
        assert ended is not None
        reason, sequence = _stop(runs, ended)
        return {
            **self._head,
            "content": [_block(run) for run in runs],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _NO_USAGE | _usage(ended),
            **extras(ended),
        }

    def _token(self, token: Token) -> bytes:
        if not shows(token):
            return b""
        begins = self._runs.begins(token)
        before = self._stop_block() if begins else b""
        self._runs.take(token)
        begun = self._start_block(token) if begins else b""
        return before + begun + (self._delta(token.text) if token.text else b"")

    def _start_block(self, token: Token) -> bytes:
        block = _EMPTY[token.channel]
        if token.call is not None:
            block = {**block, "id": _call_id(), "name": token.call.name, "input": {}}
        index = len(self._runs.all) - 1
        return _event("content_block_start", index=index, content_block=block)

    def _delta(self, text: str) -> bytes:
        """A piece of the last block. Written by hand, as most of what is sent."""
        runs = self._runs.all
        kind, key = _DELTAS[runs[-1].channel]
        return (
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
            f'{len(runs) - 1},"delta":{{"type":"{kind}","{key}":{json.dumps(text)}}}}}\n\n'
        ).encode()

    def _stop_block(self) -> bytes:
        """The end of the last block, if there is one."""
        runs = self._runs.all
        if not runs:
            return b""
        index, last = len(runs) - 1, b""
        if runs[-1].call is not None and not runs[-1].texts:
            last = self._delta("{}")
        if runs[-1].channel == "reasoning":
            delta = {"type": "signature_delta", "signature": _SIGNATURE}
            last = _event("content_block_delta", index=index, delta=delta)
        return last + _event("content_block_stop", index=index)


def failure_body(failure: Failure) -> dict[str, Any]:
    """In Anthropic's shape. Agents look for one kind that it does not know: in the words, too."""
    usual = "api_error" if failure.status >= 500 else "invalid_request_error"
    kind = _KINDS.get(failure.status, usual)
    is_special = failure.kind == "exceed_context_size_error"
    words = f"{failure.kind}: {failure.message}" if is_special else failure.message
    return {"type": "error", "error": {"type": kind, "message": words} | dict(failure.extra)}


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_NO_USAGE = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}
_SIGNATURE = "kimi-offload"  # there must be one; nothing is signed
_EMPTY: dict[Channel, dict[str, Any]] = {
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
    "content": {"type": "text", "text": ""},
    "tool_call": {"type": "tool_use"},
}
_DELTAS: dict[Channel, tuple[str, str]] = {
    "reasoning": ("thinking_delta", "thinking"),
    "content": ("text_delta", "text"),
    "tool_call": ("input_json_delta", "partial_json"),
}


def _call_id() -> str:
    """The model's own ids have characters that are not allowed; histories are numbered anew."""
    return f"toolu_{token_hex(12)}"


def _block(run: Run) -> dict[str, Any]:
    if run.channel == "reasoning":
        return {"type": "thinking", "thinking": run.text, "signature": _SIGNATURE}
    if run.call is None:
        return {"type": "text", "text": run.text}
    call = {"type": "tool_use", "id": _call_id(), "name": run.call.name}
    return {**call, "input": _arguments(run.text)}


def _arguments(text: str) -> dict[str, Any]:
    """What a call was given; Anthropic's own shape where it is no object, or was cut short."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _stop(runs: list[Run], ended: Ended) -> tuple[StopReason, str | None]:
    """Why it has ended, and the stop string that was met."""
    if ended.stats.finish_reason == "length":
        return "max_tokens", None
    if any(run.call for run in runs):
        return "tool_use", None
    stop = ended.stats.stop_string
    return "end_turn" if stop is None else "stop_sequence", stop


def _usage(ended: Ended) -> dict[str, Any]:
    """Tokens; those of the prompt that were computed apart from those that were cached."""
    stats = ended.stats
    return {
        "input_tokens": stats.prompt_tokens - stats.reused_tokens,
        "cache_read_input_tokens": stats.reused_tokens,
        "output_tokens": ended.n_tokens,
        "output_tokens_details": {"thinking_tokens": ended.n_reasoning},
    }


def _event(type: str, **fields: Any) -> bytes:
    data = json.dumps({"type": type, **fields}, separators=(",", ":"))
    return f"event: {type}\ndata: {data}\n\n".encode()
