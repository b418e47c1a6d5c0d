"""Failure: an error as a client gets it, whatever protocol it speaks. No path is ever in one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offload.errors import ContextError, DeviceError, OffloadError, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """status: of HTTP. kind: OpenAI's `type`. code: OpenAI's, None: the status. extra: its fields.

    headers: of the response, beside those that every one has.
    """

    status: int
    kind: str
    message: str
    code: int | str | None = None
    param: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        code = self.status if self.code is None else self.code
        error = {"code": code, "type": self.kind, "message": self.message, "param": self.param}
        return {"error": error | dict(self.extra)}


class FailureError(Exception):
    """Ends a request with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refused(
    message: str, *, status: int = 400, param: str | None = None, **headers: str
) -> FailureError:
    """The client's fault. headers: with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return FailureError(
        Failure(
            status=status,
            kind="invalid_request_error",
            message=message,
            param=param,
            headers=named,
        )
    )


def busy(n_waiting: int, seconds: int) -> FailureError:
    """The queue is full; seconds: after which it may be less so."""
    return FailureError(
        Failure(
            status=429,
            kind="rate_limit_error",
            message=f"the server is busy: {n_waiting} requests wait already; try again in "
            f"{seconds} s, or start it with a longer --queue or more --parallel",
            headers={"retry-after": str(seconds)},
        )
    )


def unavailable(message: str, seconds: int) -> FailureError:
    """The server loads its model, or ends."""
    return FailureError(
        Failure(
            status=503,
            kind="unavailable_error",
            message=message,
            headers={"retry-after": str(seconds)},
        )
    )


def failure_of(exc: BaseException) -> Failure:
    """What a client is told of an exception; what is not its own fault is logged."""
    if isinstance(exc, FailureError):
        return exc.failure
    if isinstance(exc, ContextError):
        return _overflow(exc)
    if isinstance(exc, RequestError):
        return Failure(status=400, kind="invalid_request_error", message=str(exc))
    if isinstance(exc, OffloadError):
        log.error("%s: %s", type(exc).__name__, exc)
        what = "a device failed" if isinstance(exc, DeviceError) else "the model cannot go on"
        return Failure(
            status=500, kind="server_error", message=f"{what}; the server's log has the reason"
        )
    if isinstance(exc, MemoryError):
        log.error("out of memory: %s", exc)
        return Failure(status=500, kind="server_error", message="out of memory; ask for less")
    log.error("this is a bug in kimi-offload", exc_info=exc)
    return Failure(
        status=500,
        kind="server_error",
        message=f"this is a bug in kimi-offload ({type(exc).__name__}); the server's log has more",
    )


def _overflow(exc: ContextError) -> Failure:
    """In the words by which agents recognise that they have to shorten a conversation."""
    return Failure(
        status=400,
        kind="exceed_context_size_error",
        message=f"the request ({exc.n_prompt} tokens) exceeds the available context size "
        f"({exc.n_ctx} tokens): context_length_exceeded; prompt is too long: {exc.n_prompt} tokens "
        f"> {exc.n_ctx} maximum; shorten it or start the server with a larger --context",
        extra={"n_prompt_tokens": exc.n_prompt, "n_ctx": exc.n_ctx},
    )
