"""What goes out in one write of a stream: one delta for each run of tokens."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import said
from replies import kimi

from offload.server.events import Event
from offload.server.openai_chat import ChatReply
from offload.server.openai_reply import Told
from offload.server.sse import Answering
from offload.speech import Logprobs, Token


class GivenTicket:
    """Gives batches of events, each as if it had gathered between two writes."""

    is_closed = False

    def __init__(self, n: int, *batches: list[tuple[int, Event]]) -> None:
        self.seats = [SimpleNamespace(n_tokens=7, n_reasoning=2) for _ in range(n)]
        self.prompt_tokens = [3] * n
        self._batches = list(batches)

    async def events(self, seconds: float) -> list[tuple[int, Event]]:
        del seconds
        return self._batches.pop(0)

    def close(self) -> None:
        self.is_closed = True


def writes(n: int, *batches: list[tuple[int, Event]]) -> list[list[Any]]:
    """The choices of each write of a stream but the first, which has the roles."""
    chunks = [[json.loads(x) for x in body] for body in written(n, Told(), *batches)]
    return [[choice for chunk in body for choice in chunk["choices"]] for body in chunks]


def written(n: int, told: Told, *batches: list[tuple[int, Event]]) -> list[list[str]]:
    """The chunks of each write but the first."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        return await asyncio.Future()

    async def answered() -> None:
        reply = ChatReply("m", kimi(), n, told, has_logprobs=True)
        ticket: Any = GivenTicket(n, *batches)
        answering = Answering(ticket, reply, stream=True, n_running=lambda: 0)
        await answering({"type": "http"}, receive, send)

    asyncio.run(answered())
    bodies = [body.decode().split("\n\n") for body in sent]
    return [[x.removeprefix("data: ") for x in body if "choices" in x] for body in bodies[2:]]


def deltas(choices: list[Any], index: int = 0) -> list[Any]:
    return [choice["delta"] for choice in choices if choice["index"] == index]


END = said.ended("stop")


def test_tokens_of_one_write_are_one_delta_for_each_channel_and_call() -> None:
    first, second = writes(1, [(0, token) for token in said.CALLS], [(0, said.said("!")), (0, END)])
    thought, text, one, other = deltas(first)
    assert thought == {"reasoning_content": "I add, then list."}
    assert text == {"content": "One moment: …"}
    assert one["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert other["tool_calls"][0]["function"] == {"name": "list", "arguments": ""}
    assert deltas(second) == [{"content": "!"}, {}]


def test_answers_of_one_request_are_joined_apart() -> None:
    spoken = [(i % 2, said.said(text)) for i, text in enumerate("AaBbCc")]
    (only,) = writes(2, [*spoken, (0, END), (1, END)])
    assert deltas(only, 0) == [{"content": "ABC"}, {}]
    assert deltas(only, 1) == [{"content": "abc"}, {}]


def test_each_token_with_logprobs_has_a_chunk() -> None:
    tokens: list[Token] = [
        replace(said.said(text), logprobs=Logprobs(-0.5, ())) for text in ("One", " two")
    ]
    (only,) = writes(1, [*((0, token) for token in tokens), (0, END)])
    assert deltas(only) == [{"content": "One"}, {"content": " two"}, {}]
    assert [len(choice["logprobs"]["content"]) for choice in only[:-1]] == [1, 1]


def test_who_asked_for_progress_is_told_how_many_tokens_have_come() -> None:
    batches = [(0, said.said("One")), (0, said.said(" two"))], [(0, said.said("!")), (0, END)]
    first, last = written(1, Told(progress=True), *batches)
    assert len(first) == 2
    assert len(last) == 2
    assert json.loads(first[1])["choices"] == []
    assert json.loads(first[1])["answer_progress"] == {"index": 0, "tokens": 7, "reasoning": 2}
    assert "answer_progress" not in "".join(last)  # its usage says it
