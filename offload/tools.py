"""Tools as the caller declares them, read once, here; and how a format marks calls of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from offload.arguments import quoted
from offload.errors import RequestError, shown

_IGNORED = frozenset({"cache_control"})  # clients mark with it what to cache; it moves
_DEEPEST = 100  # levels of a schema; more is no schema for a function


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call.

    parameters: JSON schema; {} if any object will do. strict: arguments must follow it to the
    letter. given: the declaration in OpenAI's shape, keys as they came.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMarks:
    """How a call is written, as literal texts; "" is nothing.

    section_begin (call_begin id_prefix NAME [":" NUMBER] argument_begin JSON call_end)+ section_end
    with `between` from call to call. numbered: whether NUMBER, which counts the calls of the whole
    conversation from 0, is there.
    """

    section_begin: str
    call_begin: str
    id_prefix: str
    argument_begin: str
    call_end: str
    section_end: str
    between: str = ""
    numbered: bool = False


def read_tools(tools: object) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Tools out of OpenAI-style dicts, and a note on each that is left out or loosened.

    Both the shape of chat completions ({"type": "function", "function": {"name": ...}}) and the
    flat one of responses ({"type": "function", "name": ...}) will do. Other types than functions
    and repeated names are left out; parameters that are no schema become {}. RequestError only
    for what has no name to call it by.
    """
    if tools is None:
        return (), ()
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise RequestError("tools must be a list of declarations, each with a name and parameters.")
    read: dict[str, Tool] = {}
    notes: list[str] = []
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, Mapping):
            raise RequestError(f"tool {number} is a {type(tool).__name__}, not a mapping.")
        kind = tool.get("type") or "function"
        if kind != "function":
            notes.append(f"tool {number} is left out: its type is {quoted(kind)}, not 'function'")
            continue
        one = _read(number, tool, notes)
        if one.name in read:
            notes.append(f"tool {number} is left out: {quoted(one.name)} is declared already")
            continue
        read[one.name] = one
    return tuple(read.values()), tuple(notes)


def _read(number: int, tool: Mapping[str, Any], notes: list[str]) -> Tool:
    inner = tool.get("function")
    if not isinstance(inner, Mapping):
        inner = {key: value for key, value in tool.items() if key != "type"}
    function = {key: value for key, value in inner.items() if key not in _IGNORED}
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RequestError(
            f"tool {number} has no name; declare it as "
            "{'type': 'function', 'function': {'name': ..., 'parameters': ...}}."
        )
    parameters = function.get("parameters")
    problem = "" if parameters is None else _problem(parameters)
    if problem:
        notes.append(f"tool {number} ({shown(name, 60)}) takes any object: {problem}")
        function["parameters"] = parameters = {"type": "object"}
    if _problem(function):  # its other keys are not JSON
        function = {key: function[key] for key in ("name", "parameters") if key in function}
    description = function.get("description")
    return Tool(
        name=name,
        description=description if isinstance(description, str) else "",
        parameters=MappingProxyType(dict(parameters or {})),
        strict=function.get("strict") is True,
        given=MappingProxyType({"type": "function", "function": function}),
    )


def _problem(value: object) -> str:
    """Why it cannot be written as a JSON object; "" if it can."""
    if not isinstance(value, Mapping):
        return f"its parameters are {quoted(value)}, not a schema"
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [item for one in level for item in _items(one)]
    if level:
        return f"its parameters are nested deeper than {_DEEPEST} levels"
    try:
        json.dumps(value)
    except (TypeError, ValueError) as exc:
        return f"its parameters cannot be written as JSON: {shown(exc, 100)}"
    return ""


def _items(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def check_choice(choice: str | None, tools: Iterable[Tool]) -> None:
    """RequestError if a call is demanded that no tool can answer."""
    if choice is None or choice in ("auto", "none"):
        return
    if not isinstance(choice, str):
        raise RequestError(
            f"tool_choice must be 'auto', 'none', 'required' or a name, not {quoted(choice)}."
        )
    names = [tool.name for tool in tools]
    if not names:
        raise RequestError(f"tool_choice is {quoted(choice)}, but no tool can be called.")
    if choice != "required" and choice not in names:
        known = ", ".join(shown(name, 60) for name in names[:20])
        raise RequestError(f"tool_choice is {quoted(choice)}, which is none of the tools: {known}.")
