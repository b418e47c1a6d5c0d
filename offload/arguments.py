"""What callers hand in, checked: one rule for each kind of value."""

from __future__ import annotations

import os
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

import numpy as np

from offload.errors import OffloadError, RequestError

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


def integer(value: object) -> int | None:
    """The whole number that a value of a whole type is (3, numpy's 3; not 3.0, not True)."""
    return int(value) if isinstance(value, Integral) and is_number(value) else None


def whole(value: object) -> int | None:
    """The whole number that a value is (3, 3.0, numpy's 3), or None."""
    if not is_number(value) or isinstance(value, Integral):
        return integer(value)
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


def check_callable(what: str, value: object, *, optional: bool = False) -> None:
    """RequestError unless a value can be called, or is None where that is an option."""
    if not callable(value) and not (optional and value is None):
        or_none = " or None" if optional else ""
        raise RequestError(f"{what} must be a function{or_none}, not {shown(value)}")


def path_argument(what: str, value: object, error: type[OffloadError] = RequestError) -> Path:
    """A path from a string or a path object; an error for anything else and for an empty one.

    (An empty path would mean the current folder, which nobody asks for so.)
    """
    try:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise error(f"{what} must be a string or a path, not {shown(value)}")
    if not text:
        raise error(f"{what} is empty")
    if "\0" in text:
        raise error(f"{what} cannot be opened, it holds a zero byte: {shown(text)}")
    return Path(text)
