"""Job records and activation buffers: what the CPU operations share."""

from __future__ import annotations

from math import lcm

import numpy as np

from offload.weights import Matrix
from quant.kernels import Job
from quant.quant_type import Kind, for_records
from quant.run import driver
from quant.run.activations import empty_records, quantize_row, quantize_rows
from quant.run.pool import Pool
from quant.tile import tile
from quant.tile.inner_loops import ROWS
from quant.tile.panels import Panel

Array = np.ndarray
# Of weights per turn of a thread: big enough to stream, small enough to share.
CHUNK_BYTES = 1 << 16
MOST_ROWS = 192 // (tile.TILES * ROWS) * (tile.TILES * ROWS)  # of a turn, many tokens
TURNS = 7  # of each thread, at least, where that leaves enough rows for a turn


def chunk_rows(row_bytes: int, multiple: int = 16) -> int:
    """Rows that a thread takes at a time."""
    return max(multiple, min(256, CHUNK_BYTES // max(1, row_bytes)) // multiple * multiple)


def tile_rows(n_rows: int, threads: int, most: int = MOST_ROWS) -> int:
    """Rows that a thread takes at a time for many tokens.

    The more rows, the fewer times a token's activations are arranged for them (tile.py); but each
    thread should have a few turns.
    """
    share = n_rows // (TURNS * threads) // ROWS * ROWS
    return max(2 * ROWS, min(share, most))


def whole_groups(rows: int, *matrices: Matrix) -> int:
    """The least multiple of `rows` that cuts these matrices at borders of their row groups."""
    return lcm(rows, *(m.group_rows for m in matrices))


def fill_job(job: Array, matrix: Matrix, kind: Kind) -> None:
    """The fields of a job that the matrix decides."""
    job[Job.KERNEL] = matrix.quant.address(kind)
    job[Job.W] = matrix.address
    job[Job.ROW_BYTES] = matrix.row_bytes
    job[Job.N_ROWS] = matrix.n_rows
    job[Job.N_COLS] = matrix.n_cols


def padded(x: Array, n_cols: int) -> Array:
    """X (T, n) with zero columns up to n_cols; x itself if it has them."""
    if x.shape[1] == n_cols and x.flags.c_contiguous:
        return x
    out = np.zeros((len(x), n_cols), np.float32)
    out[:, : x.shape[1]] = x
    return out


def records(pool: Pool, x: Array, planes: int) -> Array:
    """The records of x (T, n): (T, record_bytes) uint8."""
    n = x.shape[1]
    out = empty_records((len(x),), n, planes)
    if len(x) == 1:
        quantize_row(x.ctypes.data, n, out.ctypes.data, planes)
    else:
        quantize_rows(pool, x, out, planes)
    return out


class Panels:
    """Records of many tokens as `matmul` reads them, made once for all matrices that agree.

    Matrix i of several, experts perhaps, has the tokens starts[i] : starts[i + 1] of the records
    (T, record_bytes), or those that lie index (int64) bytes from their beginning.
    """

    def __init__(
        self, pool: Pool, records: Array, starts: Array, index: Array | None = None
    ) -> None:
        self.records = records
        self.to_index = 0 if index is None else int(index.ctypes.data)
        self._pool, self._starts, self._index = pool, starts, index
        self._made: dict[tuple[Panel, int], tuple[Array, Array]] = {}

    def fill(
        self, jobs: Array, matrix: Matrix, planes: int, field: Job = Job.PANELS,
        kernel: Job = Job.KERNEL,
    ) -> None:  # fmt: skip
        """What `matmul` jobs (matrices, fields) of this matrix want besides; float types nothing.

        That is a panel, or another kernel for those whose tokens are too few for one.
        """
        quant = matrix.quant
        if quant.is_float:
            return
        key = quant.panel(planes), quant.few
        if key not in self._made:
            self._made[key] = driver.make_panels(
                self._pool, quant.panel(planes), self.records, matrix.n_cols, self._starts,
                index=self._index, few=quant.few,
            )  # fmt: skip
        jobs[:, field] = self._made[key][0]
        base = for_records("matvec", planes)
        jobs[:, kernel] = quant.address(for_records("matmul", planes))
        for n_tokens in np.unique(jobs[:, Job.N_TOKENS]):
            if n_tokens <= quant.few:
                few = quant.address(quant.kernel_for(base, n_tokens))
                jobs[jobs[:, Job.N_TOKENS] == n_tokens, kernel] = few
