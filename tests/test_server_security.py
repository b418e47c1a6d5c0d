"""Who may ask, and what is refused before the model hears of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from server_client import Running, request, running
from starlette.testclient import TestClient

from offload.server import limits, listening
from offload.server.app import make_app
from offload.server.errors import Failure
from offload.server.host import Host
from offload.server.security import Rules


def client(rules: Rules | None = None, host: str = "localhost:8080") -> TestClient:
    """Of a server whose model is still being loaded: what gets through is answered by 503."""
    app = make_app(Host("m", parallel=1, queue=1), rules or Rules())
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False)


def post(on: TestClient, **headers: str) -> int:
    return on.post("/v1/chat/completions", json={}, headers=headers).status_code


def test_only_our_own_names_are_hosts() -> None:
    for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST.:1"):
        assert post(client(host=host)) == 503
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.7"):
        assert post(client(host=host)) == 403
        assert client(host=host).get("/health").status_code == 403
    assert post(client(Rules(names=("kimi.lan",)), host="kimi.lan:80")) == 503
    everywhere = Rules(host="0.0.0.0", keys=("k",))
    assert post(client(everywhere, host="10.0.0.7"), authorization="Bearer k") == 503
    assert post(client(everywhere, host="evil.example"), authorization="Bearer k") == 403


def test_pages_of_other_places_may_not_ask() -> None:
    assert post(client(), origin="http://localhost:8080") == 503
    for origin in ("http://evil.example", "http://localhost:3000", "null", "file://"):
        assert post(client(), origin=origin) == 403


def test_cors_is_off_unless_asked_for() -> None:
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    path = "/v1/chat/completions"
    assert client().options(path, headers=asked).status_code == 403
    allowed = client(Rules(origins=("http://localhost:3000",)))
    assert post(allowed, origin="http://evil.example") == 403
    preflight = allowed.options(path, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    answer = allowed.post(path, json={}, headers={"origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.status_code == 503  # which the page can read, too
    assert "access-control-allow-origin" not in client().get("/health").headers


def test_a_key_opens() -> None:
    locked = client(Rules(keys=("secret", "other")))
    for headers in (
        {"authorization": "Bearer secret"},
        {"authorization": "bearer other"},
        {"x-api-key": "secret"},
    ):
        assert post(locked, **headers) == 503
    for headers in ({}, {"authorization": "Basic secret"}, {"x-api-key": "secre"}):
        refused = locked.post("/v1/chat/completions", json={}, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        assert refused.headers["www-authenticate"] == "Bearer"
    assert locked.get("/v1/models").status_code == 401
    assert locked.get("/slots").status_code == 401
    assert locked.get("/health").status_code == 503  # it is loading


def test_a_key_beyond_ascii_opens_in_either_coding() -> None:
    on = client(Rules(keys=("clé",)))
    for coding in ("utf-8", "latin-1"):
        key = "Bearer clé".encode(coding)
        assert on.get("/v1/models", headers={b"authorization": key}).status_code == 503
    for wrong in ("Bearer cl?", "Bearer clê"):
        key = wrong.encode("latin-1")
        assert on.get("/v1/models", headers={b"authorization": key}).status_code == 401


def test_bodies_are_json_by_their_type() -> None:
    on = client()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        headers = {"content-type": kind}
        answer = on.post("/v1/chat/completions", content=b"{}", headers=headers)
        assert answer.status_code == 415, kind
    for kind in (
        "application/json; charset=utf-8",
        'Application/JSON; version=1; charset="UTF-8"; x=y',
        "application/vnd.api+json",
    ):
        headers = {"content-type": kind}
        answer = on.post("/v1/chat/completions", content=b"\xef\xbb\xbf{}", headers=headers)
        assert answer.status_code == 503, kind
    for other in (
        {"content-type": "application/json;charset=utf-16"},
        {"content-encoding": "gzip"},
    ):
        answer = on.post(
            "/v1/chat/completions",
            content=b"{}",
            headers={"content-type": "application/json"} | other,
        )
        assert answer.status_code == 415, other


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1} x',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_json_that_is_none_is_refused(data: bytes) -> None:
    answer = client().post(
        "/v1/chat/completions", content=data, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_number_of_too_many_digits_is_refused_in_plain_words() -> None:
    answer = client().post(
        "/v1/chat/completions",
        content=b'{"seed": ' + b"9" * 5000 + b"}",
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert "a number has 5,000 digits" in answer.json()["error"]["message"]


def test_large_bodies_are_refused_by_their_length_and_by_what_comes() -> None:
    on, most = client(), limits.BODY_BYTES
    headers = {"content-type": "application/json"}
    declared = on.post(
        "/v1/chat/completions", content=b"{}", headers={**headers, "content-length": str(most + 1)}
    )
    assert declared.status_code == 413
    pieces = (b" " * (1 << 20) for _ in range((most >> 20) + 2))
    assert on.post("/v1/chat/completions", content=pieces, headers=headers).status_code == 413


def test_loading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("m", parallel=1, queue=1)
    host.loading = cast(Any, SimpleNamespace(phase="copy", done_bytes=3, total_bytes=9))
    on = TestClient(make_app(host, Rules()), base_url="http://localhost")
    health = on.get("/health")
    assert health.status_code == 503
    assert health.json()["progress"] == {"phase": "copy", "done": 3, "total": 9}
    models = on.get("/v1/models")
    assert models.status_code == 503
    assert models.headers["retry-after"] == "2"
    assert on.get("/metrics").status_code == 200


def test_a_bug_is_one_answer_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Failure:
        raise ValueError("/home/me/secret.gguf")

    monkeypatch.setattr("offload.server.models.Models._model", broken)
    with running(parallel=1) as server:
        answer = server.client.get("/v1/models")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "ValueError" in answer.json()["error"]["message"]
        assert server.chat(max_tokens=2).status_code == 200


# --- liars, on raw sockets


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "HEAD_SECONDS", 0.5)
        patch.setattr(limits, "BODY_SECONDS", 0.5)
        with running(parallel=1) as server:
            yield server


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/x\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        request(b"{}").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"zz\r\n",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_nonsense_is_refused_and_closed(server: Running, data: bytes) -> None:
    head, _, body = server.raw(data).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] in (b"400", b"431")
    assert json.loads(body)["error"]["code"] == 400


def test_half_a_head_is_waited_for_only_so_long(server: Running) -> None:
    for data in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc"):
        began = time.monotonic()
        assert server.raw(data) == b""
        assert 0.3 < time.monotonic() - began < 5
    # after a whole request on the same connection
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not sock.recv(65536).endswith(b"}"):
            pass
        sock.sendall(b"GET /hea")
        assert sock.recv(65536) == b""


def test_half_a_body_is_waited_for_only_so_long(server: Running) -> None:
    lie = request(b"{}").replace(b"Content-Length: 2", b"Content-Length: 200")
    answer = server.raw(lie)
    assert b" 408 " in answer.split(b"\r\n")[0]


def test_a_shorter_length_than_the_body_breaks_only_its_own_connection(server: Running) -> None:
    lie = request(b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}')
    lie = lie.replace(b"Content-Length: 6", b"Content-Length: 1")
    with server.connect() as sock:
        sock.sendall(lie)
        assert sock.recv(65536).startswith(b"HTTP/1.1 400")
    assert server.chat(max_tokens=2).status_code == 200
