"""How kernels are compiled: one decorator, one factory, one cache.

`@inline` marks a helper that other kernels call; `@kernel()` compiles a function that Python calls,
at its first call and without the GIL; `@task` marks the body of a parallel region (pool.py);
`c_kernel(...)` makes a C function pointer out of a template, so that one driver can run any mix of
quant types through addresses.

Options and why: `error_model="numpy"` (no division checks), `nogil` (drivers of two engines may
overlap), no fastmath (a result must not depend on the vectoriser; fused multiply-adds are written
out). Compiled code is kept in `$KIMI_OFFLOAD_CACHE` or the user's cache folder, keyed by a digest
of all sources in quant/, the Numba version and the instruction set: no stale kernel is ever loaded.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types as pytypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CacheImpl, _CacheLocator

from quant import isa


def cache_folder() -> Path:
    """Where compiled kernels are kept: one folder per source digest, Numba and instruction set."""
    base = os.environ.get("KIMI_OFFLOAD_CACHE")
    if not base:
        if sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches" / "kimi-offload")
        elif os.name == "nt":
            base = str(Path(os.environ.get("LOCALAPPDATA", Path.home())) / "kimi-offload" / "cache")
        else:
            xdg = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
            base = str(Path(xdg) / "kimi-offload")
    return Path(base) / "kernels" / f"{numba.__version__}-{isa.NAME}-{_source_digest()}"


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class _QuantCacheLocator(_CacheLocator):
    """Numba's hook for choosing the cache folder; used for functions of this package only."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return _source_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _QuantCacheLocator | None:
        if not (py_func.__module__ or "").startswith("quant."):
            return None
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:  # read-only home: compile every time rather than fail
            return None
        return locator


CacheImpl._locator_classes.insert(0, _QuantCacheLocator)

# Inlined before LLVM sees it: linking a helper that was compiled on its own is not safe here. Code
# generation has by then rewritten its address arithmetic as offsets from a null pointer, and LLVM
# may call every load through it undefined (seen with llvmlite 0.50: whole kernels vanished).
inline = numba.njit(inline="always", error_model="numpy", nogil=True)


def kernel() -> Callable[[Callable[..., Any]], Any]:
    """Compiled (or loaded from the cache) at the first call; addresses and counts are all int64."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


def bind(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of `template` called `name` whose open globals are `names` (no closure: cacheable)."""
    fn = pytypes.FunctionType(template.__code__, {**template.__globals__, **names}, name)
    fn.__qualname__ = name
    fn.__module__ = template.__module__
    return fn


def c_kernel(fn: Callable[..., Any]) -> Any:
    """A C function `void fn(intp, intp, intp)`; keep it referenced while `.address` is used."""
    return numba.cfunc("void(intp, intp, intp)", cache=True, error_model="numpy")(fn)


class Task:
    """A C kernel `void fn(context, index, thread)` for `pool.Pool.run`, compiled at first use."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._compiled: Any = None
        self.__doc__ = fn.__doc__

    @property
    def address(self) -> int:
        """Address of the compiled function."""
        if self._compiled is None:
            self._compiled = c_kernel(self._fn)
        return int(self._compiled.address)


def task(fn: Callable[..., Any]) -> Task:
    """Decorator: the body of a parallel region."""
    return Task(fn)
