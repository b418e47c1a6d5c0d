"""What callers hand in, checked: one rule for each kind of value."""

from __future__ import annotations

import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from offload.errors import RequestError

T = TypeVar("T")
_SHOWN = 80  # characters of a value in a message


def shown(value: object) -> str:
    """A value for a message: short, and never an error itself."""
    try:
        text = repr(value)
    except Exception:  # a number of 5,000 digits, or somebody's own __repr__
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def is_number(value: object) -> bool:
    """Whether it is a real number, numpy's included; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def whole(value: object) -> int | None:
    """The whole number that a value is (3, 3.0, numpy's 3), or None."""
    if not is_number(value):
        return None
    if isinstance(value, Integral):
        return int(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def check_type(what: str, value: object, kind: type[T]) -> T:
    """The value, if it is of this type; RequestError."""
    if not isinstance(value, kind):
        raise RequestError(f"{what} must be a {kind.__name__}, not {shown(value)}")
    return value


def check_callable(what: str, value: Any) -> None:
    """RequestError unless a value is None or can be called."""
    if value is not None and not callable(value):
        raise RequestError(f"{what} must be a function or None, not {shown(value)}")


def path_argument(what: str, value: object) -> Path:
    """A path from a string or a path object; RequestError for anything else and for an empty one.

    (An empty path would mean the current folder, which nobody asks for so.)
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise RequestError(f"{what} must be a string or a path, not {shown(value)}")
    if not text or "\0" in text:
        raise RequestError(f"{what} {'holds a zero byte' if text else 'is empty'}: {shown(value)}")
    return Path(text)
