"""Streaming clients of `serve_bench`, in a process of their own: bytes first, then a look at them.

python -m offload.bench.serve_client PORT PATH <bodies as a JSON list >figures as a JSON list
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offload.errors import OffloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One answer. first, last: seconds of time.monotonic when its first and last bytes came."""

    tokens: int
    first: float
    last: float


def run_streams(port: int, path: str, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    """Ask for all at once, in a process of its own, and take what comes."""
    command = [sys.executable, "-m", "offload.bench.serve_client", str(port), path]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True)
    if done.returncode:
        raise OffloadError(f"the clients' process failed: {done.stderr.strip()[-500:]}")
    return [Stream(**figures) for figures in json.loads(done.stdout)]


def first_byte(port: int, body: dict[str, Any], *, stays: bool = True) -> float:
    """Seconds from a request to the first byte of its headers. stays: for the answer, too."""
    with socket.create_connection(("127.0.0.1", port)) as one:
        request = post("/v1/completions", body)
        began = time.perf_counter()
        one.sendall(request)
        one.recv(1)
        seconds = time.perf_counter() - began
        while stays and one.recv(1 << 16):
            pass
    return seconds


def post(path: str, body: dict[str, Any]) -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def _take(port: int, path: str, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    selector = selectors.DefaultSelector()
    got: dict[int, list[tuple[float, bytes]]] = {}
    for number, body in enumerate(bodies):
        one = socket.create_connection(("127.0.0.1", port))
        one.sendall(post(path, body))
        got[number] = []
        selector.register(one, selectors.EVENT_READ, number)
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 16)
            if data:
                got[key.data].append((time.monotonic(), data))
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    return [_figures(pieces) for pieces in got.values()]


def _figures(pieces: list[tuple[float, bytes]]) -> Stream:
    """Of one stream: tokens by its usage, else by its chunks; first and last text."""
    times, usage, chunks, rest = [], None, 0, b""
    for at, data in pieces:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise OffloadError(f"the server says: {event['error']}")
            usage = event.get("usage") or usage
            if any(choice.get("text") for choice in event.get("choices", ())):
                chunks += 1
                times.append(at)
    if not times:
        raise OffloadError(f"no text came: {b''.join(data for _, data in pieces)[:300]!r}")
    tokens = usage["completion_tokens"] if usage else chunks
    return Stream(tokens=tokens, first=times[0], last=times[-1])


def main() -> int:
    """The command in the module's docstring."""
    streams = _take(int(sys.argv[1]), sys.argv[2], json.loads(sys.stdin.read()))
    sys.stdout.write(json.dumps([asdict(stream) for stream in streams]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
