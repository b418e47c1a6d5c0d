"""Under stress: the queue, clients that leave, answers that fail, the end."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from metrics import odd_sums, read_metrics
from server_client import END, HI, Running, read_answer, request, running

from offload.engine import Engine
from offload.server.desk import Desk
from offload.steps import Steps

LONG = {"messages": HI, "stream": True, "max_tokens": 1500, "temperature": 2.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(parallel=2, queue=4) as server:
        yield server


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass takes 20 ms more."""
    step = Steps.step

    def slowly(self: Steps) -> None:
        time.sleep(0.02)
        step(self)

    monkeypatch.setattr(Steps, "step", slowly)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.005)


def states(server: Running) -> list[str]:
    return [view.state for view in server.host.desk.snapshot()]


def asked(server: Running, **body: Any) -> socket.socket:
    """A connection with a stream whose first bytes have come."""
    sock = server.connect()
    sock.sendall(request(LONG | body))
    assert sock.recv(4096, socket.MSG_PEEK).startswith(b"HTTP/1.1 200")
    return sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        piece = sock.recv(65536)
        assert piece, got[-300:]
        got += piece
    return got


@pytest.mark.usefixtures("slow")
def test_a_full_queue_refuses_and_tells_when_to_come_again(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        socks = []
        for n in range(1, 7):  # one after the other, so that each one's place is known
            socks.append(stack.enter_context(asked(server)))
            wait_for(lambda n=n: len(states(server)) == n)
        wait_for(lambda: states(server).count("queued") == 4)
        refused = server.chat(max_tokens=2)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        slots = server.client.get("/slots").json()
        assert [slot["position"] for slot in slots if slot["id"] < 0] == [1, 2, 3, 4]
        # the last one hears how it gets on as those before it leave
        read_until(socks[5], b": queued 4\n")
        socks[0].close()
        read_until(socks[5], b": queued 3\n")
        socks[3].close()
        read_until(socks[5], b": queued 2\n")
    wait_for(lambda: not states(server))
    assert server.chat(max_tokens=2).status_code == 200
    assert server.chat(max_tokens=2, n=7).status_code == 400


@pytest.mark.usefixtures("slow")
def test_a_client_that_leaves_takes_nobody_with_it(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        stays = stack.enter_context(asked(server, max_tokens=25, seed=1, temperature=1.0))
        leaves = stack.enter_context(asked(server))
        queued = [stack.enter_context(asked(server)) for _ in range(2)]
        wait_for(lambda: states(server).count("queued") == 2)
        queued[0].close()
        wait_for(lambda: states(server).count("queued") == 1)
        leaves.close()
        wait_for(lambda: states(server).count("queued") == 0)
        queued[1].close()
        whole = read_until(stays, b"[DONE]")
        assert b'"finish_reason":"length"' in whole
    wait_for(lambda: not states(server))


@pytest.mark.usefixtures("slow")
def test_metrics_add_up_whoever_leaves_and_whatever_is_refused(server: Running) -> None:
    before = read_metrics(server.client)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(asked(server)) for _ in range(4)]
        wait_for(lambda: states(server).count("queued") == 2)
        for sock in reversed(socks):  # those that wait go first
            sock.close()
        wait_for(lambda: not states(server))
    assert server.chat(max_tokens=2).status_code == 200
    assert server.chat(temperature=-7).status_code == 400
    after = read_metrics(server.client)
    assert not odd_sums(server.client)
    assert after["requests_total"] - before["requests_total"] == 5
    assert after["request_end_total"] - before["request_end_total"] == 5
    assert server.chat(max_tokens=2, n=3).status_code == 200
    wait_for(lambda: not states(server))
    assert not odd_sums(server.client)


def test_leaving_ends_the_reading_of_a_prompt(server: Running) -> None:
    passes: list[int] = []
    model = server.host.engine._steps.model
    forward = model.forward

    def slowly(batch: Any, check: Callable[[], None]) -> Any:
        def slow_check() -> None:
            time.sleep(0.1)
            passes.append(1)
            check()

        return forward(batch, slow_check)

    model.forward = slowly  # type: ignore[method-assign]
    try:
        prompt = [{"role": "user", "content": "one two three " * 300}]
        sock = asked(server, messages=prompt)
        wait_for(lambda: len(passes) >= 1)
        sock.close()
        wait_for(lambda: not states(server))
        assert len(passes) < 8
    finally:
        model.forward = forward  # type: ignore[method-assign]


def test_a_short_prompt_is_made_without_another_thread(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = Desk._make

    def noted(self: Desk, *arguments: Any) -> None:
        made.append(threading.current_thread().name)
        make(self, *arguments)

    monkeypatch.setattr(Desk, "_make", noted)
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    for body in ({}, {"tools": [tool]}, {"messages": [{"role": "user", "content": "so " * 1500}]}):
        assert server.chat(max_tokens=1, **body).status_code == 200
    # nor would the loop wait for the process that other vocabularies have
    monkeypatch.setattr(type(server.host.engine.tokenizer), "is_immediate", False)
    assert server.chat(max_tokens=1).status_code == 200
    assert [name.startswith("prompt") for name in made] == [False, True, True, True]


def test_short_requests_pass_a_long_prompt(server: Running) -> None:
    long = [{"role": "user", "content": "one two three " * 350}]
    done: list[str] = []

    def ask(name: str, messages: list[dict[str, str]], tokens: int) -> None:
        assert server.chat(messages=messages, max_tokens=tokens).status_code == 200
        done.append(name)

    first = threading.Thread(target=ask, args=("long", long, 200))
    first.start()
    wait_for(lambda: "reading" in states(server) or "answering" in states(server))
    ask("short", HI, 3)
    first.join()
    assert done == ["short", "long"]


def test_an_answer_that_fails_leaves_the_others(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Engine) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError("/secret/path")

    with asked(server) as sock:
        monkeypatch.setattr(Engine, "step", broken)
        last = read_until(sock, END)
        assert b"ZeroDivisionError" in last
        assert b"secret" not in last
        assert b"[DONE]" not in last
    assert server.chat(max_tokens=2).status_code == 200


@pytest.mark.usefixtures("slow")
def test_a_bug_at_the_desk_ends_answers_and_not_the_desk(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Steps, sequence: object) -> bool:
        monkeypatch.undo()
        raise ZeroDivisionError

    with asked(server) as sock:
        wait_for(lambda: "answering" in states(server))
        monkeypatch.setattr(Steps, "has_room", broken)
        assert server.chat(max_tokens=2).status_code == 500
        assert b"ZeroDivisionError" in read_until(sock, END)
    assert server.chat(max_tokens=2).status_code == 200
    assert not states(server)


@pytest.mark.usefixtures("slow")
def test_a_client_that_sends_more_and_leaves_is_noticed(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(request({"messages": HI, "max_tokens": 1500}) + b"GET /health HTTP/1.1\r\n")
        wait_for(lambda: "answering" in states(server))
    wait_for(lambda: not states(server), seconds=2)
    with server.connect() as sock:  # one that is answered gets its second answer, too
        sock.sendall(request({"messages": HI, "max_tokens": 2}) * 2)
        assert read_answer(sock, is_stream=False).startswith(b"HTTP/1.1 200")
        assert read_answer(sock, is_stream=False).startswith(b"HTTP/1.1 200")


def test_a_reader_that_stalls_holds_up_nobody(server: Running) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request(LONG | {"logprobs": True, "top_logprobs": 20}))
        wait_for(lambda: "answering" in states(server))
        for _ in range(3):
            assert server.chat(max_tokens=5).status_code == 200
    wait_for(lambda: not states(server))


def test_requests_with_random_ends_lose_none(server: Running) -> None:
    dice = random.Random(7)
    sock: socket.socket | None = None
    served = 0
    for _ in range(200):
        sock = sock or server.connect()
        is_stream, tokens = dice.random() < 0.5, dice.choice((1, 2, 5, 40))
        sock.sendall(request({"messages": HI, "max_tokens": tokens, "stream": is_stream}))
        if dice.random() < 0.6:
            assert read_answer(sock, is_stream=is_stream).startswith(b"HTTP/1.1 200")
            served += 1
        else:
            if dice.random() < 0.7:
                sock.recv(dice.choice((1, 100, 5000)))
            sock.close()
            sock = None
    if sock is not None:
        sock.close()
    assert served > 60
    wait_for(lambda: not states(server))
    assert server.host.desk.n_open == 0
    assert server.chat(max_tokens=2).status_code == 200


def test_a_crowd_that_lies_and_stalls_does_no_harm(server: Running) -> None:
    dice = random.Random(11)
    whole = request({"messages": HI, "max_tokens": 30, "stream": True})
    lies = (
        b"",
        whole[:40],
        whole[:-20],
        whole,
        whole + whole,
        whole.replace(b"Content-Length: ", b"Content-Length: 1"),
        b"\x00\xff" * 100,
        whole.replace(b'"max_tokens": 30', b'"max_tokens":-1'),
    )
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(server.connect()) for _ in range(200)]
        for sock in crowd:
            with contextlib.suppress(OSError):
                sock.sendall(dice.choice(lies))
                if dice.random() < 0.3:
                    sock.close()
        assert server.client.get("/health").status_code == 200
    wait_for(lambda: server.chat(max_tokens=2).status_code == 200)
    wait_for(lambda: not server.host.desk.n_open)


@pytest.mark.usefixtures("slow")
def test_the_end_waits_for_answers_but_not_for_ever() -> None:
    with running(parallel=1, drain_seconds=20) as server, asked(server, max_tokens=30) as sock:
        server.service.stop()
        wait_for(lambda: server.host.desk.is_draining)
        assert server.client.get("/health").status_code == 503
        assert server.chat().status_code == 503
        read_until(sock, b"[DONE]")
    assert server.outcome == [True]
    with running(parallel=1, drain_seconds=0.2) as server, asked(server) as sock:
        server.service.stop()
        assert b"shutting down" in read_until(sock, END)
    assert server.outcome == [False]
