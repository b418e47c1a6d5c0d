"""What the two OpenAI protocols with chunks have in common: frame, end, usage, errors."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offload.server.errors import Failure
from offload.server.events import Ended, Event, Making, Reading
from offload.server.limits import Body
from offload.server.sampling import read_flag
from offload.server.sse import Said, data_line
from offload.server.usage import extras, usage
from offload.speech import Token

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """prefix: of ids. whole, chunk: the names of the two kinds of objects."""

    prefix: str
    whole: str
    chunk: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a stream tells beside the answer. usage: in a chunk of its own, else in the last one."""

    usage: bool = False
    progress: bool = False

    @classmethod
    def read(cls, body: Body) -> Told:
        """From `stream_options` and llama.cpp's `return_progress`; FailureError."""
        options = body.get("stream_options")
        return cls(
            usage=isinstance(options, dict) and options.get("include_usage") is True,
            progress=read_flag(body, "return_progress"),
        )


class OpenAIReply(ABC):
    """Chunks of a stream, or the whole object, of n answers to so many prompts."""

    keep_alive = b": keep-alive\n\n"

    def __init__(self, shape: Shape, model: str, n: int, told: Told, *, prompts: int = 1) -> None:
        self._shape = shape
        self._told = told
        self._prompts = prompts
        self._n = n
        self._ended: dict[int, Ended] = {}
        self._began = time.monotonic()
        self._fixed: Mapping[str, Any] = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        chunk = {**self._fixed, "object": shape.chunk}
        self._head = f'data: {json.dumps(chunk, separators=(",", ":"))[:-1]},"choices":['

    # --- what differs -----------------------------------------------------------------------------

    @abstractmethod
    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The first chunks."""

    @abstractmethod
    def _token(self, index: int, token: Token) -> bytes:
        """A token's chunk."""

    @abstractmethod
    def _last(self, index: int, ended: Ended) -> dict[str, Any]:
        """A choice in the last chunk of its answer."""

    @abstractmethod
    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        """A choice of the whole object."""

    # --- what does not ----------------------------------------------------------------------------

    def frame(self, index: int, event: Event) -> bytes:
        """A token's chunk; how a queue gets on; prompt and answer, where that was asked for."""
        if isinstance(event, Token):
            return self._token(index, event)
        if isinstance(event, Ended):
            self._ended[index] = event
            return self._finish(index, event)
        if isinstance(event, Reading):
            return self._progress(event) if self._told.progress else b""
        if isinstance(event, Making):
            return self._made(index, event) if self._told.progress else b""
        return f": queued {event.position}\n\n".encode()

    def end(self) -> bytes:
        """The usage, where it was asked for in a chunk without a choice, and the end mark."""
        if not self._told.usage:
            return DONE
        told = json.dumps({"usage": self._usage(), **extras(self._ended[0])})
        return f"{self._head}],{told[1:]}\n\n".encode() + DONE

    def failed(self, failure: Failure) -> bytes:
        """An event of its own; then the connection ends."""
        return data_line(failure.openai())

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        """The whole object."""
        self._ended = {i: s.ended for i, s in enumerate(said) if s.ended is not None}
        return {
            **self._fixed,
            "object": self._shape.whole,
            "choices": [self._choice(index, one) for index, one in enumerate(said)],
            "usage": self._usage(),
            **extras(self._ended[0]),
        }

    def _finish(self, index: int, ended: Ended) -> bytes:
        chunk = {
            **self._fixed,
            "object": self._shape.chunk,
            "choices": [self._last(index, ended)],
            **extras(ended),
        }
        if not self._told.usage and len(self._ended) == self._n:
            chunk["usage"] = self._usage()
        return data_line(chunk)

    def _usage(self) -> dict[str, Any]:
        ended = [self._ended[index] for index in sorted(self._ended)]
        return usage(ended, prompts=self._prompts)

    def _progress(self, event: Reading) -> bytes:
        told = {
            "total": event.total,
            "cache": event.reused,
            "processed": event.done,
            "time_ms": round((time.monotonic() - self._began) * 1e3),
        }
        return f'{self._head}],"prompt_progress":{json.dumps(told)}}}\n\n'.encode()

    def _made(self, index: int, event: Making) -> bytes:
        told = {"index": index, "tokens": event.n_tokens, "reasoning": event.n_reasoning}
        return f'{self._head}],"answer_progress":{json.dumps(told)}}}\n\n'.encode()


def finish_reason(ended: Ended, *, has_calls: bool = False) -> dict[str, str]:
    """In OpenAI's words; a call that was cut short is none. A loop is told beside it."""
    said = ended.stats.finish_reason
    reason = "length" if said == "length" else "tool_calls" if has_calls else "stop"
    loop = {"stop_reason": "loop"} if said == "loop" else {}
    return {"finish_reason": reason, **loop}
