"""How kernels are compiled: one decorator, one factory, one cache.

`@inline` marks a helper that other kernels call; `@kernel()` compiles a function that Python calls,
at its first call and without the GIL; `@task` marks the body of a parallel region (pool.py);
`c_kernel(...)` makes a C function pointer out of a template, so that one driver can run any mix of
quant types through addresses.

Options and why: `error_model="numpy"` (no division checks), `nogil` (drivers of two engines may
overlap), no fastmath (a result must not depend on the vectoriser; fused multiply-adds are written
out). Compiled code is kept by kernel_cache.py and never by Numba's own caches, which know neither
the instruction set nor the sources that a kernel inlines.
"""

from __future__ import annotations

import types as pytypes
from collections.abc import Callable
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from quant.compiler import isa
from quant.compiler.kernel_cache import KernelCache, is_kept
from quant.ggml import SettingError

if isa.numba_settings.DISABLE_JIT:
    raise SettingError(
        "NUMBA_DISABLE_JIT is set, but kernels run only when compiled: unset NUMBA_DISABLE_JIT"
    )

C_SIGNATURE = normalize_signature("void(intp, intp, intp)")


# Inlined before LLVM sees it: linking a helper that was compiled on its own is not safe here. Code
# generation has by then rewritten its address arithmetic as offsets from a null pointer, and LLVM
# may call every load through it undefined (seen with llvmlite 0.50: whole kernels vanished).
inline = numba.njit(inline="always", error_model="numpy", nogil=True)


def kernel() -> Callable[[Callable[..., Any]], Any]:
    """Compiled (or loaded from the cache) at the first call; addresses and counts are all int64."""

    def compiled_when_called(fn: Callable[..., Any]) -> Any:
        dispatcher: Any = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(fn)
        if is_kept(fn):
            dispatcher._cache = KernelCache(fn)
        return dispatcher

    return compiled_when_called


class _Open:
    """What stands for a number that a template leaves open."""


OPEN: Any = _Open()


def bind(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of `template` called `name` whose open globals are `names` (no closure: cacheable).

    Open are plain functions (nothing else can be called that is one) and numbers that are OPEN. A
    name that is None is one that this copy does not reach.
    """
    known = {**template.__globals__, **names}
    left = [
        open_name
        for open_name in template.__code__.co_names
        if isinstance(known.get(open_name), (_Open, pytypes.FunctionType))
    ]
    if left:
        raise TypeError(f"kernel {name}: {template.__name__} leaves open {', '.join(left)}")
    fn = pytypes.FunctionType(template.__code__, {**template.__globals__, **names}, name)
    fn.__qualname__ = name
    fn.__module__ = template.__module__
    return fn


def c_kernel(fn: Callable[..., Any]) -> Any:
    """A C function `void fn(intp, intp, intp)`; keep it referenced while `.address` is used."""
    compiled: Any = CFunc(fn, C_SIGNATURE, locals={}, options={"error_model": "numpy"})
    if is_kept(fn):
        compiled._cache = KernelCache(fn)
    compiled.compile()
    return compiled


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
