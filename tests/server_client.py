"""A server in a thread, with the embedded model or a given engine, and a client of raw sockets."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

import offload
from offload.engine import Engine, Progress
from offload.server.app import make_app
from offload.server.host import Host
from offload.server.listening import Service, listen
from offload.server.security import Rules

END = b"\r\n0\r\n\r\n"  # of a stream
HI = [{"role": "user", "content": "Hi"}]


@dataclass
class Running:
    """A server that runs. port: on 127.0.0.1."""

    host: Host
    service: Service
    port: int
    client: httpx.Client
    outcome: list[object] = field(default_factory=list)  # of `Service.run`

    def chat(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"messages": HI, **body})

    def stream(self, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that ends well."""
        body = {"messages": HI, "stream": True, **body}
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def raw(self, data: bytes) -> bytes:
        """What comes back until the server closes."""
        with self.connect() as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(data)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        return got


def request(body: dict[str, Any] | bytes, path: str = "/v1/chat/completions") -> bytes:
    """A POST as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def read_answer(sock: socket.socket, *, is_stream: bool) -> bytes:
    """A whole answer, or an error's, of a connection that stays open."""
    got = b""
    while True:
        piece = sock.recv(65536)
        assert piece, got[-300:]
        got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if length is not None and len(body) == int(length[1]):
            return got
        if is_stream and got.endswith(END):
            return got


@contextlib.contextmanager
def running(
    load: Callable[[Progress], Engine] = lambda progress: offload.load(kv_tokens=8192),
    *,
    name: str = "kimi-mini",
    parallel: int = 4,
    queue: int = 16,
    rules: Rules | None = None,
    drain_seconds: float = 1.0,
) -> Iterator[Running]:
    """A server whose model is there, until the end of the block."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as sock:
        host = Host(name, parallel=parallel, queue=queue)
        app = make_app(host, rules or Rules())
        service = Service(app, host, sock, drain_seconds=drain_seconds, tell=ready.set)
        port = sock.getsockname()[1]
        outcome: list[object] = []
        thread = threading.Thread(target=lambda: outcome.append(service.run()))
        host.open(load)
        thread.start()
        try:
            assert ready.wait(120)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield Running(host, service, port, client, outcome)
        finally:
            service.stop()
            thread.join(30)
            assert not thread.is_alive()
