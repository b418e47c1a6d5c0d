"""The header of one GGUF part: counts, metadata, tensor table; every number checked before use.

    magic "GGUF" | version u32 | tensor count u64 | key-value count u64
    key-values:    key string, type u32, value          (an array: element type u32, count u64)
    tensor table:  name string, n_dims u32, dims u64[n_dims] innermost first, type u32, offset u64
    padding to general.alignment, then the data section; a string is u64 length + bytes

Source: docs/gguf.md of the ggml repository.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offload.errors import GGUFError, UnsupportedError
from offload.gguf_cursor import Cursor
from quant.ggml import BLOCK, GGMLType, QuantError, describe_code, row_bytes

MAX_KEY_BYTES: Final = 65_535
MAX_NAME_BYTES: Final = 255  # llama.cpp itself stops at 63
MAX_DIMS: Final = 4
MAX_ARRAY_DEPTH: Final = 4
MAX_BYTES: Final = 2**63 - 1
DEFAULT_ALIGNMENT: Final = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final[dict[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_DTYPES: Final[dict[int, str]] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_MIN_KV_BYTES: Final = 8 + 1 + 4 + 1  # length, one character, type, one byte of value
_MIN_TENSOR_BYTES: Final = 8 + 1 + 4 + 4 + 8  # length, one character, n_dims, type, offset


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
class Header:
    """One parsed part."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]


def parse_header(data: memoryview, part: int, label: str) -> Header:
    """Parse and check the header of one part.

    data: all bytes of the part (the map). label: the file's name, for messages.
    Raises GGUFError for anything broken, UnsupportedError for a version or type that is not ours.
    """
    cur = Cursor(data, label)
    cur.need(4, "the magic")
    version = _version(cur)
    n_tensors = cur.count("tensors", _MIN_TENSOR_BYTES)
    n_keys = cur.count("metadata entries", _MIN_KV_BYTES)
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cur.text(f"the key of metadata entry {i}", MAX_KEY_BYTES)
        if key in metadata:
            raise GGUFError(f"{label}: the metadata key {key!r} appears twice")
        kind = cur.u32(f"the type of {key!r}")
        metadata[key] = _array(cur, key, 1) if kind == _ARRAY else _scalar(cur, key, kind)
    alignment = _alignment(metadata, label)
    return Header(
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=_tensor_table(cur, n_tensors, alignment, part),
    )


def _version(cur: Cursor) -> int:
    version = cur.u32("the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise UnsupportedError(
            f"{cur.label} is a big-endian GGUF (version {swapped}, bytes swapped); only "
            "little-endian files can be read: download or convert the little-endian one"
        )
    if version == 1:
        raise UnsupportedError(
            f"{cur.label} is GGUF version 1 (2023); versions 2 and 3 can be read: convert the "
            "model again with a current llama.cpp"
        )
    raise UnsupportedError(
        f"{cur.label} says GGUF version {version:,}; versions 2 and 3 can be read"
    )


def _scalar(cur: Cursor, key: str, kind: int) -> Any:
    what = f"the value of {key!r}"
    if kind == _STRING:
        n = cur.u64(f"the length of {key!r}")
        start = cur.need(n, what)
        return str(cur.data[start : start + n], "utf-8", "replace")
    if kind not in _SCALARS:
        raise GGUFError(f"{cur.label}: {what} has type code {kind:,}; 0 to 12 exist")
    form = _SCALARS[kind]
    value = form.unpack_from(cur.data, cur.need(form.size, what))[0]
    if kind == _BOOL:
        if value > 1:
            raise GGUFError(f"{cur.label}: {what} is a boolean with the byte {value}")
        return bool(value)
    return value


