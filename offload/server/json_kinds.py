"""Values of a body, checked: said in JSON's words, since clients of any language read them."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from offload.errors import RequestError, shown

T = TypeVar("T", dict[str, Any], list[Any], str)
_KINDS: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}


def check_kind(what: str, value: Any, kind: type[T]) -> T:
    """The value, if it is of this kind; RequestError."""
    if not isinstance(value, kind):
        raise RequestError(f"{what} must be {_KINDS[kind]}, not {as_json(value)}")
    return value


def as_json(value: Any) -> str:
    """A value for a message, short."""
    return shown(json.dumps(value, ensure_ascii=False), 80)
