"""The processor's own clock: a few nanoseconds to read, and a call of nothing.

x86: the time-stamp counter; ARM: the generic timer. Both tick at a steady rate that is not told;
who wants seconds compares with a clock that knows them. Elsewhere there is none: always 0.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types

from quant.compiler import isa
from quant.simd.vectors import I64, _op, call

IS_ARM = platform.machine().lower() in ("aarch64", "arm64")


def _ticks(b: Any, m: Any, v: Any) -> Any:
    if isa.X86:
        return call(b, m, "llvm.x86.rdtsc", I64, [])
    if IS_ARM:
        asm = ir.InlineAsm(ir.FunctionType(I64, []), "mrs $0, cntvct_el0", "=r", side_effect=True)
        return b.call(asm, [])
    return ir.Constant(I64, 0)


ticks = _op(types.int64, (), _ticks)
