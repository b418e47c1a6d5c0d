"""A small server for the page: answers by script, a machine of K2.5's shape. `python -m` serves it.

The last message of the user chooses the script: see SCRIPTS.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from offload.server.page import page_routes

LAYERS, EXPERTS = 60, 384
MARKDOWN = r"""## Routing in one layer

The router scores **all** experts and keeps the `top_k` best:

$$ p_e = \sigma(h \cdot w_e + b_e), \qquad y = \sum_{e \in \mathrm{top}_k} \hat p_e \, E_e(h) $$

| tier | latency | size |
|---|---:|:---:|
| VRAM | 1 µs | 24 GB |
| RAM | 100 ns | 384 GB |
| disk | 80 µs | 2 TB |

1. *hot* experts stay in VRAM,
2. warm ones in RAM, with \(n = 384\) of them per layer,
3. the rest is [read from disk](https://example.org/disk).

```python
def route(h: Array, w: Array, k: int) -> tuple[Array, Array]:
    scores = sigmoid(h @ w.T)  # (T, E)
    best = np.argpartition(-scores, k)[:, :k]
    return best, scores[best] / scores[best].sum()
```

> A miss costs a copy; a hit costs nothing.
"""
UNSAFE = (
    'Hi <img src=x onerror="window.pwned=1"> <script>window.pwned=1</script> '
    "[link](javascript:window.pwned=1) ![picture](https://example.org/p.png) "
    "$\\href{javascript:window.pwned=1}{x}$ [site](https://example.org)"
)
ENDS = {"full": "length"}
REASONING = "The user asks about routing. I compare tiers by latency, then show the formula. " * 3


class Fake:
    """What it was asked, and how it answers now."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.health: dict[str, Any] = {"status": "ok"}
        self.refusals: list[Response] = []  # given away first
        self.cut = 0  # answers that ended with the connection
        self.pause = 0.002  # seconds between two tokens
        self.thinking = "switch"  # what the model can
        self.is_reading = False  # whether a slot of /machine reads a prompt
        self.began = time.time()
        self.rng = np.random.default_rng(7)
        self.popular = self.rng.dirichlet(np.full(EXPERTS, 0.25), LAYERS)
        self.uses = np.zeros((LAYERS, EXPERTS), np.int64)
        order = np.argsort(-self.popular, axis=1)
        self.vram, self.ram = (np.zeros((LAYERS, EXPERTS), bool) for _ in range(2))
        for row, (vram, ram) in enumerate(zip(self.vram, self.ram, strict=True)):
            vram[order[row, :48]] = True
            ram[order[row, 30:230]] = True

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *page_routes(),
                Route("/health", self.get_health),
                Route("/props", self.get_props),
                Route("/machine", self.get_machine),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    async def get_health(self, _: Request) -> Response:
        return JSONResponse(self.health, 200 if self.health["status"] == "ok" else 503)

    async def get_props(self, _: Request) -> Response:
        return JSONResponse({"thinking": self.thinking})

    async def chat(self, request: Request) -> Response:
        if self.refusals:
            return self.refusals.pop(0)
        body = await request.json()
        self.bodies.append(body)
        return StreamingResponse(self.events(body), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        asked = body["messages"][-1]["content"]
        whole = False
        try:
            yield b": queued 2\n\n"
            await asyncio.sleep(self.pause * 20)
            if "break" in asked:
                yield delta({"content": "Half an"})
                yield frame(
                    {"error": {"code": 500, "type": "server_error", "message": "It broke."}}
                )
                return
            n = reasoning = 0
            for piece in script(asked, body.get("chat_template_kwargs", {}).get("thinking", True)):
                yield delta(piece)
                n += 1
                reasoning += "reasoning_content" in piece
                made = {"index": 0, "tokens": n, "reasoning": reasoning}
                yield frame({"choices": [], "answer_progress": made})
                await asyncio.sleep(self.pause)
            yield delta({}, "tool_calls" if "weather" in asked else ENDS.get(asked, "stop"))
            warned = (
                {"warnings": ["the answer has filled the context (context_length_exceeded)"]}
                if asked == "full"
                else {}
            )
            yield frame({"choices": [], "usage": usage(n), "timings": timings(n)} | warned)
            yield b"data: [DONE]\n\n"
            whole = True
        finally:
            self.cut += not whole

    async def get_machine(self, request: Request) -> Response:
        drawn = self.rng.random((LAYERS, EXPERTS)) < np.minimum(1, self.popular * 24)
        self.uses += drawn
        return JSONResponse(machine(self))


def script(asked: str, thinking: bool) -> Iterator[dict[str, Any]]:
    """The deltas of an answer."""
    if thinking:
        for word in REASONING.split(" "):
            yield {"reasoning_content": word + " "}
    if "weather" in asked:
        name = {"id": "functions.weather:0", "index": 0, "type": "function"}
        yield {"tool_calls": [name | {"function": {"name": "weather", "arguments": ""}}]}
        for text in ('{"city"', ': "Berlin"}'):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        return
    answer = {"unsafe": UNSAFE, "long": "word " * 5000, "markdown": MARKDOWN}.get(
        asked.split()[0] if asked.split() else "", f"You said: {asked}."
    )
    for at in range(0, len(answer), 5):
        yield {"content": answer[at : at + 5]}


def usage(n: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 1204, "completion_tokens": n, "total_tokens": 1204 + n,
        "prompt_tokens_details": {"cached_tokens": 1180},
        "completion_tokens_details": {"reasoning_tokens": 42},
    }  # fmt: skip


def timings(n: int) -> dict[str, Any]:
    return {
        "cache_n": 1180, "prompt_n": 24, "prompt_ms": 310.0, "prompt_per_second": 77.4,
        "predicted_n": n, "predicted_ms": n * 92.0, "predicted_per_second": 10.87,
    }  # fmt: skip


def frame(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def delta(piece: dict[str, Any], finish: str | None = None) -> bytes:
    return frame({"choices": [{"index": 0, "delta": piece, "finish_reason": finish}]})


def machine(fake: Fake) -> dict[str, Any]:
    """As `offload.server.machine` tells it."""
    uptime = time.time() - fake.began
    rows = 60 + int(uptime * 11)
    gb = 10**9
    asked = fake.uses.sum(axis=1)
    hits = (fake.uses * fake.vram).sum(axis=1)
    block = [
        ("embedding", 1.2, "cpu", "ram", "one row per token"),
        ("attention", 9.8, "cuda:0", "vram", "the densest part: every token reads all of it"),
        ("dense", 0.4, "cuda:0", "vram", "read whole by every token"),
        ("router", 0.3, "cuda:0", "vram", "read whole by every token"),
        ("shared", 2.5, "cuda:0", "vram", "read whole by every token"),
        ("routed", 224.0, "cpu", "disk", "larger than what is free of RAM"),
        ("head", 1.2, "cuda:0", "vram", "read whole by every token"),
    ]
    return {
        "version": "0.1.0",
        "uptime": uptime,
        "model": {
            "name": "Kimi-K2.5", "architecture": "deepseek2", "layers": 61, "experts": EXPERTS,
            "experts_per_token": 8, "context": 65536, "trained_context": 262144,
            "weight_bytes": int(239.4 * gb),
        },
        "tokens": {"decoded": rows, "prompt": 0},
        "tiers": [
            {"tier": "vram", "predicted": 9.1 * gb, "bytes": 8.9 * gb * rows, "latest": None},
            {"tier": "slots", "predicted": 3.9 * gb, "bytes": 3.6 * gb * rows, "latest": None},
            {"tier": "disk", "predicted": 0.6 * gb, "bytes": 0.9 * gb * rows, "latest": None},
        ],
        "check": {
            "source": "rates: measured on 2026-11-20", "compared_tokens": 412,
            "predicted_tps": 11.9, "measured_tps": 10.87,
            "parts": [
                {"part": "attention", "predicted": 0.0121, "measured": 0.0126},
                {"part": "experts", "predicted": 0.0655, "measured": 0.0731},
                {"part": "router", "predicted": 0.0019, "measured": 0.0021},
                {"part": "head", "predicted": 0.0016, "measured": 0.0016},
                {"part": "rest", "predicted": 0.0029, "measured": 0.0026},
            ],
            "missing": None,
            "why": "experts took 7.6 ms longer than predicted: 61% of experts hit where 68% were"
            " expected, and the disk gave 5.10 GB/s where the profile has 6.20",
        },
        "experts": {
            "layers": list(range(1, LAYERS + 1)), "per_layer": EXPERTS, "home": "disk",
            "width": 16, "uses": base64.b64encode(fake.uses.astype("<u2").tobytes()).decode(),
            "vram": packed(fake.vram), "slots": packed(fake.ram & ~fake.vram),
            "hits": hits.tolist(), "misses": (asked - hits).tolist(), "loads": 1800, "asked": rows,
        },
        "parallel": 4,
        "slots": [
            slot(0, 0, "answering", 1204, 1204, 1180, rows % 900, 6.1),
            slot(1, 0, "reading", 8192, 4096, 0, 0, 0.0)
            if fake.is_reading
            else slot(1, 0, "answering", 8192, 8192, 0, rows % 700, 4.9),
            slot(-1, 1, "queued", 310, 0, 0, 0, 0.0),
        ],
        "memory": {
            "process": int(203.1 * gb), "swapped": 0, "available": int(38.0 * gb),
            "total": int(256 * gb), "kv": int(4.6 * gb), "vram_taken": int(22.1 * gb),
            "vram_total": int(24.0 * gb), "gpu": "NVIDIA GeForce RTX 4090",
        },
        "plan": {
            "rows": [
                {"name": name, "bytes": int(size * gb), "device": device, "tier": tier, "why": why}
                for name, size, device, tier, why in block
            ],
            "notes": ["16 threads: one per core", "context 65,536: as asked"],
        },
        "off": [{"what": "packed experts", "why": "no packed layout for IQ2_XXS"}],
    }  # fmt: skip


def slot(number: int, position: int, state: str, *counts: float) -> dict[str, Any]:
    names = ("prompt_tokens", "read", "reused", "tokens", "tps")
    said = dict(zip(names, counts, strict=True))
    return {
        "number": number,
        "position": position,
        "state": state,
        "name": "",
        "seconds": 1.0,
    } | said


def packed(bits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(bits, axis=1).tobytes()).decode()


@contextlib.contextmanager
def serving(app: Starlette, port: int = 0) -> Iterator[str]:
    """Its address, while it serves in a thread."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


if __name__ == "__main__":
    with serving(Fake().app(), 8090) as address:
        print(address)
        threading.Event().wait()
