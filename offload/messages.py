"""A conversation as the caller gives it: the OpenAI message shape, checked once, here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from offload.arguments import quoted
from offload.errors import RequestError, shown

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

# what stands for a part that this version cannot read, by the part's type
_UNREAD = {
    "image": "[image: this version cannot see images]",
    "image_url": "[image: this version cannot see images]",
    "input_image": "[image: this version cannot see images]",
}
_TEXT_KEYS = ("text", "refusal")  # of a part
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")  # types of parts that are no content


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
                raise RequestError(f"a tool call's {key} must be a string, not {quoted(value)}.")


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
            raise RequestError(f"role {quoted(self.role)} is none of {', '.join(ROLES)}.")
        for key in ("content", "name", "reasoning_content", "tool_call_id"):
            value = getattr(self, key)
            if not isinstance(value, str) and (value is not None or key == "content"):
                raise RequestError(f"{key} must be a string, not {type(value).__name__}.")
        calls = self.tool_calls
        if not isinstance(calls, tuple) or not all(isinstance(call, ToolCall) for call in calls):
            raise RequestError(f"tool_calls must be a tuple of ToolCall, not {quoted(calls)}.")
        if self.tool_calls and self.role != "assistant":
            raise RequestError(f"only the assistant calls tools, not the {self.role}.")


def read_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages out of OpenAI-style dicts (or Messages as they are).

    content may be a string, None, or a list of parts: texts are joined bare, for each image stands
    a note. The role `developer` means system. `reasoning` and `reasoning_details` count where
    reasoning_content is missing; other unknown keys are ignored. Raises RequestError that names
    the message by its number from 1.
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
    if "role" not in message:
        raise RequestError(f"the role is missing; it is one of {', '.join(ROLES)}.")
    role = message["role"]
    is_old = isinstance(role, str) and role == "function"
    if is_old or message.get("function_call") is not None:
        raise RequestError(
            "the role function and function_call are the old form of tools; send tool_calls, and "
            "results in the role tool."
        )
    return Message(
        role=cast(Role, "system" if isinstance(role, str) and role == "developer" else role),
        content=_content(message.get("content")),
        name=message.get("name"),
        reasoning_content=_reasoning(message),
        tool_calls=_tool_calls(message.get("tool_calls")),
        tool_call_id=message.get("tool_call_id"),
    )


def _reasoning(message: Mapping[str, Any]) -> Any:
    """What is given of it, in the order of its names; details may be encrypted and say nothing."""
    given = [message.get(key) for key in ("reasoning_content", "reasoning")]
    given.append(_thoughts(message.get("reasoning_details")))
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        given.append(_thoughts([one for one in content if _is_thought(one)]))
    return next(
        (one for one in given if one is not None and not (isinstance(one, str) and not one)), None
    )


def _thoughts(parts: object) -> str | None:
    given = parts if isinstance(parts, (list, tuple)) else ()
    said = [one for one in given if isinstance(one, Mapping)]
    texts = [one.get("text") or one.get("thinking") or one.get("summary") for one in said]
    return "".join(text for text in texts if isinstance(text, str)) or None


def _is_thought(part: object) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind in _THOUGHTS


def _content(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"content must be a string or a list, not {type(content).__name__}.")
    text, is_note = "", False
    for part in content:
        if _is_thought(part):
            continue
        was_note, (said, is_note) = is_note, _part(part)
        text += ("\n" if text and (was_note or is_note) else "") + said
    return text


def _part(part: object) -> tuple[str, bool]:
    """The text of one part of a content; whether it is a note on what cannot be read."""
    if isinstance(part, str):
        return part, False
    if not isinstance(part, Mapping):
        raise RequestError(f"a content part is a {type(part).__name__}, not a mapping.")
    kind = part.get("type", "text")
    given = next((part[key] for key in _TEXT_KEYS if key in part), None)
    if isinstance(given, str):
        return given, False
    if isinstance(kind, str) and kind in ("text", "input_text", "output_text", "refusal"):
        if given is None:
            return "", False
        raise RequestError(f"the text of a content part must be a string, not {quoted(given)}.")
    unread = _UNREAD.get(kind) if isinstance(kind, str) else None
    return unread or f"[{shown(kind, 40)}: this version reads only text]", True


def _tool_calls(calls: object) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, (list, tuple)):
        raise RequestError(f"tool_calls must be a list, not {quoted(calls)}.")
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
    if isinstance(arguments, str):
        arguments = unwrapped(arguments)
    else:
        try:
            arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise RequestError(f"a tool call's arguments cannot be written as JSON: {exc}") from exc
    return ToolCall(name=name, arguments=arguments or "{}", id=call.get("id"))


def unwrapped(arguments: str) -> str:
    """The JSON object inside a JSON string, where arguments are one; else `arguments`."""
    if not arguments.lstrip().startswith('"'):
        return arguments
    try:
        inner = json.loads(arguments)
        return inner if isinstance(json.loads(inner), dict) else arguments
    except (ValueError, TypeError, RecursionError):
        return arguments
