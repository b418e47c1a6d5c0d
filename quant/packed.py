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

from quant.ggml import GGMLType
from quant.jit import bind, c_kernel
from quant.quant_type import Kind, QuantType


@dataclass(frozen=True, kw_only=True)
class PackedType:
    """One packed layout.

    source: the native type. group_rows: rows that share a group. group_bytes: bytes of a group of
    256 columns. templates: C kernels by kind; 'pack' has jobs with W, ROW_BYTES, N_ROWS, N_COLS of
    the native rows and OUT, the packed matrix: kernel(job, g0, g1) writes row groups g0 .. g1 - 1.
    """

    source: QuantType
    group_rows: int
    group_bytes: int
    templates: dict[str, Callable[..., None]]
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
