"""A conversation as the caller gives it: the OpenAI message shape, checked once, here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from offload.arguments import shown
from offload.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

_KEYS = frozenset(
    {"role", "content", "name", "reasoning_content", "reasoning", "tool_calls", "tool_call_id"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the assistant made. `arguments` is JSON text, printed as it is."""

    name: str
    arguments: str = "{}"
    id: str | None = None

    def __post_init__(self) -> None:
        for key in ("name", "arguments", "id"):
            value = getattr(self, key)
            if not isinstance(value, str) and (value is not None or key != "id"):
                raise RequestError(f"a tool call's {key} must be a string, not {shown(value)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `content` is printed verbatim: nothing is trimmed."""

    role: Role
    content: str = ""
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise RequestError(f"role {shown(self.role)} is none of {', '.join(ROLES)}.")
        for key in ("content", "name", "reasoning_content", "tool_call_id"):
            value = getattr(self, key)
            if not isinstance(value, str) and (value is not None or key == "content"):
                raise RequestError(f"{key} must be a string, not {type(value).__name__}.")
        calls = self.tool_calls
        if not isinstance(calls, tuple) or not all(isinstance(call, ToolCall) for call in calls):
            raise RequestError(f"tool_calls must be a tuple of ToolCall, not {shown(calls)}.")
        if self.tool_calls and self.role != "assistant":
            raise RequestError(f"only the assistant calls tools, not the {self.role}.")


def read_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages out of OpenAI-style dicts (or Messages as they are).

    content may be a string, None, or a list of text parts, which are joined bare. The role
    `developer` means system. Raises RequestError that names the message by its number from 1.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise RequestError(
            "messages must be a list of messages such as {'role': 'user', 'content': 'Hi'}."
        )
    result: list[Message] = []
    for number, message in enumerate(messages, 1):
        if isinstance(message, Message):
            result.append(message)
            continue
        try:
            if not isinstance(message, Mapping):
                raise RequestError(f"it is a {type(message).__name__}, not a mapping.")
            result.append(_read(message))
        except RequestError as exc:
            raise RequestError(f"message {number}: {exc}") from exc
    if not result:
        raise RequestError("there are no messages; give at least one from the user.")
    return result


def _read(message: Mapping[str, Any]) -> Message:
    # what clients echo without meaning it (refusal: null, annotations: []) is empty
    unknown = [key for key in message if key not in _KEYS and not _is_empty(message[key])]
    if unknown:
        first = shown(min(unknown, key=shown))
        raise RequestError(f"unknown field {first}; the fields are {', '.join(sorted(_KEYS))}.")
    if "role" not in message:
        raise RequestError(f"the role is missing; it is one of {', '.join(ROLES)}.")
    role = message["role"]
    reasoning = message.get("reasoning_content")
    return Message(
        role=cast(Role, "system" if isinstance(role, str) and role == "developer" else role),
        content=_content(message.get("content")),
        name=message.get("name"),
        reasoning_content=message.get("reasoning") if reasoning is None else reasoning,
        tool_calls=_tool_calls(message.get("tool_calls")),
        tool_call_id=message.get("tool_call_id"),
    )


def _is_empty(value: object) -> bool:
    return value is None or value is False or (isinstance(value, Sized) and len(value) == 0)


def _content(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"content must be a string or a list, not {type(content).__name__}.")
    texts: list[str] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping) and isinstance(kind, str) and kind == "text":
            text = part.get("text")
        if not isinstance(text, str):
            raise RequestError(
                f"content part {shown(kind)} is not text; this version reads only text."
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: object) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, (list, tuple)):
        raise RequestError(f"tool_calls must be a list, not {shown(calls)}.")
    return tuple(_tool_call(call) for call in calls)


def _tool_call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(name, str) or not name:
        raise RequestError(
            "a tool call must look like {'id': ..., 'function': {'name': ..., 'arguments': ...}}."
        )
    assert isinstance(function, Mapping)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        try:
            arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise RequestError(f"a tool call's arguments cannot be written as JSON: {exc}") from exc
    return ToolCall(name=name, arguments=arguments or "{}", id=call.get("id"))
