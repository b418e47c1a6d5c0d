"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from offload.engine import Engine
from offload.errors import ContextError
from offload.server.anthropic_body import chat_body
from offload.server.anthropic_reply import MessageReply
from offload.server.ask import Ask, chat_start
from offload.server.desk import Start
from offload.server.limits import Body, check_counts, read_body
from offload.server.sampling import read_flag, read_sampling, read_wishes


def read(body: Body, model: str) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    return Ask(
        starts=[_start(body)],
        reply=MessageReply(model),
        is_stream=read_flag(body, "stream"),
        name="messages",
    )


def counting(engine: Callable[[], Engine]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that says how many tokens of a prompt a request would have."""

    async def endpoint(request: Request) -> Response:
        body = await read_body(request)
        n_tokens = await asyncio.to_thread(_count, engine(), _start(body))
        return JSONResponse({"input_tokens": n_tokens})

    return endpoint


def _start(body: Body) -> Start:
    check_counts(body)
    chat = chat_body(body)
    return chat_start(chat["messages"], read_wishes(chat), read_sampling(chat))


def _count(engine: Engine, start: Start) -> int:
    """Of a prompt that need not fit into the context."""
    try:
        answer = start(engine, lambda _: None)
    except ContextError as exc:
        return exc.n_prompt
    answer.close()
    return answer.stats.prompt_tokens
