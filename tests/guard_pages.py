"""Run every kernel with each array against a page that must not be touched (a program).

Prints each kernel before running it: after a crash, the last line names the culprit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

from quant.activations import quantize
from quant.driver import job_table, run_jobs
from quant.ggml import row_bytes
from quant.kernels import Job
from quant.registry import QUANT_TYPES

PAGE = mmap.PAGESIZE
ROWS, N_COLS, TOKENS = 9, 256, 4
_libc = ctypes.CDLL(None, use_errno=True)
_keep: list[mmap.mmap] = []


def guarded(a: np.ndarray, *, at_end: bool) -> np.ndarray:
    """A copy of `a` whose last (first) byte is the last before (first after) a forbidden page."""
    size = a.nbytes
    inner = -(-size // PAGE) * PAGE
    room = mmap.mmap(-1, inner + 2 * PAGE)
    _keep.append(room)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for page in (start, start + PAGE + inner):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    at = PAGE + (inner - size if at_end else 0)
    copy = np.frombuffer(room, np.uint8, size, at).view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, N_COLS)).astype(np.float32)
    for t, quant in QUANT_TYPES.items():
        for kind in ("dequantize", "matvec", "matmul"):
            for at_end in (True, False):
                print(t.name, kind, "end" if at_end else "start", flush=True)
                data = rng.integers(0, 256, (ROWS, row_bytes(t, N_COLS)), np.uint8)
                data = guarded(data, at_end=at_end)
                as_record = kind in ("matvec", "matmul") and not quant.is_float
                inputs = guarded(quantize(x) if as_record else x, at_end=at_end)
                shape = (ROWS, N_COLS) if kind == "dequantize" else (TOKENS, ROWS)
                out = guarded(np.zeros(shape, np.float32), at_end=at_end)
                job = job_table(1)
                job[0, Job.KERNEL] = quant.address(kind)
                job[0, Job.W] = data.ctypes.data
                job[0, Job.ROW_BYTES] = data.shape[1]
                job[0, Job.N_ROWS] = ROWS
                job[0, Job.N_COLS] = N_COLS
                job[0, Job.X] = inputs.ctypes.data
                job[0, Job.X_STRIDE] = inputs.strides[0]
                job[0, Job.N_TOKENS] = TOKENS
                job[0, Job.OUT] = out.ctypes.data
                job[0, Job.OUT_STRIDE] = out.strides[0]
                run_jobs(job.ctypes.data, 1, 4, np.zeros(1, np.int64).ctypes.data, 1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
