"""PackedType: what one packed layout brings, and its compiled kernels.

    group = ROWS rows (16 lanes x 3 or 4 planes) x 256 columns, GROUP_BYTES bytes;
            plane j of it is rows 16 j .. 16 j + 15
    matrix = groups of rows, one after the other; in each, blocks of 256 columns from left to right

A matrix whose rows are no multiple of ROWS is padded with rows that are computed but never stored.
A packed type stands where a QuantType stands: the same job records, the same contract of results
(bit for bit those of the native type), but a kernel's first row must be a multiple of ROWS and the
job's ROW_BYTES holds the bytes from one row group to the next. Activations are Q8 records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from quant.compiler import isa
from quant.compiler.jit import bind, c_kernel, inline
from quant.ggml import BLOCK, GGMLType
from quant.matvec import few
from quant.packed import kernels as packed_kernels
from quant.quant_type import Kind, OneToken, QuantType
from quant.tile import panels, tile


@dataclass(frozen=True, kw_only=True)
class PackedType:
    """One packed layout.

    source: the native type. group_rows: rows that share a group. group_bytes: bytes of a group of
    256 columns. pack_group, add_step, fill_plane: what packed_kernels.py asks of a type; from these
    come the C kernels 'pack', 'matvec', 'few' and 'matmul'. 'pack' has jobs with W, ROW_BYTES,
    N_ROWS, N_COLS of the native rows and OUT, the packed matrix: kernel(job, g0, g1) writes row
    groups g0 .. g1 - 1.
    few: tokens up to which no panels are wanted. looped: up to which 'matvec', one after the other,
    is faster than 'few'.
    version: of the bytes; whoever changes the layout raises it, and packed files are made anew.
    """

    source: QuantType
    group_rows: int
    group_bytes: int
    pack_group: Any
    add_step: Any
    add_two: Any = None
    fill_plane: Any
    few: int
    looped: int = 1
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
        """The kernel that serves a kind; AVX2 stores weights of planes otherwise than `few`."""
        return "matvec" if kind == "few" and isa.PAIRS else kind

    def kernel_for(self, kind: OneToken, n_tokens: int) -> Kind:
        """The fastest kernel without panels for so many tokens."""
        return kind if n_tokens <= self.looped else "few"

    def panel(self, planes: int = 1) -> panels.Panel:
        """How 'matmul' wants the records of its tokens."""
        return self.source.panel(planes)

    def row_stride(self, n_cols: int) -> int:
        """Bytes from one row group to the next; n_cols: a multiple of 256."""
        return n_cols // 256 * self.group_bytes

    def groups(self, n_rows: int) -> int:
        """Row groups of a matrix."""
        return -(-n_rows // self.group_rows)

    def matrix_bytes(self, n_rows: int, n_cols: int) -> int:
        """Bytes of a packed matrix."""
        return self.groups(n_rows) * self.row_stride(n_cols)

    def address(self, kind: Kind | Literal["pack"]) -> int:
        """Address of the compiled kernel 'pack', 'matvec', 'few' or 'matmul'."""
        if kind != "pack":
            kind = self.kernel_kind(kind)
        if kind not in self._compiled:
            self._compiled[kind] = c_kernel(self._specialised(kind))
        return int(self._compiled[kind].address)

    def _specialised(self, kind: str) -> Callable[..., None]:
        name = f"{kind}_packed_{self.ggml_type.name.lower()}"
        names: dict[str, Any] = {
            "SIZE": 256,
            "BYTES": BLOCK[self.ggml_type].n_bytes,
            "OFFSETS": self.source.offsets,
            "GROUP": self.source.group,
            "PLANES": 1,
            "GROUP_ROWS": self.group_rows,
            "GROUP_BYTES": self.group_bytes,
            "decode": self.source.decode,
            "pack_group": self.pack_group,
            "add_step": self.add_step,
            "add_two": self.add_two,
            "fill_plane": self.fill_plane,
        }
        if kind == "matmul":
            names |= tile.intrinsics(
                1, self.source.group, self.source.weights, offsets=self.source.offsets
            )
        elif kind == "few":
            names |= few.intrinsics(1, self.source.group, offsets=self.source.offsets)
        template = "few_by_two" if kind == "few" and self.add_two is not None else kind
        for helper, source in OPEN_HELPERS[template].items():
            names[helper] = inline(bind(source, f"{helper}_{name}", **names))
        return bind(TEMPLATES[template], name, **names)


# Helpers of the templates that have open names themselves, in the order in which they are bound.
def _of(*helpers: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {helper.__name__: helper for helper in helpers}


LANES = _of(tile.sums_of, tile.sums_of_two, tile.add_lanes)
GROUP = LANES | _of(packed_kernels.clear_group, packed_kernels.put_group, packed_kernels.add_group)
OPEN_HELPERS: dict[str, dict[str, Callable[..., Any]]] = {
    "pack": {},
    "matvec": LANES
    | _of(packed_kernels.clear_group, packed_kernels.put_group, packed_kernels.add_group),
    "few_by_two": LANES
    | _of(
        packed_kernels.clear_group,
        packed_kernels.put_group,
        packed_kernels.add_group,
        packed_kernels.add_group_to_two,
    ),
    "few": LANES
    | {
        "correct": few.correct,
        "add_few": few.add_step,
        "clear_sums": few.clear_sums,
        "put_rows": few.put_rows,
    },
    "matmul": LANES
    | {
        "fill_tile": packed_kernels.fill_tile,
        "fetch": packed_kernels.fetch,
        "block_at": panels.block_at,
    },
}
TEMPLATES: dict[str, Callable[..., None]] = {
    "pack": packed_kernels.pack,
    "matvec": packed_kernels.matvec,
    "few": packed_kernels.few,
    "few_by_two": packed_kernels.few_by_two,
    "matmul": tile.matmul,
}