def _array(cur: Cursor, key: str, depth: int) -> Any:
    """A numpy view (numbers), a StringArray, or a list (arrays of arrays)."""
    kind = cur.u32(f"the element type of {key!r}")
    if kind == _STRING:
        return cur.strings(key)
    if kind == _ARRAY:
        if depth == MAX_ARRAY_DEPTH:
            raise GGUFError(f"{cur.label}: {key!r} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        n = cur.count(f"arrays in {key!r}", 12)
        return [_array(cur, key, depth + 1) for _ in range(n)]
    if kind not in _SCALARS:
        raise GGUFError(f"{cur.label}: {key!r} has elements of type code {kind:,}; 0 to 12 exist")
    width = _SCALARS[kind].size
    n = cur.count(f"elements in {key!r}", width)
    start = cur.need(n * width, f"the array {key!r}")
    values: npt.NDArray[Any] = np.frombuffer(cur.data, _DTYPES[kind], n, start)
    if kind == _BOOL:
        if n and values.max() > 1:
            raise GGUFError(f"{cur.label}: {key!r} has booleans with bytes other than 0 and 1")
        return values.view(np.bool_)
    return values


def _alignment(metadata: dict[str, Any], label: str) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise GGUFError(f"{label}: general.alignment is {value!r}; it must be a power of two")
    return value


def _tensor_table(cur: Cursor, n: int, alignment: int, part: int) -> list[TensorInfo]:
    """Parse the table, then check every tensor's bytes against the part."""
    rows: list[tuple[str, int, tuple[int, ...], int]] = []
    for i in range(n):
        name = cur.text(f"the name of tensor {i}", MAX_NAME_BYTES)
        n_dims = cur.u32(f"the dimension count of {name!r}")
        if n_dims > MAX_DIMS:
            raise GGUFError(f"{cur.label}: {name} has {n_dims:,} dimensions; 0 to 4 are allowed")
        dims = [cur.u64(f"dimension {d} of {name!r}") for d in range(n_dims)] or [1]
        if prod(dims) > MAX_BYTES or 0 in dims:
            raise GGUFError(f"{cur.label}: {name} has the impossible shape {tuple(dims[::-1])}")
        code = cur.u32(f"the type of {name!r}")
        rows.append((name, code, tuple(dims[::-1]), cur.u64(f"the offset of {name!r}")))
    _refuse_foreign_types(rows, cur.label)

    data_start = -(-cur.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, code, shape, offset in rows:
        ggml_type = GGMLType(code)
        try:
            n_bytes = row_bytes(ggml_type, shape[-1]) * prod(shape[:-1])
        except QuantError as exc:
            raise GGUFError(f"{cur.label}: {name} with shape {shape}: {exc}") from exc
        if name in tensors:
            raise GGUFError(f"{cur.label}: the tensor {name} appears twice")
        if offset % alignment:
            raise GGUFError(
                f"{cur.label}: {name} starts at offset {offset:,}, which is not a multiple of the "
                f"alignment {alignment:,}"
            )
        tensors[name] = TensorInfo(
            name=name,
            ggml_type=ggml_type,
            shape=shape,
            n_bytes=n_bytes,
            part=part,
            offset=data_start + offset,
        )
    _check_extents(list(tensors.values()), cur)
    return list(tensors.values())


def _refuse_foreign_types(rows: list[tuple[str, int, tuple[int, ...], int]], label: str) -> None:
    foreign = [(name, code) for name, code, *_ in rows if code not in _OUR_CODES]
    if not foreign:
        return
    name, code = foreign[0]
    more = f" (and {len(foreign) - 1:,} more tensors like it)" if len(foreign) > 1 else ""
    raise UnsupportedError(
        f"{label}: {name} has type {describe_code(code)}, which this program cannot read{more}; "
        "use a file quantised with llama.cpp's own types (Q2_K to Q8_0, IQ1_S to IQ4_XS, TQ1_0, "
        "F16, ...)"
    )


_OUR_CODES: Final = frozenset(int(t) for t in BLOCK)


def _check_extents(tensors: list[TensorInfo], cur: Cursor) -> None:
    """No tensor may reach past the part or into its neighbour."""
    tensors = sorted(tensors, key=lambda t: t.offset)
    if tensors:
        last = max(tensors, key=lambda t: t.offset + t.n_bytes)
        end = last.offset + last.n_bytes
        if end > cur.size:
            raise GGUFError(
                f"{cur.label} is cut short: {last.name} needs bytes up to {end:,}, but the file "
                f"has {cur.size:,}; download it again"
            )
    for a, b in zip(tensors, tensors[1:], strict=False):
        if a.offset + a.n_bytes > b.offset:
            raise GGUFError(
                f"{cur.label}: {a.name} (bytes {a.offset:,} to {a.offset + a.n_bytes:,}) overlaps "
                f"{b.name} (from byte {b.offset:,}); the file is damaged: download it again"
            )
