"""A plan as JSON, exactly, and back from a file that anybody may have written or edited.

The fields of the dataclasses in plan.py are the format: a field with a default may be left out, a
key that is none of them is an error. Every PlanError begins with the path of the value that is
wrong, `placements.routed.tier: ...`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from os import PathLike
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from offload.arguments import path_argument, quoted
from offload.errors import PlanError, reason, shown
from offload.layer_set import Layers
from offload.plan import Plan

FORMAT: Final = 1
MOST: Final = 2**53  # of any whole number; other programs' JSON holds it exactly
LIMIT: Final = 4 << 20  # bytes of a plan's file


def plan_text(plan: Plan) -> str:
    """JSON, format number first."""
    return json.dumps({"format": FORMAT, **_encoded(plan)}, indent=2) + "\n"


def parse_plan(text: object) -> Plan:
    """The plan in a JSON text; PlanError."""
    if not isinstance(text, str):
        raise PlanError(f"a plan is a text in JSON, not {quoted(text)}")
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        raise PlanError(f"line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc
    except RecursionError as exc:
        raise PlanError("no plan: too many brackets in each other") from exc
    except ValueError as exc:
        raise PlanError(shown(exc)) from exc
    if not isinstance(found, dict):
        raise PlanError(f"{quoted(found)} is no plan; an object {{...}} is needed")
    version = found.pop("format", None)
    if type(version) is not int or version != FORMAT:
        raise PlanError(f"format: {quoted(version)}, this version reads format {FORMAT}")
    plan: Plan = _record(Plan, found, "")
    return plan


def read_plan(path: str | PathLike[str]) -> Plan:
    """The plan in a file; PlanError, without the file's name, if it cannot be read or is none."""
    try:
        with path_argument("the path of the plan", path, PlanError).open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as exc:
        raise PlanError(reason(exc)) from exc
    if len(data) > LIMIT:
        raise PlanError(f"longer than {LIMIT >> 20} MiB: no plan")
    try:
        return parse_plan(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise PlanError(f"byte {exc.start:,} is no UTF-8: no plan") from exc


def _encoded(value: Any) -> Any:
    if isinstance(value, Layers):
        return str(value)
    if is_dataclass(value):
        return {f.name: _encoded(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encoded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{shown(twice)} is given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# --- from JSON to the types of plan.py ------------------------------------------------------------


def _decoded(kind: Any, value: Any, path: str) -> Any:
    """The value as `kind`, a type of a field; PlanError."""
    if is_dataclass(kind) and kind is not Layers:
        return _record(kind, value, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:  # something or None
        return None if value is None else _decoded(arguments[0], value, path)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise _wrong(path, value, f"this version has {', '.join(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(path, value, "a list [...] is needed")
        return tuple(_decoded(arguments[0], item, f"{path}.{i}") for i, item in enumerate(value))
    if origin is Mapping:
        return _mapping(arguments, value, path)
    return _scalar(kind, value, path)


def _record(kind: Any, value: Any, path: str) -> Any:
    found = _needs_object(value, path)
    hints = get_type_hints(kind)
    for key in found:
        if key not in hints:
            raise PlanError(f"{_below(path, key)}: unknown; there are {', '.join(hints)}")
    for f in fields(kind):
        if f.name not in found and f.default is MISSING and f.default_factory is MISSING:
            raise PlanError(f"{_below(path, f.name)}: missing")
    return kind(**{key: _decoded(hints[key], v, _below(path, key)) for key, v in found.items()})


def _mapping(kinds: tuple[Any, Any], value: Any, path: str) -> dict[Any, Any]:
    made = {}
    for key, item in _needs_object(value, path).items():
        below = _below(path, key)
        name = _layers(key, below) if kinds[0] is Layers else _decoded(kinds[0], key, below)
        if name in made:
            raise PlanError(f"{below}: given twice")
        made[name] = _decoded(kinds[1], item, below)
    return made


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Layers:
        return _layers(value, path)
    if kind is str and not isinstance(value, str):
        raise _wrong(path, value, "a text is needed")
    if kind is bool and not isinstance(value, bool):
        raise _wrong(path, value, "true or false is needed")
    if kind is int and not (type(value) is int and 0 <= value <= MOST):
        raise _wrong(path, value, f"a whole number from 0 to {MOST:,} is needed")
    if kind is float:
        if type(value) not in (int, float) or not 0 <= value <= MOST:
            raise _wrong(path, value, f"a number from 0 to {MOST:,} is needed")
        return float(value)
    return value


def _layers(value: Any, path: str) -> Layers:
    if not isinstance(value, str):
        raise _wrong(path, value, "layers as a text are needed, like '0-2,5'")
    try:
        return Layers.parse(value)
    except ValueError as exc:
        raise _wrong(path, value, str(exc)) from exc


def _needs_object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, value, "an object {...} is needed")
    return value


def _below(path: str, key: str) -> str:
    return f"{path}.{shown(key)}" if path else shown(key)


def _wrong(path: str, value: object, need: str) -> PlanError:
    plain = value is None or isinstance(value, str | bool)  # written as the file has it
    text = json.dumps(value) if plain else quoted(value)
    return PlanError(f"{path}: {shown(text, 80)}: {need}")
