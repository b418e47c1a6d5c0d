"""A kernel's source -> PTX, without a GPU and for all of them: what `cubin.py` assembles.

`@device` marks what kernels call; it is inlined. A kernel is a plain function whose arguments are
all int64 (addresses, counts, bits of a float), so that a launch is an array of numbers. Nothing is
contracted (x * y + z rounds twice) and nothing is approximated that is not called by that name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda import codegen, compiler, dispatcher, types
from numba.cuda.cudadrv import nvvm

TARGET = (8, 0)  # the oldest architecture served; newer ones assemble the same PTX
device = cuda.jit(device=True, forceinline=True)


class _Target:
    """Stands for the GPU that numba-cuda asks for when it types a device function."""

    compute_capability = TARGET


def _without_a_gpu() -> None:
    dispatcher.get_current_device = _Target
    codegen.CUDACodeLibrary._ensure_cc = lambda self, cc: cc or TARGET


def ptx(kernel: Callable[..., None], threads: int, together: int = 1) -> str:
    """PTX of a kernel for blocks of at most so many threads; its entry is called as the kernel.

    together: blocks that a multiprocessor shall have room for, which bounds registers.
    """
    _without_a_gpu()
    count = len(inspect.signature(kernel).parameters)
    compiled: Any = compiler.compile_cuda(
        kernel, types.void, (types.int64,) * count, cc=TARGET,
        nvvm_options={"opt": 3, "fma": False, "prec_div": True, "prec_sqrt": True, "ftz": False},
    )  # fmt: skip
    library = compiled.library
    name = compiled.fndesc.llvm_func_name
    function = library.get_function(name)
    library._entry_name = name
    compiler.kernel_fixup(function, False)
    nvvm.set_launch_bounds(function, (threads, together))
    text: str = library.get_asm_str(cc=TARGET)
    return re.sub(rf"{re.escape(name)}(?![\w$])", kernel.__name__, text)
