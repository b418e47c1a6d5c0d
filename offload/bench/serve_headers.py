"""The first byte of headers for `serve_bench`: of a server that idles, answers, or reads."""

from __future__ import annotations

import json
import select
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator

from offload.bench.serve_client import first_byte, post, run_streams

GOAL_MS = 20.0
LONG_PROMPT = 15_000  # tokens
PROBES = 50  # requests at most while it is read, one every 50 ms
TEXT = "Now these are the generations of those that waited for a slot. "

Figures = tuple[str, dict[str, float]]  # condition, and milliseconds by name


def first_bytes(port: int, busy_body: dict[str, object]) -> Iterator[Figures]:
    """With nothing to do, and while another stream runs."""
    ask = {"prompt": "Now", "max_tokens": 1, "stream": True}
    yield "idle", _figures([first_byte(port, ask) for _ in range(20)])
    busy = threading.Thread(target=run_streams, args=(port, "/v1/completions", [busy_body]))
    busy.start()
    time.sleep(0.05)
    yield "busy", _figures([first_byte(port, ask) for _ in range(5)])
    busy.join()


def first_bytes_while_reading(port: int) -> Figures:
    """While a prompt of LONG_PROMPT tokens is read; the server's context must hold it."""
    ask = {"prompt": "Now", "max_tokens": 1, "stream": True}
    first_byte(port, ask)
    with socket.create_connection(("127.0.0.1", port)) as reading:
        body = {"prompt": _ids(port, LONG_PROMPT), "max_tokens": 1, "stream": True}
        reading.sendall(post("/v1/completions", body))
        head = b""
        while b": keep-alive\n\n" not in head:
            head += reading.recv(1 << 16)
        seconds: list[float] = []
        while len(seconds) < PROBES and not select.select([reading], [], [], 0.05)[0]:
            seconds.append(first_byte(port, ask, stays=False))
    return f"reading {LONG_PROMPT:,} tokens", _figures(seconds)


def _ids(port: int, count: int) -> list[int]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/tokenize",
        json.dumps({"content": TEXT}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        ids: list[int] = json.load(answer)["tokens"]
    return (ids * (count // len(ids) + 1))[:count]


def _figures(seconds: list[float]) -> dict[str, float]:
    in_order = sorted(1e3 * s for s in seconds)
    tail = in_order[int(0.9 * len(in_order))]
    return {"median": statistics.median(in_order), "p90": tail, "n": len(in_order)}
