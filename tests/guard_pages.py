"""Run every kernel with each array against a page that must not be touched (a program).

Prints each kernel before running it: after a crash, the last line names the culprit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from cpu_types import SOME

from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.kernels import Job
from quant.quant_type import Kind
from quant.registry import QUANT_TYPES
from quant.run.activations import quantize
from quant.run.driver import job_table, make_panels, run_jobs
from quant.run.pool import Pool

PAGE = mmap.PAGESIZE
ROWS, TOKENS = 21, 4
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


def run(pool: Pool, t: GGMLType, kind: Kind, n_cols: int, *, at_end: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, n_cols)).astype(np.float32)
    data = rng.integers(0, 256, (ROWS, row_bytes(t, n_cols)), np.uint8)
    data = guarded(data, at_end=at_end)
    as_record = kind in ("matvec", "few", "matmul") and not QUANT_TYPES[t].is_float
    inputs = guarded(quantize(x) if as_record else x, at_end=at_end)
    shape = (ROWS, n_cols) if kind == "dequantize" else (TOKENS, ROWS)
    out = guarded(np.zeros(shape, np.float32), at_end=at_end)
    job = job_table(1)
    job[0, Job.KERNEL] = QUANT_TYPES[t].address(kind)
    job[0, Job.W] = data.ctypes.data
    job[0, Job.ROW_BYTES] = data.shape[1]
    job[0, Job.N_ROWS] = ROWS
    job[0, Job.N_COLS] = n_cols
    job[0, Job.X] = inputs.ctypes.data
    job[0, Job.X_STRIDE] = inputs.strides[0]
    job[0, Job.N_TOKENS] = TOKENS
    job[0, Job.OUT] = out.ctypes.data
    job[0, Job.OUT_STRIDE] = out.strides[0]
    if kind == "matmul" and as_record:
        panel, all_ = QUANT_TYPES[t].panel(1), np.array([0, TOKENS])
        job[:, Job.PANELS], _room = make_panels(pool, panel, inputs, n_cols, all_)
    run_jobs(pool, job, 18)  # TQ1_0 takes 16 rows at a time


def main() -> None:
    kinds: tuple[Kind, ...] = ("dequantize", "matvec", "few", "matmul")
    pool = Pool(1)
    for t in SOME:
        # whole blocks, and where blocks are small an odd number of 32 columns
        for n_cols in {max(32, BLOCK[t].size), *((96, 512) if BLOCK[t].size <= 32 else (256,))}:
            for kind in kinds:
                for at_end in (True, False):
                    print(t.name, kind, n_cols, "end" if at_end else "start", flush=True)
                    run(pool, t, kind, n_cols, at_end=at_end)
    pool.close()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
