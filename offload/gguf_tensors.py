"""The tensor table of one GGUF part: names, types, shapes and where the bytes lie, all checked.

A tensor of a type that is not in `quant.ggml` (a newer one, or another program's) has an unknown
size: it is kept apart as a ForeignTensor, so that the rest of the file can still be shown.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Final

from offload.errors import GGUFError, UnsupportedError, shown
from offload.gguf_cursor import Cursor
from quant.ggml import (
    BLOCK,
    IK_LLAMA_TYPES,
    REMOVED_TYPES,
    GGMLType,
    QuantError,
    describe_code,
    row_bytes,
)

MAX_NAME_BYTES: Final = 255  # llama.cpp itself stops at 63
MAX_DIMS: Final = 4
MAX_BYTES: Final = 2**63 - 1

_OUR_CODES: Final = frozenset(int(t) for t in BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    shape is in numpy order (innermost last); offset counts bytes from the start of part `part`.
    """

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    n_bytes: int
    part: int
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTensor:
    """A tensor whose type this program does not know, so its size is unknown, too.

    code: of the type, as stored. shape, part, offset: as in TensorInfo.
    """

    name: str
    code: int
    shape: tuple[int, ...]
    part: int
    offset: int

    @property
    def type_name(self) -> str:
        """'IQ2_KS' where other programs' names for the code are known, else 'type 99'."""
        return IK_LLAMA_TYPES.get(self.code) or REMOVED_TYPES.get(self.code) or f"type {self.code}"

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


def refuse_foreign(foreign: Collection[ForeignTensor], label: str) -> None:
    """Raise UnsupportedError if there are any; the first is named."""
    if not foreign:
        return
    first = next(iter(foreign))
    more = f" (and {len(foreign) - 1:,} more tensors like it)" if len(foreign) > 1 else ""
    raise UnsupportedError(
        f"{label}: {shown(first.name)} has type {describe_code(first.code)}, which this program "
        f"cannot read{more}; use a file quantised with llama.cpp's own types (Q2_K to Q8_0, IQ1_S "
        "to IQ4_XS, TQ1_0, F16, ...)"
    )


def tensor_table(
    cur: Cursor, n: int, alignment: int, part: int
) -> tuple[list[TensorInfo], list[ForeignTensor]]:
    """Parse the table of `n` tensors, then check every tensor's bytes against the part."""
    rows: list[tuple[str, int, tuple[int, ...], int]] = []
    for i in range(n):
        name = cur.text(f"the name of tensor {i}", MAX_NAME_BYTES)
        label = shown(name)
        n_dims = cur.u32(f"the dimension count of '{label}'")
        if n_dims > MAX_DIMS:
            raise GGUFError(f"{cur.label}: {label} has {n_dims:,} dimensions; 0 to 4 are allowed")
        dims = [cur.u64(f"dimension {d} of '{label}'") for d in range(n_dims)] or [1]
        if prod(dims) > MAX_BYTES or 0 in dims:
            raise GGUFError(f"{cur.label}: {label} has the impossible shape {tuple(dims[::-1])}")
        code = cur.u32(f"the type of '{label}'")
        rows.append((name, code, tuple(dims[::-1]), cur.u64(f"the offset of '{label}'")))

    data_start = -(-cur.pos // alignment) * alignment
    names: set[str] = set()
    tensors: list[TensorInfo] = []
    foreign: list[ForeignTensor] = []
    for name, code, shape, offset in rows:
        if name in names:
            raise GGUFError(f"{cur.label}: the tensor {shown(name)} appears twice")
        names.add(name)
        if offset % alignment:
            raise GGUFError(
                f"{cur.label}: {shown(name)} starts at offset {offset:,}, which is not a multiple "
                f"of the alignment {alignment:,}"
            )
        at = data_start + offset
        if code not in _OUR_CODES:
            foreign.append(ForeignTensor(name=name, code=code, shape=shape, part=part, offset=at))
            continue
        ggml_type = GGMLType(code)
        try:
            n_bytes = row_bytes(ggml_type, shape[-1]) * prod(shape[:-1])
        except QuantError as exc:
            raise GGUFError(f"{cur.label}: {shown(name)} with shape {shape}: {exc}") from exc
        info = TensorInfo(
            name=name, ggml_type=ggml_type, shape=shape, n_bytes=n_bytes, part=part, offset=at
        )
        tensors.append(info)
    _check_extents(tensors, foreign, cur)
    return tensors, foreign


def _check_extents(tensors: list[TensorInfo], foreign: list[ForeignTensor], cur: Cursor) -> None:
    """No tensor may reach past the part or into its neighbour."""
    ends = [(t.offset + t.n_bytes, t.name) for t in tensors]
    ends += [(t.offset + 1, t.name) for t in foreign]  # at least a byte
    end, name = max(ends, default=(0, ""))
    if end > cur.size:
        raise GGUFError(
            f"{cur.label} is cut short: {shown(name)} needs bytes up to {end:,}, but the file "
            f"has {cur.size:,}; download it again"
        )
    tensors = sorted(tensors, key=lambda t: t.offset)
    for a, b in zip(tensors, tensors[1:], strict=False):
        if a.offset + a.n_bytes > b.offset:
            raise GGUFError(
                f"{cur.label}: {shown(a.name)} (bytes {a.offset:,} to {a.offset + a.n_bytes:,}) "
                f"overlaps {shown(b.name)} (from byte {b.offset:,}); the file is damaged: download "
                "it again"
            )
