"""What a request may hold, and its body as JSON: what does not fit is refused with the numbers."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from offload.server.errors import refused
from offload.tokenizer import clean_text

BODY_BYTES = 32 << 20
BODY_SECONDS = 60.0  # until all of it must have come
INLINE_BYTES = 64 << 10  # a body up to this is parsed in the event loop
QUICK_BYTES = 4 << 10
DIGITS = 400  # of a number: JavaScript's largest has 309
DEPTH = 100  # of JSON in JSON
MESSAGES = 10_000
TOOLS = 1_000
STOPS = 64  # strings that end an answer, or that no repeat reaches across
STOP_CHARACTERS = 1_024
BIASES = 300  # tokens whose logits one request changes
CHOICES = 16  # answers of one request

_MOST = {"messages": MESSAGES, "tools": TOOLS, "input": MESSAGES, "logit_bias": BIASES}
_SLOW = (
    "tools",
    "response_format",
    "text",
    "output_config",
    "output_format",
    "dry_multiplier",
    "n",
)
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")

Body = dict[str, Any]


async def read_body(request: Request) -> Body:
    """The JSON object of a request; FailureError."""
    data = await _read_bytes(request)
    if len(data) <= INLINE_BYTES:
        return _parse(data)
    return await asyncio.to_thread(_parse, data)


def is_quick(request: Request, body: Body) -> bool:
    """Whether a prompt is made within a millisecond: a short one, with no grammar and no masks."""
    declared = request.headers.get("content-length", "")
    is_short = declared.isdigit() and len(declared) < 5 and int(declared) <= QUICK_BYTES
    return is_short and not any(body.get(name) for name in _SLOW)


async def _read_bytes(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and len(declared) < 20 and int(declared) > BODY_BYTES:
        raise _too_large(int(declared))
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                data += piece
                if len(data) > BODY_BYTES:
                    raise _too_large(len(data))
    except TimeoutError as exc:
        raise refused(
            f"the body did not come within {BODY_SECONDS:g} s", status=408, connection="close"
        ) from exc
    except ClientDisconnect as exc:
        raise refused("the client has gone") from exc
    return bytes(data)


def _too_large(n: int) -> Exception:
    return refused(
        f"the body has {n:,} bytes or more; at most {BODY_BYTES:,} are read",
        status=413,
        connection="close",
    )


def _parse(data: bytes) -> Body:
    if not data.strip():
        raise refused("the body is empty; a JSON object is needed")
    try:
        body = json.loads(
            data.decode("utf-8").removeprefix("\ufeff"),  # programs of Windows begin with it
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole_number,
            object_pairs_hook=_no_duplicates,
        )
    except UnicodeDecodeError as exc:
        raise refused(f"the body is not UTF-8: byte {exc.start:,} is {data[exc.start]:#x}") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        raise refused(f"the body is no valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise refused(f"the body is a JSON {_kind(body)}; an object is needed")
    _check_depth(body)
    return _whole(body) if _HALVES.search(data) else body


def _whole(value: Any) -> Any:
    """A JSON value with U+FFFD for each half of a character, as programs leave that cut texts."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(inner) for key, inner in value.items()}
    return value


def _kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _whole_number(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text):,} digits; at most {DIGITS} are read")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {name[:40]!r} is there twice in one object")
    return made


def _check_depth(body: Body) -> None:
    level: list[Any] = [body]
    for _ in range(DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise _too_deep()


def _containers(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return (one for one in inner if isinstance(one, dict | list))


def _too_deep() -> Exception:
    return refused(f"the JSON is nested too deeply; at most {DEPTH} levels are read")


def check_counts(body: Body) -> None:
    """FailureError where there is more of something than is read."""
    for name, most in _MOST.items():
        value = body.get(name)
        if isinstance(value, list | dict) and len(value) > most:
            what = "tokens in logit_bias" if name == "logit_bias" else name
            raise refused(f"{len(value):,} {what}; at most {most:,} are read", param=name)
    for name in ("stop", "stop_sequences", "dry_sequence_breakers"):
        texts = body.get(name)
        if not isinstance(texts, list):
            texts = [texts]
        if len(texts) > STOPS:
            raise refused(f"{len(texts):,} strings in {name}; at most {STOPS} are read", param=name)
        longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        if longest > STOP_CHARACTERS:
            raise refused(
                f"{name} has a string of {longest:,} characters; at most {STOP_CHARACTERS:,} are "
                "read",
                param=name,
            )
