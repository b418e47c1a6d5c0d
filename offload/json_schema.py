"""Schemas as clients send them, made into grammars; what cannot be enforced is left out, and said.

An object that names its properties holds no others unless its schema says so: every such answer
follows the schema as it is meant, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from offload.errors import shown
from offload.grammar import Grammar, Grammars

LARGEST: Final = 256 * 1024  # characters of a schema
DEEPEST: Final = 64  # levels of it
MOST_PROPERTIES: Final = 64  # tried one by one

Schema = dict[str, Any]
_OBJECT: Final[Schema] = {"type": "object"}
_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = (
    *("items", "additionalProperties", "additionalItems", "unevaluatedProperties", "contains"),
    *("not", "if", "then", "else", "propertyNames"),
)
# beside properties, these may add others
_COMBINES: Final = (
    *("anyOf", "oneOf", "allOf", "$ref", "$dynamicRef", "not", "if", "then", "else"),
    *("patternProperties", "dependentSchemas", "unevaluatedProperties", "additionalProperties"),
)


def any_object(grammars: Grammars) -> Grammar:
    """Any JSON object."""
    grammar, _ = grammars.make(_OBJECT, lenient=False)
    assert grammar is not None
    return grammar


def grammar_of(
    grammars: Grammars, given: object, what: str, *, is_object: bool
) -> tuple[Grammar, tuple[str, ...]]:
    """A grammar for a schema, and a note on each thing in it that is not enforced.

    what: whose schema it is, for the notes. is_object: only objects will do, whatever it says.
    """
    notes: list[str] = []

    def note(reason: str) -> None:
        notes.append(f"{what} is loosened: {shown(reason, 200)}")

    schema = _tidy(given, note)
    if is_object and schema.get("type") != "object":
        if "type" in schema:
            note(f"its type is {schema['type']!r}, it must be an object")
        schema["type"] = "object"
    if is_object and schema.get("properties") == {} and not any(key in schema for key in _COMBINES):
        schema["additionalProperties"] = False  # a function without parameters
    grammar, said = grammars.make(schema, lenient=False)
    if grammar is None:
        # what the library refuses is often a keyword that it can ignore
        grammar, said = grammars.make(schema, lenient=True)
        note("; ".join(said))
    if grammar is None:
        grammar = _by_parts(grammars, schema, note)
    return grammar, tuple(notes)


def _by_parts(grammars: Grammars, schema: Schema, note: Callable[[str], None]) -> Grammar:
    """Without those properties that the library refuses, at last without any."""

    def made(candidate: Schema) -> Grammar | None:
        return grammars.make(candidate, lenient=True)[0]

    properties = schema.get("properties", {})
    names = [name for name in schema.get("required", ()) if name in properties]
    bare: Schema = {name: {} for name in properties}
    for frame in (
        schema | {"properties": bare},
        {**_OBJECT, "required": names, "properties": bare, "additionalProperties": False},
    ):
        grammar = made(frame) if 0 < len(properties) <= MOST_PROPERTIES else None
        if grammar is None:
            continue
        odd = []
        for name, part in properties.items():
            of_its_type = (
                {"type": part["type"]} if isinstance(part, dict) and "type" in part else {}
            )
            for kept in (part, of_its_type):
                candidate = frame | {"properties": frame["properties"] | {name: kept}}
                if (better := made(candidate)) is not None:
                    grammar, frame = better, candidate
                    break
            if frame["properties"][name] != part:
                odd.append(name)
        if odd:
            note("anything of the right type may be " + ", ".join(odd))
        return grammar
    kind = schema.get("type")
    note("nothing is enforced but its type" if kind else "it may be any object")
    return made({"type": kind} if kind else _OBJECT) or any_object(grammars)


def _tidy(given: object, note: Callable[[str], None]) -> Schema:
    """A copy without what is no schema; objects are closed where that is safe."""
    schema: object = {} if given is True or given is None else given
    if not isinstance(schema, Mapping):
        note(f"a schema must be an object, not {type(given).__name__}")
        return dict(_OBJECT)
    try:
        text = json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        note(f"it cannot be written as JSON: {exc}")
        return dict(_OBJECT)
    if len(text) > LARGEST:
        note(f"it has {len(text):,} characters, at most {LARGEST:,} are read")
        return dict(_OBJECT)
    read = json.loads(text)
    if _depth(read) > DEEPEST:
        note(f"it is nested more than {DEEPEST} levels deep")
        return dict(_OBJECT)
    dropped: list[str] = []
    tidied = _without_faults(read, dropped)
    tidied.pop("x-guidance", None)  # orders to the library
    if dropped:
        note("left out: " + ", ".join(sorted(set(dropped))))
    if not any(_composes(part) for part in _parts(tidied)):
        _close(tidied)
    return tidied


def _depth(value: Any) -> int:
    deepest, left = 0, [(value, 1)]
    while left:
        one, level = left.pop()
        deepest = max(deepest, level)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        left += [(part, level + 1) for part in inner if isinstance(part, dict | list)]
    return deepest


def _without_faults(schema: Schema, dropped: list[str]) -> Schema:
    """Without keywords whose values no schema may have; their names go to `dropped`."""
    result: Schema = {}
    for key, value in schema.items():
        kept: Any = value
        if key == "items" and isinstance(value, list):  # of older drafts
            key = "prefixItems"
        if key in _BY_NAME:
            kept = value if isinstance(value, dict) else None
            kept = kept and {name: _part(one, dropped) for name, one in kept.items()}
        elif key in _LISTS:
            is_list = isinstance(value, list) and bool(value)
            kept = [_part(one, dropped) for one in value] if is_list else None
        elif key in _SINGLE:
            kept = _part(value, dropped) if isinstance(value, dict | bool) else None
        elif key == "required":
            is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
            kept = value if is_list else None
        elif key == "type":
            kept = _types(value)
        if kept is None and key not in ("const", "default"):
            dropped.append(f"{key} {json.dumps(value)[:40]}")
        else:
            result[key] = kept
    return result


def _part(schema: object, dropped: list[str]) -> Any:
    if isinstance(schema, dict):
        return _without_faults(schema, dropped)
    return schema if isinstance(schema, bool) else {}


def _types(value: object) -> str | list[str] | None:
    """A type or several, in lower case; None if there is an unknown one."""
    given = value if isinstance(value, list) else [value]
    names = [one.lower() if isinstance(one, str) else "" for one in given]
    if not names or not _TYPES.issuperset(names):
        return None
    return names if isinstance(value, list) else names[0]


def _parts(schema: Any) -> Iterator[Schema]:
    """A schema and all those in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        inner: Any = ()
        if key in _BY_NAME:
            inner = value.values()
        elif key in _LISTS:
            inner = value
        elif key in _SINGLE:
            inner = (value,)
        for part in inner:
            yield from _parts(part)


def _composes(schema: Schema) -> bool:
    """Whether an object may have to follow this schema and another one at once."""
    return "allOf" in schema or (
        "properties" in schema and any(key in schema for key in ("$ref", "$dynamicRef", "not"))
    )


def _close(schema: Any, *, is_branch: bool = False) -> None:
    """Forbid other properties. is_branch: it is an alternative within an object."""
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    names = schema.get("required", ())
    closes = not is_branch and not any(key in schema for key in _COMBINES)
    if properties and closes and all(name in properties for name in names):
        schema["additionalProperties"] = False
    for key, value in schema.items():
        if key in _BY_NAME:
            for part in value.values():
                _close(part)
        elif key in _LISTS:
            for part in value:
                _close(part, is_branch=is_branch or bool(properties))
        elif key in _SINGLE:
            _close(value, is_branch=key in ("if", "then", "else", "not"))
