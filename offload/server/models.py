"""What there is: the model, its properties, health, slots; and its tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from offload.arguments import quoted, whole
from offload.sampling_params import defaults_for
from offload.server.errors import refused
from offload.server.host import Host
from offload.server.limits import Body, read_body
from offload.server.openapi import description
from offload.server.sampling import read_flag
from offload.tokenizer import TextPart, Tokenizer, checked_ids
from offload.version import __version__


class Models:
    """The endpoints that look at a host. has_keys: whether they need a key."""

    def __init__(self, host: Host, *, has_keys: bool) -> None:
        self._host = host
        self._has_keys = has_keys

    async def health(self, request: Request) -> Response:
        """GET /health: 200, or 503 with the progress of loading."""
        host = self._host
        if host.is_ready:
            status = "draining" if host.desk.is_draining else "ok"
            return JSONResponse({"status": status}, 503 if host.desk.is_draining else 200)
        news = host.loading
        told = None
        if news is not None:
            told = {"phase": news.phase, "done": news.done_bytes, "total": news.total_bytes}
        return JSONResponse(
            {"status": "loading model", "progress": told}, 503, {"retry-after": "2"}
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        model = self._model()
        only = {"has_more": False, "first_id": model["id"], "last_id": model["id"]}  # Anthropic's
        return JSONResponse(
            {"object": "list", "data": [model], "models": [self._for_codex()], **only}
        )

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        if request.path_params["name"] != self._host.name:
            raise refused(f"the model here is {self._host.name}", status=404)
        return JSONResponse(self._model())

    async def props(self, request: Request) -> Response:
        """GET /props, as llama.cpp has it."""
        host, engine = self._host, self._host.engine
        defaults = defaults_for(engine.format.name, thinking=engine.format.thinking_mode != "none")
        return JSONResponse(
            {
                "default_generation_settings": {
                    "n_ctx": engine.plan.kv.context,  # of each slot
                    "params": dataclasses.asdict(defaults),
                },
                "total_slots": host.parallel,
                "model_alias": host.name,
                "chat_format": engine.format.name,
                "chat_template": engine.tokenizer.chat_template or "",
                "thinking": engine.format.thinking_mode,
                "modalities": {"vision": False, "audio": False},
                "build_info": f"kimi-offload {__version__}",
                "is_sleeping": False,
            }
        )

    async def slots(self, request: Request) -> Response:
        """GET /slots: an entry per slot, then one per answer that waits."""
        desk, context = self._host.desk, self._host.engine.plan.kv.context
        views = desk.snapshot()
        running = {view.number: view for view in views if view.number >= 0}
        told: list[dict[str, Any]] = []
        for number in range(desk.parallel):
            view = running.get(number)
            slot = {"id": number, "n_ctx": context, "is_processing": view is not None}
            told.append(slot | ({"state": "idle"} if view is None else dataclasses.asdict(view)))
        for view in views:
            if view.number < 0:
                waits = {"id": -1, "n_ctx": context, "is_processing": False}
                told.append(waits | dataclasses.asdict(view))
        return JSONResponse(told)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._host.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        n_vocab = self._host.engine.tokenizer.n_vocab
        return JSONResponse(description(n_vocab, has_keys=self._has_keys))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize {content, add_special, parse_special, with_pieces}."""
        body = await read_body(request)
        return await asyncio.to_thread(_tokens, self._host.engine.tokenizer, body)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize {tokens}."""
        body = await read_body(request)
        return await asyncio.to_thread(_text, self._host.engine.tokenizer, body)

    def _model(self) -> Body:
        host, engine = self._host, self._host.engine
        context, config = engine.plan.kv.context, engine.config
        return {
            "id": host.name,
            "object": "model",
            "created": int(host.since),
            "owned_by": "kimi-offload",
            "type": "model",  # this and the next two are Anthropic's
            "display_name": host.name,
            "created_at": datetime.fromtimestamp(int(host.since), UTC).isoformat(),
            "max_model_len": context,
            "meta": {
                "n_ctx": context,  # of each slot
                "n_ctx_train": config.context_length,
                "n_vocab": config.vocab_size,
                "n_embd": config.hidden_size,
                "n_slots": host.parallel,
            },
        }

    def _for_codex(self) -> Body:
        """An entry of the list that Codex reads."""
        host, context = self._host, self._host.engine.plan.kv.context
        return {
            "slug": host.name,
            "name": host.name,
            "model": host.name,
            "display_name": host.name,
            "context_window": context,
            "max_context_window": context,
        }


def _tokens(tokenizer: Tokenizer, body: Body) -> Response:
    content = body.get("content")
    if not isinstance(content, str):
        raise refused(f"content must be a string, not {quoted(content)}", param="content")
    special = body.get("parse_special") is None or read_flag(body, "parse_special")
    ids = tokenizer.encode_parts([TextPart(content, special)])
    if read_flag(body, "add_special") and tokenizer.bos_id is not None and tokenizer.add_bos:
        ids = [tokenizer.bos_id, *ids]
    tokens: list[Any] = ids
    if read_flag(body, "with_pieces"):
        tokens = [{"id": i, "piece": _piece(tokenizer.token_bytes(i))} for i in ids]
    return JSONResponse({"tokens": tokens})


def _text(tokenizer: Tokenizer, body: Body) -> Response:
    tokens = body.get("tokens")
    if not isinstance(tokens, list):
        raise refused(f"tokens must be a list of ids, not {quoted(tokens)}", param="tokens")
    ids = [token if (number := whole(token)) is None else number for token in tokens]
    return JSONResponse({"content": tokenizer.decode(checked_ids(ids, tokenizer.n_vocab))})


def _piece(data: bytes) -> str | list[int]:
    """Its text, or its bytes where they are none by themselves."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)
