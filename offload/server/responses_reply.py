"""An answer as OpenAI's Responses API tells it: events of a stream, or one response."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any, Literal

from offload.server.errors import Failure
from offload.server.events import Ended, Event
from offload.server.openai_logprobs import chat_logprobs
from offload.server.runs import Run, Runs, shows
from offload.server.sse import Said
from offload.server.usage import extras, usage
from offload.speech import Token
from offload.stats import Channel
from offload.tokenizer import Tokenizer

Status = Literal["in_progress", "completed", "incomplete", "failed"]

# what a response repeats of its request, and what stands for null
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "prompt_cache_key": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "user": None,
}
_FIXED: Mapping[str, Any] = {
    "background": False,
    "previous_response_id": None,
    "service_tier": "default",
    "store": False,
    "truncation": "disabled",
}


class ResponseReply:
    """Items come one after another: reasoning, message, function_call as the model says them.

    Reasoning is told in clear, and as a summary too where one was asked for: then only the summary
    is streamed. body: of the request; some of its fields are repeated. tokenizer: names the tokens
    whose logprobs are told, which are those of messages; None: none are.
    """

    def __init__(
        self, model: str, body: Mapping[str, Any], tokenizer: Tokenizer | None = None
    ) -> None:
        self._base: dict[str, Any] = {
            "id": f"resp_{token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **_FIXED,
        }
        for key, default in _ECHOED.items():
            value = body.get(key)
            self._base[key] = default if value is None else value
        reasoning = body.get("reasoning")
        wanted = reasoning if isinstance(reasoning, Mapping) else {}
        self._sums_up = bool(wanted.get("summary") or wanted.get("generate_summary"))
        self._tokenizer = tokenizer
        self._early: list[dict[str, Any]] = []  # logprobs of what shows nothing before its message
        self._runs = Runs()
        self._names: list[str] = []  # of the items
        self._items: list[dict[str, Any]] = []  # that have ended
        self._head = ""  # of the deltas of the item that has not
        self._number = 0  # of the next event

    @property
    def keep_alive(self) -> bytes:
        """What changes nothing: some clients count events, not comments."""
        if len(self._items) < len(self._names):
            return self._delta("")
        return self._event("response.in_progress", response=self._response("in_progress"))

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The response without anything in it."""
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def frame(self, index: int, event: Event) -> bytes:
        """Of a token, its delta; of the end, the whole response."""
        if isinstance(event, Token):
            return self._token(event)
        if not isinstance(event, Ended):
            return b""
        status = _status(event)
        response_event = f"response.{status}"
        return self._stop_item(status) + self._event(
            response_event, response=self._response(status, event)
        )

    def end(self) -> bytes:
        """Nothing: the response is the end."""
        return b""

    def failed(self, failure: Failure) -> bytes:
        """The response as far as it came, and why no further."""
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        error = {"code": code, "message": failure.message}
        stopped = self._stop_item("incomplete")
        return stopped + self._event(
            "response.failed", response=self._response("failed") | {"error": error}
        )

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        """The response."""
        ended = said[0].ended
        assert ended is not None
        status = _status(ended)
        for token in said[0].tokens:
            self._take(token)
        runs = self._runs.all
        for run in runs:
            last = run is runs[-1]
            self._items.append(
                self._item(run, _name(run), status if last else "completed", run.text)
            )
        return self._response(status, ended)

    def _token(self, token: Token) -> bytes:
        begins = shows(token) and self._runs.begins(token)
        before = self._stop_item("completed") if begins else b""
        logprobs = self._take(token)
        begun = self._start_item() if begins else b""
        return (
            before + begun + (self._delta(token.text, logprobs) if token.text or logprobs else b"")
        )

    def _take(self, token: Token) -> list[dict[str, Any]]:
        """Count it to its run; the logprobs that are told with it."""
        told = self._early
        if self._tokenizer is not None and token.channel == "content":
            told = told + chat_logprobs(self._tokenizer, [token])["content"]
        if shows(token):
            self._runs.take(token)
        runs = self._runs.all
        if not runs or runs[-1].channel != "content":
            self._early = told
            return []
        self._early = []
        runs[-1].logprobs += told
        return told

    def _delta(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """A piece of the last item. Written by hand, as most of what is sent."""
        number, self._number = self._number, self._number + 1
        piece = json.dumps(text)
        if self._runs.all[-1].channel == "content":
            piece += f',"logprobs":{_json(list(logprobs)) if logprobs else "[]"}'
        return f'{self._head},"sequence_number":{number},"delta":{piece}}}\n\n'.encode()

    def _start_item(self) -> bytes:
        run, name = self._runs.all[-1], _name(self._runs.all[-1])
        self._names.append(name)
        kind, fields = self._form(run)
        head = {"type": f"{kind}.delta", **self._place(), **fields}
        self._head = f"event: {kind}.delta\ndata: {_json(head)[:-1]}"
        item = self._item(run, name, "in_progress", "")
        added = self._event("response.output_item.added", output_index=len(self._items), item=item)
        return added + self._part_event(run, "added", "")

    def _stop_item(self, status: Status) -> bytes:
        """The end of the last item, if there is one. status: of it."""
        if len(self._items) == len(self._names):
            return b""
        run, place = self._runs.all[-1], self._place()
        kind, fields = self._form(run)
        text, begun = run.text, b""
        if run.call is None:
            fields = {**fields, "text": text}
            if run.channel == "content":
                fields["logprobs"] = run.logprobs
        else:
            begun = b"" if run.texts else self._delta(text)
            fields = {"arguments": text, "name": run.call.name}
        done = self._event(f"{kind}.done", **place, **fields) + self._part_event(run, "done", text)
        item = self._item(run, self._names[-1], status, text)
        self._items.append(item)
        index = place["output_index"]
        return (
            begun + done + self._event("response.output_item.done", output_index=index, item=item)
        )

    def _part_event(self, run: Run, end: Literal["added", "done"], text: str) -> bytes:
        """The part of a message or of reasoning; a call has none."""
        if run.call is not None:
            return b""
        if run.channel == "reasoning" and self._sums_up:
            part = {"type": "summary_text", "text": text}
            kind = f"response.reasoning_summary_part.{end}"
            return self._event(kind, **self._place(), summary_index=0, part=part)
        kind = f"response.content_part.{end}"
        return self._event(kind, **self._place(), content_index=0, part=_part(run, text))

    def _form(self, run: Run) -> tuple[str, dict[str, Any]]:
        """How the names of its own events begin, and fields that only they have."""
        if run.call is not None:
            return "response.function_call_arguments", {}
        if run.channel == "content":
            return "response.output_text", {"content_index": 0}
        if self._sums_up:
            return "response.reasoning_summary_text", {"summary_index": 0}
        return "response.reasoning_text", {"content_index": 0}

    def _place(self) -> dict[str, Any]:
        """Of the item that has not ended."""
        return {"item_id": self._names[-1], "output_index": len(self._items)}

    def _item(self, run: Run, name: str, status: Status, text: str) -> dict[str, Any]:
        """text: "" for one that has just begun."""
        base = {"id": name, "status": status}
        if run.call is not None:
            call = {"call_id": run.call.id, "name": run.call.name, "arguments": text}
            return {"type": "function_call", **base, **call}
        parts = [_part(run, text)] if text else []
        if run.channel == "content":
            return {"type": "message", **base, "role": "assistant", "content": parts}
        summary = [{"type": "summary_text", "text": text}] if text and self._sums_up else []
        return {"type": "reasoning", **base, "summary": summary, "content": parts}

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        data = _json({"type": kind, "sequence_number": number, **fields})
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def _response(self, status: Status, ended: Ended | None = None) -> dict[str, Any]:
        """What there is of it by now."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        cost = {"usage": None} if ended is None else {"usage": _usage(ended), **extras(ended)}
        state = {"status": status, "error": None, "incomplete_details": cut}
        return {**self._base, **state, "output": list(self._items), **cost}


_IDS: dict[Channel, str] = {"reasoning": "rs", "content": "msg", "tool_call": "fc"}


def _name(run: Run) -> str:
    return f"{_IDS[run.channel]}_{token_hex(16)}"


def _part(run: Run, text: str) -> dict[str, Any]:
    if run.channel == "reasoning":
        return {"type": "reasoning_text", "text": text}
    logprobs = run.logprobs if text else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _status(ended: Ended) -> Status:
    return "incomplete" if ended.stats.finish_reason == "length" else "completed"


def _usage(ended: Ended) -> dict[str, Any]:
    told = usage([ended])
    cached = told["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": told["completion_tokens_details"],
        "total_tokens": told["total_tokens"],
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
