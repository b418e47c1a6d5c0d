"""The application: which path is answered by what, behind the rules of security.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from offload.server import anthropic, openai_chat, openai_text, responses
from offload.server.anthropic_reply import failure_body
from offload.server.ask import Ask
from offload.server.errors import Failure
from offload.server.host import Host
from offload.server.limits import Body, is_quick, read_body
from offload.server.machine import Machine
from offload.server.models import Models
from offload.server.page import page_routes
from offload.server.sampling import with_defaults
from offload.server.security import Guarded, Rules
from offload.server.sse import Answering
from offload.server.unmet import with_unmet

MESSAGES = "/v1/messages"

Endpoint = Callable[[Request], Awaitable[Any]]


def make_app(host: Host, rules: Rules) -> ASGIApp:
    """The whole application of one host."""
    routes = _routes(host, has_keys=bool(rules.keys))

    def methods(path: str) -> str:
        scope = {"type": "http", "path": path, "method": "", "root_path": ""}
        found = {
            m for r in routes if r.matches(scope)[0] is not Match.NONE for m in r.methods or ()
        }
        return ", ".join(sorted({*found, "OPTIONS"})) if found else ""

    router = Router(routes, redirect_slashes=False, default=_nowhere)
    app = Guarded(router, rules, shape=shape, methods=methods)
    if not rules.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(rules.origins),
        allow_methods=["GET", "POST", "OPTIONS", "DELETE"],
        allow_headers=["*"],
    )


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


def shape(path: str, failure: Failure) -> dict[str, Any]:
    """The body of a failure, in the shape of the path's protocol."""
    is_anthropic = path == MESSAGES or path.startswith(f"{MESSAGES}/")
    return failure_body(failure) if is_anthropic else failure.openai()


def _routes(host: Host, *, has_keys: bool) -> list[Route]:
    models = Models(host, has_keys=has_keys)

    def chat(body: Body) -> Ask:
        return openai_chat.read(body, host.name, host.engine.tokenizer)

    def text(body: Body) -> Ask:
        return openai_text.read(body, host.name, host.engine.tokenizer)

    def messages(body: Body) -> Ask:
        return anthropic.read(body, host.name)

    def response(body: Body) -> Ask:
        return responses.read(body, host.name, host.engine.tokenizer)

    return [
        *page_routes(),
        *Machine(host).routes(),
        Route("/health", models.health),
        Route("/v1/health", models.health),
        Route("/v1/models", models.models),
        Route("/models", models.models),
        Route("/v1/models/{name:path}", models.model),
        Route("/props", models.props),
        Route("/v1/props", models.props),
        Route("/slots", models.slots),
        Route("/metrics", models.metrics),
        Route("/openapi.json", models.openapi),
        _post("/tokenize", models.tokenize),
        _post("/detokenize", models.detokenize),
        _post("/v1/chat/completions", asking(host, chat)),
        _post("/chat/completions", asking(host, chat)),
        _post("/v1/completions", asking(host, text)),
        _post("/completions", asking(host, text)),
        _post(MESSAGES, asking(host, messages)),
        _post(f"{MESSAGES}/count_tokens", anthropic.counting(lambda: host.engine)),
        _post("/v1/responses", asking(host, response)),
        _post("/responses", asking(host, response)),
    ]


def _post(path: str, endpoint: Endpoint) -> Route:
    return Route(path, endpoint, methods=["POST"])


def asking(host: Host, read: Callable[[Body], Ask]) -> Endpoint:
    """The endpoint of a protocol: a body is read, asked at the desk, and answered."""

    async def endpoint(request: Request) -> Answering:
        body = with_defaults(await read_body(request), host.defaults)
        desk = host.desk
        ask = read(body)
        is_here = host.engine.tokenizer.is_immediate and is_quick(request, body)
        ticket = await desk.ask(with_unmet(ask.starts, body), name=ask.name, is_quick=is_here)
        return Answering(ticket, ask.reply, stream=ask.is_stream, n_running=desk.n_running)

    return endpoint
