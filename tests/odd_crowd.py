"""Clients that lie, stall, cancel and reset, and some honest ones among them."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from server_client import HI, read_answer, request

ASKED = {"messages": HI, "max_tokens": 20}
LONG = {"messages": HI, "max_tokens": 1500, "temperature": 2.0, "stream": True}
LONGS = (  # of each protocol
    request(LONG),
    request({"prompt": "Hi", "max_tokens": 1500, "stream": True}, "/v1/completions"),
    request({"messages": HI, "max_tokens": 1500, "stream": True}, "/v1/messages"),
    request({"input": "Hi", "max_output_tokens": 1500, "stream": True}, "/v1/responses"),
    request({"messages": HI, "max_tokens": 1500}, "/v1/messages"),
)
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
NONSENSE = (
    b"\x00\xff" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",  # no Host
    b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    HEAD + b"Content-Length: -5\r\n\r\n{}",
    HEAD + b"Content-Length: 9\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Content-Length: 99999999999\r\n\r\n{}",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc",
    HEAD + b"Content-Length: 12\r\n\r\n" + b'{"messages":' + b"x",
)

Act = Callable[[socket.socket, random.Random], str]


def _silent(sock: socket.socket, dice: random.Random) -> str:
    time.sleep(dice.random() * 2)
    return "left"


def _half_head(sock: socket.socket, dice: random.Random) -> str:
    whole = request(ASKED)
    sock.sendall(whole[: dice.randrange(1, whole.index(b"\r\n\r\n") + 4)])
    return _silent(sock, dice)


def _short_body(sock: socket.socket, dice: random.Random) -> str:
    """Content-Length promises more."""
    whole = request(ASKED)
    sock.sendall(whole[: dice.randrange(whole.index(b"\r\n\r\n") + 4, len(whole))])
    return _silent(sock, dice)


def _long_body(sock: socket.socket, dice: random.Random) -> str:
    """What is beyond Content-Length is no request."""
    sock.sendall(request(ASKED) + b"}}}} more of it\r\n\r\n")
    return _taken(sock, dice)


def _slow_body(sock: socket.socket, dice: random.Random) -> str:
    whole = request(ASKED)
    for at in range(0, len(whole), 40):
        sock.sendall(whole[at : at + 40])
        time.sleep(dice.random() * 0.2)
    return _outcome(read_answer(sock, is_stream=False))


def _honest(sock: socket.socket, dice: random.Random) -> str:
    is_stream = dice.random() < 0.5
    sock.sendall(request(ASKED | {"stream": is_stream, "seed": dice.randrange(1000)}))
    return _outcome(read_answer(sock, is_stream=is_stream))


def _cancelled(sock: socket.socket, dice: random.Random) -> str:
    sock.sendall(dice.choice(LONGS))
    time.sleep(dice.random())
    sock.recv(dice.choice((1, 1000, 50_000)))
    return "left"


def _reset(sock: socket.socket, dice: random.Random) -> str:
    sock.sendall(dice.choice(LONGS))
    time.sleep(dice.random() * 0.5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def _stalled(sock: socket.socket, dice: random.Random) -> str:
    """It takes nothing of its answer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(request(LONG | {"logprobs": True, "top_logprobs": 20}))
    time.sleep(dice.random() * 4)
    return "left"


def _half_closed(sock: socket.socket, dice: random.Random) -> str:
    sock.sendall(dice.choice(LONGS))
    sock.shutdown(socket.SHUT_WR)
    return _taken(sock, dice)


def _nonsense(sock: socket.socket, dice: random.Random) -> str:
    sock.sendall(dice.choice(NONSENSE))
    return _taken(sock, dice)


def _taken(sock: socket.socket, dice: random.Random) -> str:
    """Whatever comes, for a moment."""
    sock.settimeout(dice.random() * 3 + 0.1)
    with contextlib.suppress(TimeoutError):
        while sock.recv(65536):
            pass
    return "left"


def _outcome(answer: bytes) -> str:
    status = answer[9:12].decode()
    return {"200": "served", "429": "refused"}.get(status, f"status {status}")


ACTS: Mapping[str, Act] = MappingProxyType(
    {act.__name__: act for act in (
        _silent, _half_head, _short_body, _long_body, _slow_body, _honest, _cancelled, _reset,
        _stalled, _half_closed, _nonsense,
    )}
)  # fmt: skip
WAITING = ("_slow_body", "_honest")  # whose answers must come whole


def run_crowd(port: int, count: int, seed: int) -> Counter[str]:
    """All at once; how many were served, refused and left, and what went wrong with whom."""
    outcomes: Counter[str] = Counter()
    names = [list(ACTS)[number % len(ACTS)] for number in range(count)]

    def act(number: int, name: str) -> None:
        dice = random.Random(seed * 10_000 + number)
        time.sleep(dice.random())
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                outcomes[ACTS[name](sock, dice)] += 1
        except Exception as exc:
            # a server may close on whoever lies
            is_fine = isinstance(exc, OSError) and name not in WAITING
            outcomes["left" if is_fine else f"{name}: {exc!r}"] += 1

    threads = [threading.Thread(target=act, args=one) for one in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
