"""PTX of kernels, kept on disk: what reads it on a machine without a GPU need compile it once."""

from __future__ import annotations

from functools import cache

from quant.compiler.kernel_cache import Store, source_digest
from quant.cuda.identity import digest
from quant.cuda.kernels import Kernel
from quant.cuda.ptx import ptx


@cache
def kept_ptx(kernel: Kernel) -> str:
    """PTX of a kernel, from disk or compiled."""
    key = digest(kernel)
    name = f"{kernel.name}-{key.hex()[:16]}.ptx"
    kept = _store().read(name, key)
    if kept is not None:
        return kept.decode()
    found = ptx(kernel.function, kernel.threads, kernel.together)
    _store().write(name, key, found.encode())
    return found


@cache
def _store() -> Store:
    return Store("ptx", source_digest()[:16])
