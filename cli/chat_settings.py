"""/set: the flags of `run` about answers, changed during a chat, and read as the flags are."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import click

from cli._options import (
    REPLY_NAMES,
    SAMPLING_NAMES,
    reply_options,
    sampling_options,
    take_reply,
    take_sampling,
)

NAMES = (*SAMPLING_NAMES, *REPLY_NAMES)


@cache
def _command() -> click.Command:
    @click.command("set")
    @sampling_options
    @reply_options
    def nothing(**_: Any) -> None: ...

    return nothing


def _parameter(name: str) -> click.Parameter:
    return next(p for p in _command().params if p.name == name)


def change(given: Mapping[str, Any], name: str, value: str) -> dict[str, Any]:
    """The fields that were set after `/set name value`; "default" resets one.

    A list of several texts is written as JSON, and so is a text with escapes: "\\n". Raises
    RequestError for a value that is not allowed.
    """
    changed = {key: old for key, old in given.items() if key != name}
    if value.lower() == "default":
        return changed
    return changed | _read(name, value)


def split(text: str) -> tuple[str, str]:
    """Name and value ("" where there is none) of NAME VALUE or NAME=VALUE.

    Raises RequestError for an unknown name.
    """
    from offload.errors import RequestError

    left, separator, right = text.partition("=")
    if not separator or len(left.split()) != 1:
        left, _, right = text.partition(" ")
    name = left.strip().lower().lstrip("-").replace("-", "_")
    if name == "dry_sequence_breaker":
        name = "dry_sequence_breakers"
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise RequestError(f"there is no setting {name!r}; {advice}")
    return name, right.strip()


def _read(name: str, value: str) -> dict[str, Any]:
    """The field as its flag reads it, checked as the engine will; {} if it means the default."""
    import offload
    from offload.errors import RequestError

    parameter = _parameter(name)
    given: Any = _texts(value) if parameter.multiple else _text(value)
    context = click.Context(_command())
    try:
        value_read = parameter.type_cast_value(context, given)
        if name in REPLY_NAMES:
            return take_reply(dict.fromkeys(REPLY_NAMES) | {name: value_read})
        read = take_sampling(dict.fromkeys(SAMPLING_NAMES) | {name: value_read})
        offload.SamplingParams.from_options(read)
    except click.ClickException as exc:
        raise RequestError(f"{name}: {exc.message}") from exc
    return read


def _text(value: str) -> str:
    """A value as typed, or a JSON string."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        read = _json(value)
        if isinstance(read, str):
            return read
    return value


def _texts(value: str) -> tuple[str, ...]:
    """One value, or a JSON list of them."""
    if value.startswith("["):
        read = _json(value)
        if isinstance(read, list) and all(isinstance(part, str) for part in read):
            return tuple(read)
    return (_text(value),)


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def in_lines(given: Mapping[str, Any], names: tuple[str, ...] = NAMES) -> str:
    """A line for each field: its value, or that it is the default."""
    width = max(map(len, names))
    lines = []
    for name in names:
        value = given.get(name)
        text = "default" if value is None else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name:<{width}}  {text}")
    return "\n".join(lines)
