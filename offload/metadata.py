"""Typed access to the metadata of a GGUF: a key holds what it should, or one clear error says so.

No value is taken for another: "no" and 1 are no flags, 1.5 and true are no numbers of things. A key
that is absent gives None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offload.errors import GGUFError, shown
from offload.gguf_cursor import StringArray

Metadata = Mapping[str, Any]


def described(value: object) -> str:
    """A value for messages: numbers as they are, text quoted and cut, arrays by their length."""
    if isinstance(value, str):
        return f"'{shown(value, 60)}'"
    if isinstance(value, np.ndarray):
        return f"an array of {value.size:,} {'flags' if value.dtype == np.bool_ else 'numbers'}"
    if isinstance(value, StringArray):
        return f"an array of {len(value):,} strings"
    if isinstance(value, list):
        return f"an array of {len(value):,} arrays"
    return shown(repr(value), 60)


def text(metadata: Metadata, key: str) -> str | None:
    """A text. Raises GGUFError for anything else."""
    value = metadata.get(key)
    if value is None or isinstance(value, str):
        return value
    raise wrong(key, value, "a text")


def flag(metadata: Metadata, key: str) -> bool | None:
    """True or false, stored as a boolean. Raises GGUFError for anything else."""
    value = metadata.get(key)
    return None if value is None else checked_flag(key, value)


def integer(metadata: Metadata, key: str, low: int, high: int) -> int | None:
    """A whole number from `low` to `high`. Raises GGUFError for anything else."""
    value = metadata.get(key)
    return None if value is None else checked_integer(key, value, low, high)


def real(metadata: Metadata, key: str, low: float, high: float) -> float | None:
    """A number from `low` to `high`; whole ones count. Raises GGUFError for anything else."""
    value = metadata.get(key)
    return None if value is None else checked_real(key, value, low, high)


def strings(metadata: Metadata, key: str) -> StringArray | None:
    """An array of strings. Raises GGUFError for anything else."""
    value = metadata.get(key)
    if value is None or isinstance(value, StringArray):
        return value
    raise wrong(key, value, "an array of strings")


def positive(metadata: Metadata, key: str) -> int:
    """A whole number above 0, or 0 for everything else: for tables of files that may be broken."""
    value = metadata.get(key)
    return value if type(value) is int and value > 0 else 0


def checked_flag(key: str, value: object) -> bool:
    """`value` if it is True or False; otherwise GGUFError."""
    if isinstance(value, bool):
        return value
    raise wrong(key, value, "true or false")


def checked_integer(key: str, value: object, low: float, high: float) -> int:
    """`value` if it is a whole number from `low` to `high`; otherwise GGUFError."""
    if type(value) is not int:
        raise wrong(key, value, "a whole number")
    if not low <= value <= high:
        raise GGUFError(f"{shown(key)} is {value:,}; {low:,} to {high:,} is allowed")
    return value


def checked_real(key: str, value: object, low: float, high: float) -> float:
    """`value` as a float if it is a number from `low` to `high`; otherwise GGUFError."""
    if type(value) not in (int, float):
        raise wrong(key, value, "a number")
    assert isinstance(value, (int, float))
    if not low <= value <= high:  # nan is neither
        raise GGUFError(f"{shown(key)} is {value}; {low:,} to {high:,} is allowed")
    return float(value)


def wrong(key: str, value: object, expected: str) -> GGUFError:
    """The error for a value of another type than the key should have."""
    return GGUFError(
        f"{shown(key)} is {described(value)}; {expected} is expected: the file is damaged or was "
        "converted wrongly"
    )
