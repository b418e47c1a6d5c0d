"""Who may ask: Host and Origin, the key, the content type. Around the whole application.

A page of another site that a browser shows may post to a server on the same machine, and may even
read what it answers after DNS rebinding. So a request's Host must be one of ours, an Origin must be
the same place or one that was allowed, and bodies must be declared as JSON, which a browser never
sends to another origin unasked.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload.server.errors import Failure, FailureError, failure_of, refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::", "")
# what a browser loads before it can know a key, and what watches the server
OPEN = ("/", "/health", "/v1/health", "/favicon.ico")
OPEN_BELOW = "/page/"

Shape = Callable[[str, Failure], dict[str, Any]]  # the body of a failure, by path
Methods = Callable[[str], str]  # what a path answers to, "GET, HEAD"; "": there is no such path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """host: that the server listens on. names: further ones that requests may be meant for.

    keys: any of them opens; none: no key is needed. origins: of pages elsewhere, "*": all.
    """

    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()

    def check_host(self, header: str | None) -> None:
        """FailureError unless the Host header means this server."""
        name = _host_name(header or "")
        if name in {*LOOPBACK, self.host.lower(), *(n.lower() for n in self.names)}:
            return
        if self.host in ANY and (_is_address(name) or name in _own_names()):
            return
        raise refused(
            f"the request is for the host {name[:80]!r}, which is not this server; if it is, "
            "start it with --host-name NAME",
            status=403,
        )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """FailureError if it comes from a page of another place that is not allowed."""
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if origin.lower() in {f"{scheme}://{(host or '').lower()}" for scheme in ("http", "https")}:
            return
        raise refused(
            f"pages of {origin[:80]!r} may not ask this server; if they should, start it with "
            "--cors ORIGIN",
            status=403,
        )

    def check_key(self, headers: Headers) -> None:
        """FailureError unless a key is given, where one is needed."""
        if not self.keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            given.append(token.strip())
        # every pair is compared, so that time tells nothing
        fits = [_same(mine, theirs) for mine in self.keys for theirs in given]
        if not any(fits):
            raise refused_key()


def refused_key() -> FailureError:
    """401."""
    error = refused(
        "a valid API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        status=401,
        www_authenticate="Bearer",
    )
    return FailureError(replace(error.failure, kind="authentication_error"))


def _same(mine: str, theirs: str) -> bool:
    """theirs: bytes of a header as latin-1; clients send what is not ASCII so, or as UTF-8."""
    key = mine.encode()
    return hmac.compare_digest(key, theirs.encode("latin-1")) | hmac.compare_digest(
        key, theirs.encode()
    )


def _host_name(header: str) -> str:
    """Without the port and brackets, in lower case."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return header.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name}.local"}


def check_type(headers: Headers) -> None:
    """FailureError unless the body is declared as JSON."""
    given = headers.get("content-type", "")
    kind, _, rest = given.partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise refused(
            f"the content type is {given[:80]!r}; send `Content-Type: application/json`", status=415
        )
    fields = [field.strip().lower().partition("=") for field in rest.split(";")]
    charset = next((value.strip('"') for name, _, value in fields if name == "charset"), "utf-8")
    if charset not in ("", "utf-8", "utf8"):
        raise refused(f"the charset is {charset[:40]!r}; JSON is UTF-8", status=415)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise refused(f"the body is packed by {coding[:40]!r}; send it as it is", status=415)


class Guarded:
    """An application behind the rules; whatever it raises becomes an answer, and is logged."""

    def __init__(self, app: ASGIApp, rules: Rules, *, shape: Shape, methods: Methods) -> None:
        self._app = app
        self._rules = rules
        self._shape = shape
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # the router then raises what it has to say
        has_started = False

        async def watched(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            response = self._check(scope)
            await (response or self._app)(scope, receive, watched)
        except Exception as exc:
            failure = _of_http(exc, scope) if isinstance(exc, HTTPException) else failure_of(exc)
            if has_started:  # nothing can be said any more; the server closes the connection
                return
            await self._failed(failure, scope)(scope, receive, send)

    def _check(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        path, method = scope["path"], scope["method"]
        self._rules.check_host(headers.get("host"))
        self._rules.check_origin(headers.get("origin"), headers.get("host"))
        if method == "OPTIONS":
            if self._rules.origins and "access-control-request-method" in headers:
                return None  # a browser asks before it asks
            return Response(status_code=204, headers={"allow": self._methods(path)})
        if path not in OPEN and not path.startswith(OPEN_BELOW):
            self._rules.check_key(headers)
        if method == "POST" and "POST" in self._methods(path):
            check_type(headers)
        return None

    def _failed(self, failure: Failure, scope: Scope) -> Response:
        return JSONResponse(
            self._shape(scope["path"], failure), failure.status, dict(failure.headers)
        )


def _of_http(exc: HTTPException, scope: Scope) -> Failure:
    """No such path, or not with this method."""
    path, method = scope["path"][:80], scope["method"]
    message = {404: f"there is no {path}", 405: f"{path} does not answer {method}"}
    return Failure(
        status=exc.status_code,
        kind="not_found_error" if exc.status_code == 404 else "invalid_request_error",
        message=message.get(exc.status_code, exc.detail),
        headers=dict(exc.headers or {}),
    )
