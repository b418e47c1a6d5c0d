"""Packed layouts: the list of them, and the region that packs.

What a packed layout is: packed_type.py.
"""

from __future__ import annotations

import numpy as np

from quant.compiler.jit import task
from quant.ggml import GGMLType
from quant.kernels import Job
from quant.packed import (
    iq1_m as packed_iq1_m,
)
from quant.packed import (
    iq1_s as packed_iq1_s,
)
from quant.packed import (
    q2_k as packed_q2_k,
)
from quant.packed import (
    q3_k as packed_q3_k,
)
from quant.packed import (
    tq1_0 as packed_tq1_0,
)
from quant.packed import (
    tq2_0 as packed_tq2_0,
)
from quant.packed.packed_type import PackedType
from quant.run.driver import JOB_BYTES
from quant.run.fields import I64, Fields, write
from quant.run.pool import Pool
from quant.simd.vectors import call_kernel, i64

__all__ = ["PACKED_TYPES", "PackedType", "packed_type", "run_pack"]

_FN = 8 * int(Job.KERNEL)

PACKED_TYPES: dict[GGMLType, PackedType] = {
    p.ggml_type: p
    for p in (
        packed_q2_k.PACKED,
        packed_q3_k.PACKED,
        packed_iq1_s.PACKED,
        packed_iq1_m.PACKED,
        packed_tq1_0.PACKED,
        packed_tq2_0.PACKED,
    )
}


def packed_type(ggml_type: GGMLType) -> PackedType | None:
    """The packed layout of a type, or None: its native bytes are used."""
    return PACKED_TYPES.get(ggml_type)


class Pack(Fields):
    """Fields of `pack_task`."""

    JOBS = I64
    GROUPS = I64  # of rows, of each job


@task
def pack_task(context: int, index: int, thread: int) -> None:
    """One row group of one job. context: `Pack`."""
    groups = i64(context + Pack.GROUPS)
    job = i64(context + Pack.JOBS) + index // groups * JOB_BYTES
    group = index % groups
    call_kernel(i64(job + _FN), job, group, group + 1)


def run_pack(pool: Pool, jobs: np.ndarray, groups: int) -> None:
    """Every job's kernel 'pack' over all its row groups; all jobs have `groups` of them."""
    context = write(Pack, JOBS=jobs.ctypes.data, GROUPS=groups)
    pool.run(pack_task.address, context.ctypes.data, len(jobs) * groups)
