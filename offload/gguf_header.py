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
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offload.errors import GGUFError, UnsupportedError, shown
from offload.gguf_cursor import Cursor
from offload.gguf_tensors import ForeignTensor, TensorInfo, tensor_table
from offload.metadata import described

MAX_LABEL: Final = 1_000  # characters of a path in a message
MAX_KEY_BYTES: Final = 65_535
MAX_ARRAY_DEPTH: Final = 4
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
class Header:
    """One parsed part.

    foreign: tensors of types that this program does not know. end: the first byte after the last
    tensor, or after the header of a part without tensors.
    """

    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    foreign: list[ForeignTensor]
    end: int


def parse_header(data: memoryview, part: int, label: str) -> Header:
    """Parse and check the header of one part.

    data: all bytes of the part (the map). label: the file's name, for messages.
    Raises GGUFError for anything broken, UnsupportedError for a version that is not ours.
    """
    label = shown(label, MAX_LABEL)
    cur = Cursor(data, label)
    cur.need(4, "the magic")
    version = _version(cur)
    n_tensors = cur.count("tensors", _MIN_TENSOR_BYTES)
    n_keys = cur.count("metadata entries", _MIN_KV_BYTES)
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cur.text(f"the key of metadata entry {i}", MAX_KEY_BYTES)
        name = shown(key)
        if key in metadata:
            raise GGUFError(f"{label}: the metadata key '{name}' appears twice")
        kind = cur.u32(f"the type of '{name}'")
        metadata[key] = _array(cur, name, 1) if kind == _ARRAY else _scalar(cur, name, kind)
    alignment = _alignment(metadata, label)
    tensors, foreign = tensor_table(cur, n_tensors, alignment, part)
    ends = [cur.pos, *(t.offset + t.n_bytes for t in tensors), *(t.offset for t in foreign)]
    return Header(
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=tensors,
        foreign=foreign,
        end=max(ends),
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
    what = f"the value of '{key}'"
    if kind == _STRING:
        n = cur.u64(f"the length of '{key}'")
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
    kind = cur.u32(f"the element type of '{key}'")
    if kind == _STRING:
        return cur.strings(key)
    if kind == _ARRAY:
        if depth == MAX_ARRAY_DEPTH:
            raise GGUFError(f"{cur.label}: '{key}' nests arrays more than {MAX_ARRAY_DEPTH} deep")
        n = cur.count(f"arrays in '{key}'", 12)
        return [_array(cur, key, depth + 1) for _ in range(n)]
    if kind not in _SCALARS:
        raise GGUFError(f"{cur.label}: '{key}' has elements of type code {kind:,}; 0 to 12 exist")
    width = _SCALARS[kind].size
    n = cur.count(f"elements in '{key}'", width)
    start = cur.need(n * width, f"the array '{key}'")
    values: npt.NDArray[Any] = np.frombuffer(cur.data, _DTYPES[kind], n, start)
    if kind == _BOOL:
        if n and values.max() > 1:
            raise GGUFError(f"{cur.label}: '{key}' has booleans with bytes other than 0 and 1")
        return values.view(np.bool_)
    return values


def _alignment(metadata: dict[str, Any], label: str) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise GGUFError(
            f"{label}: general.alignment is {described(value)}; it must be a power of two"
        )
    return value
