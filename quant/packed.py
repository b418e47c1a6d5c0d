"""Packed layouts: rows of a native type re-arranged without loss, so that a 32-bit lane is a row.

    group = ROWS rows (16 lanes x 3 or 4 planes) x 256 columns, GROUP_BYTES bytes
    matrix = groups of rows, one after the other; in each, blocks of 256 columns from left to right

A matrix whose rows are no multiple of ROWS is padded with rows that are computed but never stored.
A packed type stands where a QuantType stands: the same job records, the same contract of results
(bit for bit those of the native type), but a kernel's first row must be a multiple of ROWS and the
job's ROW_BYTES holds the bytes from one row group to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quant.driver import JOB_BYTES
from quant.ggml import GGMLType
from quant.jit import bind, c_kernel, task
from quant.kernels import Job
from quant.pool import Pool
from quant.quant_type import Kind, QuantType
from quant.simd import call_kernel, i64

_FN = 8 * int(Job.KERNEL)


@dataclass(frozen=True, kw_only=True)
class PackedType:
    """One packed layout.

    source: the native type. group_rows: rows that share a group. group_bytes: bytes of a group of
    256 columns. templates: C kernels by kind; 'pack' has jobs with W, ROW_BYTES, N_ROWS, N_COLS of
    the native rows and OUT, the packed matrix: kernel(job, g0, g1) writes row groups g0 .. g1 - 1.
    version: of the bytes; whoever changes the layout raises it, and packed files are made anew.
    """

    source: QuantType
    group_rows: int
    group_bytes: int
    templates: dict[str, Callable[..., None]]
    version: int = 1
    _compiled: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ggml_type(self) -> GGMLType:
        """The native type."""
        return self.source.ggml_type

    @property
    def is_float(self) -> bool:
        """Packed types are never float types."""
        return False

    def kernel_kind(self, kind: Kind) -> Kind:
        """The kernel that serves a kind: there is one for each."""
        return kind

    def row_stride(self, n_cols: int) -> int:
        """Bytes from one row group to the next; n_cols: a multiple of 256."""
        return n_cols // 256 * self.group_bytes

    def groups(self, n_rows: int) -> int:
        """Row groups of a matrix."""
        return -(-n_rows // self.group_rows)

    def matrix_bytes(self, n_rows: int, n_cols: int) -> int:
        """Bytes of a packed matrix."""
        return self.groups(n_rows) * self.row_stride(n_cols)

    def address(self, kind: str) -> int:
        """Address of the compiled kernel 'pack', 'matvec' or 'matmul'."""
        if kind not in self._compiled:
            fn = bind(self.templates[kind], f"{kind}_packed_{self.ggml_type.name.lower()}")
            self._compiled[kind] = c_kernel(fn)
        return int(self._compiled[kind].address)


PACKED_TYPES: dict[GGMLType, PackedType] = {}


def packed_type(ggml_type: GGMLType) -> PackedType | None:
    """The packed layout of a type, or None: its native bytes are used."""
    return PACKED_TYPES.get(ggml_type)


@task
def pack_task(context: int, index: int, thread: int) -> None:
    """One row group of one job; context: jobs, groups of each."""
    groups = i64(context + 8)
    job = i64(context) + index // groups * JOB_BYTES
    group = index % groups
    call_kernel(i64(job + _FN), job, group, group + 1)


def run_pack(pool: Pool, jobs: np.ndarray, groups: int) -> None:
    """Every job's kernel 'pack' over all its row groups; all jobs have `groups` of them."""
    context = np.array([jobs.ctypes.data, groups], np.int64)
    pool.run(pack_task.address, context.ctypes.data, len(jobs) * groups)
