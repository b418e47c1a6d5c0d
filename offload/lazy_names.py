"""Names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, tuple[str, str]]) -> Callable[[str], object]:
    """A package's `__getattr__`; homes: module and name there of each of its names."""

    def found(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, real = homes[name]
        return getattr(importlib.import_module(module), real)

    return found
