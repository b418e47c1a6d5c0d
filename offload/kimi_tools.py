"""The text that declares tools to Moonshot's models.

K2 reads the caller's JSON. K2.5 and later read a TypeScript namespace, one type per function; for
a schema that has no TypeScript they read compact JSON, with all keys sorted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from offload.tools import Tool

Declaration = Literal["json", "typescript"]

_INDENT: Final = "  "
_CONSTRAINTS: Final = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_UNION: Final = {  # of a list of types
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_ENUM_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}


def declare(tools: Sequence[Tool], declaration: Declaration) -> str:
    """The body of the turn that declares `tools`."""
    if declaration == "json":
        return json.dumps([_plain(tool.given) for tool in tools], ensure_ascii=False)
    given = [_sorted(tool.given) for tool in tools]
    try:
        functions = "\n".join(_Function(one["function"]).text() for one in given)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # as the reference does: one schema without TypeScript, and all of them are JSON
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"))
    return f"# Tools\n\n## functions\nnamespace functions {{\n{functions}\n}}\n"


def _plain(value: Any) -> Any:
    """Mappings of every kind as dicts, for json."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sorted(value: Any) -> Any:
    """The same with the keys of all mappings in order."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Function:
    """One function as TypeScript; raises whatever its schema provokes.

    Texts are made in the order in which the reference reads a schema, so that `$ref` finds what it
    finds there: definitions count from the object on that holds them.
    """

    def __init__(self, function: Mapping[str, Any]) -> None:
        self._function = function
        self._definitions: dict[str, Any] = {}
        self._names_itself = False  # some `$ref` is "#"

    def text(self) -> str:
        """Interfaces, description, type."""
        properties, rest = self._members(self._function.get("parameters") or {}, "")
        taken = _braces(properties, rest, "")
        lines: list[str] = []
        if self._names_itself:
            fields = ",\n".join(text for _, _, text in properties)
            lines.append("interface parameters {" + (f"\n{fields}\n" if fields else "") + "}")
            taken = "parameters"
        for name, definition in list(self._definitions.items()):
            body = self._type(definition, "")
            lines.append(f"{_comment(definition.get('description'), '')}interface {name} {body}")
        if self._function.get("description"):
            lines.append(_comment(self._function["description"], "").removesuffix("\n"))
        return "\n".join([*lines, f"type {self._function['name']} = (_: {taken}) => any;"])

    def _members(
        self, schema: Mapping[str, Any], indent: str
    ) -> tuple[list[tuple[bool, str, str]], str | None]:
        """(is optional, name, text) of each property of an object; the type of all others."""
        self._definitions |= schema.get("$defs") or {}
        inner = indent + _INDENT
        more = schema.get("additionalProperties")
        rest = None
        if isinstance(more, bool):
            rest = "any" if more else "never"
        elif more is not None:
            rest = self._type(more, inner)
        given = schema.get("properties", {})
        required = set(schema.get("required", ()))
        members = []
        for name, one in given.items():
            optional = name not in required
            text = f"{inner}{name}{'?' if optional else ''}: {self._type(one, inner)}"
            members.append((optional, name, _comments(one, inner) + text))
        return members, rest

    def _type(self, schema: Any, indent: str) -> str:
        """What stands behind the colon."""
        if isinstance(schema, bool):
            return "any" if schema else "null"
        if not isinstance(schema, Mapping):
            raise TypeError("a schema is an object")
        kind = schema.get("type")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            return " | ".join([self._type(one, indent) for one in schema["anyOf"]])
        if "enum" in schema:
            return _enum(schema["enum"], kind)
        if isinstance(kind, list):
            return " | ".join([_UNION[one] for one in kind])
        if kind == "object":
            return _braces(*self._members(schema, indent), indent)
        if kind == "array":
            return self._array(schema.get("items"), indent)
        if not isinstance(kind, str) and schema:
            raise ValueError("a schema without a type")
        return "number" if kind == "integer" else kind or "any"

    def _array(self, items: Any, indent: str) -> str:
        if not items:
            return "Array<any>"
        inner = indent + _INDENT
        said = _docstring(items, inner)
        if not said:
            return f"Array<{self._type(items, indent)}>"
        return f"Array<\n{said}{inner}{self._type(items, inner)}\n{indent}>"

    def _reference(self, target: str) -> str:
        if target == "#":
            self._names_itself = True
            return "parameters"
        name = target.split("/")[-1]
        found = self._definitions.get(name)
        if not target.startswith("#/$defs/") or not isinstance(found, Mapping):
            raise ValueError("a reference to nothing")
        return name


def _braces(properties: list[tuple[bool, str, str]], rest: str | None, indent: str) -> str:
    """An object: required properties, then optional ones, each by name."""
    members = [text for _, _, text in sorted(properties, key=lambda one: one[:2])]
    if rest is not None:
        members.append(f"{indent}{_INDENT}[k: string]: {rest}")
    body = ",\n".join(members)
    return f"{{\n{body}\n{indent}}}" if members else "{}"


def _enum(values: Sequence[Any], kind: Any) -> str:
    if isinstance(kind, list):
        if len(kind) != 1 and (len(kind) != 2 or "null" not in kind):
            raise ValueError("values of several types")
        kind = next((one for one in kind if one != "null"), "null")
    wanted = _ENUM_TYPES.get(kind, object) if kind is not None else object
    if not all(value is None or isinstance(value, wanted) for value in values):
        raise ValueError("a value of another type")
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)


def _comments(schema: Any, indent: str) -> str:
    """The lines above a property."""
    default = schema.get("default") if isinstance(schema, Mapping) else None
    said = _docstring(schema, indent)
    if default is None:
        return said
    plain = isinstance(default, (int, float))
    value = repr(default) if plain else json.dumps(default, ensure_ascii=False)
    return f"{said}{indent}// Default: {value}\n"


def _docstring(schema: Any, indent: str) -> str:
    """Description and constraints, a line each; "" if there is neither."""
    if not isinstance(schema, Mapping):
        return ""
    said = _comment(schema.get("description"), indent)
    kind = schema.get("type")
    if not isinstance(kind, str) or any(key in schema for key in ("$ref", "anyOf", "enum")):
        return said
    limits = [f"{key}: {schema[key]}" for key in _CONSTRAINTS.get(kind, ()) if key in schema]
    return f"{said}{indent}// {', '.join(limits)}\n" if limits else said


def _comment(text: str | None, indent: str) -> str:
    """`text` as comment lines; blank lines stay blank."""
    if not text:
        return ""
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in text.split("\n"))
