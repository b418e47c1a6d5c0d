"""What a kernel is made of, as a digest: its code, and all that is bound to its names."""

from __future__ import annotations

import hashlib
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from quant.cuda.kernels import Kernel

_PLAIN = (int, float, str, bytes, bool, type(None), np.generic)


def digest(kernel: Kernel) -> bytes:
    """The same in every process with the same sources."""
    facts = kernel.threads, kernel.together, _facts(kernel.function, frozenset())
    return hashlib.sha256(repr(facts).encode()).digest()


def _facts(value: Any, within: frozenset[int]) -> Any:
    if isinstance(value, _PLAIN) and not isinstance(value, Enum):
        return type(value).__name__, repr(value)
    if isinstance(value, (tuple, list)):
        return [_facts(one, within) for one in value]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, FunctionType):
        return _of_function(value, within)
    for name in ("py_func", "_defn"):  # a device function, an intrinsic
        inner = getattr(value, name, None)
        if isinstance(inner, FunctionType):
            return name, _of_function(inner, within)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (type, BuiltinFunctionType, np.ufunc)):
        return getattr(value, "__module__", None), value.__name__
    said = repr(value)
    if (isinstance(value, Enum) or _is_library(type(value))) and " at 0x" not in said:
        return type(value).__name__, said
    raise TypeError(f"a kernel is bound to {value!r}, which has no digest")


def _of_function(function: FunctionType, within: frozenset[int]) -> Any:
    named = function.__module__, function.__qualname__
    if id(function) in within or _is_library(function):
        return named
    within |= {id(function)}
    names = sorted(_names(function.__code__) & function.__globals__.keys())
    bound = [(name, _facts(function.__globals__[name], within)) for name in names]
    cells = [_facts(cell.cell_contents, within) for cell in function.__closure__ or ()]
    return named, _of_code(function.__code__), bound, cells


def _is_library(value: Any) -> bool:
    """Of a compiler, whose version is known."""
    return (value.__module__ or "").partition(".")[0] in ("numba", "numba_cuda", "llvmlite")


def _of_code(code: CodeType) -> Any:
    consts = [_of_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, consts


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            found |= _names(one)
    return found
