"""From a ticket's events to a response: a stream of server-sent events, or one JSON object.

What the events look like is a protocol's (`Reply`). Here is what all of them need: headers before
the prompt is read, a sign of life at least every ten seconds, and the end of an answer whose client
has gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from offload.server.errors import Failure, FailureError
from offload.server.events import Ended, Event, Making
from offload.server.ticket import Ticket
from offload.speech import Token
from offload.stats import Channel
from offload.stream import CallHead

KEEP_ALIVE = 9.0  # seconds between two signs of life; clients count on 10
# seconds between two writes of tokens where they come fast, for each answer that runs, and at most:
# a write costs as much as a small model's token
PACE, MOST_PACE = 0.02, 0.08
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(slots=True)
class Said:
    """A whole answer, collected. calls: the arguments of each tool call, by its index."""

    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None

    def take(self, event: Event) -> None:
        """The next event."""
        if isinstance(event, Token):
            self.tokens.append(event)
        elif isinstance(event, Ended):
            self.ended = event

    def text(self, channel: Channel) -> str:
        """What was said in one channel."""
        return "".join(token.text for token in self.tokens if token.channel == channel)

    @property
    def calls(self) -> list[tuple[CallHead, str]]:
        """Tool calls, each with its arguments."""
        found: dict[int, tuple[CallHead, list[str]]] = {}
        for token in self.tokens:
            if token.call is not None:
                found.setdefault(token.call.index, (token.call, []))[1].append(token.text)
        return [(head, "".join(texts)) for head, texts in found.values()]


class Reply(Protocol):
    """How one protocol answers one request, of one answer or of several (index).

    Everything of a stream is bytes as they are sent.
    """

    @property
    def keep_alive(self) -> bytes:
        """For the client's patience."""

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The first events; prompt_tokens: of each answer."""

    def frame(self, index: int, event: Event) -> bytes:
        """The events for one of ours, often none. An Ended here has no failure."""

    def end(self) -> bytes:
        """The last events, after all answers have ended."""

    def failed(self, failure: Failure) -> bytes:
        """The last events, if something went wrong."""

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        """The body where no stream was asked for."""


class Answering:
    """The response to a request (an ASGI application, as starlette's responses are)."""

    def __init__(
        self, ticket: Ticket, reply: Reply, *, stream: bool, n_running: Callable[[], int]
    ) -> None:
        """n_running: answers that run at the moment, of all requests."""
        self._n_running = n_running
        self._ticket = ticket
        self._reply = reply
        self._is_stream = stream
        self._open = len(ticket.seats)
        self._wrote = 0.0  # tokens, at last; monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client goes or all is said."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self._is_stream:
                await self._send_stream(send)
            elif (response := await self._whole()) is not None:
                await response(scope, receive, send)
        finally:
            watch.cancel()
            self._ticket.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._ticket.close()

    async def _whole(self) -> JSONResponse | None:
        """None: the client has gone."""
        said = [Said() for _ in self._ticket.seats]
        while self._open:
            for index, event in await self._events(KEEP_ALIVE):
                if isinstance(event, Ended) and event.failure is not None:
                    raise FailureError(event.failure)
                said[index].take(event)
            if self._ticket.is_closed:
                return None
        return JSONResponse(self._reply.whole(said))

    async def _send_stream(self, send: Send) -> None:
        reply, ticket = self._reply, self._ticket
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        data, is_over = reply.begin(ticket.prompt_tokens) or reply.keep_alive, False
        told = time.monotonic()
        while not ticket.is_closed:
            if data or is_over:
                await send({"type": "http.response.body", "body": data, "more_body": not is_over})
                told = time.monotonic()
            if is_over:
                return
            data, is_over = self._frames(await self._events(told + KEEP_ALIVE - time.monotonic()))
            if not data and time.monotonic() - told >= KEEP_ALIVE:
                data = reply.keep_alive

    def _frames(self, events: list[tuple[int, Event]]) -> tuple[bytes, bool]:
        """What is sent of them; whether it is the last."""
        frames: list[bytes] = []
        for index, event in _joined(events):
            if isinstance(event, Ended) and event.failure is not None:
                return b"".join(frames) + self._reply.failed(event.failure), True
            frames.append(self._reply.frame(index, event))
        frames += [self._reply.frame(index, made) for index, made in self._made(events)]
        if not self._open:
            frames.append(self._reply.end())
        return b"".join(frames), not self._open

    def _made(self, events: list[tuple[int, Event]]) -> Iterator[tuple[int, Making]]:
        """For each answer that got on and has not ended, how far it is."""
        ended = {index for index, event in events if isinstance(event, Ended)}
        for index in {index for index, event in events if isinstance(event, Token)} - ended:
            seat = self._ticket.seats[index]
            yield index, Making(seat.n_tokens, seat.n_reasoning)

    async def _events(self, seconds: float) -> list[tuple[int, Event]]:
        events = await self._ticket.events(max(0.0, seconds))
        if not events or self._ticket.is_closed:
            return events
        pace = min(MOST_PACE, PACE * self._n_running())
        early = self._wrote + pace - time.monotonic()
        if early > 0:
            await self._ticket.pause(early)
            events += self._ticket.take()
        if isinstance(events[-1][1], Token):
            self._wrote = time.monotonic()
        self._open -= sum(isinstance(event, Ended) for _, event in events)
        return events


def _joined(events: Sequence[tuple[int, Event]]) -> Iterator[tuple[int, Event]]:
    """Tokens of one channel that go out in one write as one; those with logprobs stay apart.

    An event costs as much as a small model's token, here and in most clients.
    """
    for (index, _), run in groupby(sorted(events, key=itemgetter(0)), _run_of):
        same = [event for _, event in run]
        last = same[-1]
        if len(same) > 1 and isinstance(last, Token):
            text = "".join(event.text for event in same if isinstance(event, Token))
            last = Token(last.id, text, last.channel, last.call)
        yield index, last


def _run_of(entry: tuple[int, Event]) -> tuple[int, object]:
    """Equal for neighbours that may be one."""
    index, event = entry
    if isinstance(event, Token) and event.logprobs is None:
        return index, (event.channel, event.call)
    return index, id(event)


def data_line(body: object) -> bytes:
    """One server-sent event without a name."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
