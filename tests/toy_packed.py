"""A packed layout for tests that is not one: rows stay whole, in groups of 48 with rows to spare.

    group = 48 rows of native bytes, one after the other; the last group's spare rows are zero

Its products are the native kernels', and nan where a kernel is started inside a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest

from quant.ggml import BLOCK, GGMLType
from quant.kernels import Job
from quant.packed import registry as packed
from quant.registry import quant_type
from quant.run.driver import JOB_FIELDS
from quant.simd.vectors import alloca, call_kernel, i64, put_f32, put_i64

GROUP = 48
FIELDS = int(JOB_FIELDS)
_W, _ROW_BYTES, _N_ROWS, _OUT = (8 * int(f) for f in (Job.W, Job.ROW_BYTES, Job.N_ROWS, Job.OUT))
_N_TOKENS, _OUT_STRIDE = 8 * int(Job.N_TOKENS), 8 * int(Job.OUT_STRIDE)
_ROW0 = 8 * int(Job.OUT_ROW0)


def pack(job: int, g0: int, g1: int) -> None:
    """Copy rows; 8 bytes at a time would need aligned rows, so byte by byte through 32-bit adds."""
    row_bytes = i64(job + _ROW_BYTES)
    source = numba.carray(_pointer(i64(job + _W)), (i64(job + _N_ROWS) * row_bytes,))
    first, last = g0 * GROUP * row_bytes, g1 * GROUP * row_bytes
    out = numba.carray(_pointer(i64(job + _OUT)), (last,))
    for i in range(first, last):
        out[i] = source[i] if i < source.size else 0


@numba.extending.intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """int -> uint8*."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(numba.types.uint8)(numba.types.int64), code


def product_of(native: int) -> Any:
    """A kernel that calls the native one with rows as they lie in groups."""

    def product(job: int, r0: int, r1: int) -> None:
        local = alloca(256)
        for f in range(FIELDS):
            put_i64(local + 8 * f, i64(job + 8 * f))
        put_i64(local + _ROW_BYTES, i64(job + _ROW_BYTES) // GROUP)
        call_kernel(native, local, r0, r1)
        if r0 % GROUP or (r1 % GROUP and r1 != i64(job + _N_ROWS)):
            for t in range(i64(job + _N_TOKENS)):
                out = i64(job + _OUT) + t * i64(job + _OUT_STRIDE)
                put_f32(out + 4 * (r0 - i64(job + _ROW0)), np.float32(np.nan))

    return product


@dataclass(frozen=True, kw_only=True)
class ToyPacked(packed.PackedType):
    """Compiled in memory: the address of a native kernel must not be kept on disk."""

    def address(self, kind: str) -> int:
        if kind not in self._compiled:
            fn = pack if kind == "pack" else product_of(self.source.address(kind))
            self._compiled[kind] = numba.cfunc("void(intp, intp, intp)", error_model="numpy")(fn)
        return int(self._compiled[kind].address)


TOYS = {
    t: ToyPacked(
        source=quant_type(t),
        group_rows=GROUP,
        group_bytes=GROUP * BLOCK[t].n_bytes,
        pack_group=None,
        add_step=None,
        fill_plane=None,
        few=0,
    )
    for t in (GGMLType.TQ1_0, GGMLType.Q2_K)
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys, and nothing else, stand in PACKED_TYPES."""
    for t in list(packed.PACKED_TYPES):
        monkeypatch.delitem(packed.PACKED_TYPES, t)
    for t, toy in TOYS.items():
        monkeypatch.setitem(packed.PACKED_TYPES, t, toy)
