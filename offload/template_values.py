"""Messages and tools as templates expect them: dicts in the shape of OpenAI's requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from offload.call_ids import CallIds
from offload.messages import ROLES, Message, ToolCall
from offload.tools import Tool, is_deep

# keys and values by which a template finds its way: whatever tokens a vocabulary has, they stay
_OURS: Final = frozenset(
    {"messages", "tools", "role", "content", "name", "reasoning_content", "tool_calls", "id",
     "type", "function", "arguments", "tool_call_id", "description", "parameters", "properties",
     "required", *ROLES}
)  # fmt: skip


def as_dicts(messages: Sequence[Message], *, objects: bool) -> list[dict[str, Any]]:
    """objects: arguments of calls are objects, not JSON text. Calls without an id get one."""
    ids = CallIds()
    result: list[dict[str, Any]] = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        for key in ("name", "reasoning_content", "tool_call_id"):
            if getattr(message, key) is not None:
                one[key] = getattr(message, key)
        if message.tool_calls:
            numbered = ids.numbered(message.tool_calls)
            one["tool_calls"] = [
                {
                    "id": call.id or call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call, objects)},
                }
                for call, call_id in zip(message.tool_calls, numbered, strict=True)
            ]
        result.append(one)
    return result


def _arguments(call: ToolCall, objects: bool) -> Any:
    if not objects:
        return call.arguments
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    is_object = isinstance(value, dict) and not is_deep(value)
    return value if is_object else {"input": call.arguments}


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The same for a template that knows no tools: calls are content, results come from the user.

    Several results in a row are one message, for templates that want turns to alternate.
    """
    result: list[Message] = []
    for before, message in zip((None, *messages), messages, strict=False):
        if message.role == "tool":
            said = f"Result of {message.name or 'the tool'}:\n{message.content}"
            if before is not None and before.role == "tool":
                said = f"{result.pop().content}\n{said}"
            result.append(Message(role="user", content=said))
        elif message.tool_calls:
            calls = [f"Call of {call.name}: {call.arguments}" for call in message.tool_calls]
            said = "\n".join([message.content, *calls] if message.content else calls)
            reasoning = message.reasoning_content
            result.append(Message(role="assistant", content=said, reasoning_content=reasoning))
        else:
            result.append(message)
    return result


def declared_in_system(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The same with `tools` at the end of the first system message."""
    lines = ["## Tools", "You can call these functions:"]
    for tool in tools:
        schema = json.dumps(plain_json(tool.parameters), ensure_ascii=False)
        lines += ["", f"### {tool.name}", *([tool.description] if tool.description else ())]
        lines.append(f"Parameters: {schema}")
    said = "\n".join(lines)
    if messages[0].role != "system":
        return [Message(role="system", content=said), *messages]
    first = f"{messages[0].content}\n\n{said}" if messages[0].content else said
    return [Message(role="system", content=first, name=messages[0].name), *messages[1:]]


def plain_json(value: Any) -> Any:
    """Mappings of every kind as dicts."""
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def texts_of(value: object) -> Iterator[str]:
    """All strings in a value of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def rewritten(value: Any, change: Callable[[str], str]) -> Any:
    """The same with all strings changed, keys too, but for those of the shape itself."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if key in _OURS else change(str(key)): (
                item if key in ("role", "type") and item in _OURS else rewritten(item, change)
            )
            for key, item in value.items()
        }
    return [rewritten(item, change) for item in value] if isinstance(value, list) else value
