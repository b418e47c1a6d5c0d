"""Writes GGUF files byte by byte, right or deliberately wrong. Reads nothing of the program."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip
# (weights, bytes) per block, for the types that tests use: a second opinion on quant/ggml.py
SIZES = {0: (1, 4), 1: (1, 2), 8: (32, 34), 10: (256, 84), 12: (256, 144), 14: (256, 210),
         19: (256, 50), 30: (1, 2), 34: (256, 54)}  # fmt: skip


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def strings(texts: list[str]) -> bytes:
    """The payload of a string array without a Python-level struct call per item."""
    return b"".join(len(raw).to_bytes(8, "little") + raw for raw in (t.encode() for t in texts))


def scalar(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack(_FORMS[kind], value)


def kv(key: str | bytes, kind: int, value: Any) -> bytes:
    """One metadata entry; `value` may be ready-made bytes."""
    body = value if isinstance(value, bytes) else scalar(kind, value)
    return string(key) + u32(kind) + body


def array(kind: int, values: list[Any] | np.ndarray) -> bytes:
    """The value of an array entry."""
    if isinstance(values, np.ndarray):
        body = values.tobytes()
    elif kind == STRING:
        body = strings(values)
    else:
        body = b"".join(scalar(kind, v) for v in values)
    return u32(kind) + u64(len(values)) + body


def auto_kv(key: str, value: Any) -> bytes:
    """An entry whose type follows from the Python value."""
    if isinstance(value, bool):
        return kv(key, BOOL, value)
    if isinstance(value, int):
        return kv(key, U32 if value >= 0 else I32, value)
    if isinstance(value, float):
        return kv(key, F32, value)
    if isinstance(value, str):
        return kv(key, STRING, value)
    if isinstance(value, np.ndarray):
        kind = {"int32": I32, "uint32": U32, "float32": F32, "bool": BOOL}[value.dtype.name]
        return kv(key, ARRAY, array(kind, value))
    return kv(key, ARRAY, array(STRING if isinstance(value[0], str) else I32, value))


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """One row of the tensor table; shape in numpy order."""
    dims = b"".join(u64(n) for n in reversed(shape))
    return string(name) + u32(len(shape)) + dims + u32(kind) + u64(offset)


def gguf(
    kvs: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    magic: bytes = b"GGUF",
) -> bytes:
    """A whole file; the counts may lie."""
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(kvs) if n_kv is None else n_kv)
    head += b"".join(kvs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def n_bytes(shape: tuple[int, ...], kind: int) -> int:
    size, width = SIZES[kind]
    return int(np.prod(shape, dtype=object)) // size * width


def layout(
    tensors: dict[str, tuple[tuple[int, ...], int]], alignment: int = 32
) -> tuple[list[bytes], int]:
    """(table rows, bytes of data) for tensors put one after the other."""
    rows, offset = [], 0
    for name, (shape, kind) in tensors.items():
        rows.append(tensor(name, shape, kind, offset))
        offset += n_bytes(shape, kind)
        offset += -offset % alignment
    return rows, offset


def write_model(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int]],
) -> Path:
    """A sound file whose tensors are holes in a sparse file (zeros)."""
    rows, size = layout(tensors)
    head = gguf([auto_kv(k, v) for k, v in metadata.items()], rows)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def write_shards(
    folder: Path,
    name: str,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int]],
    count: int,
) -> list[Path]:
    """As gguf-split does it: all metadata in part 1, tensors dealt out in order."""
    names = list(tensors)
    per_part = -(-len(names) // count)
    paths = []
    for i in range(count):
        split = {
            "split.no": np.uint16(i),
            "split.count": np.uint16(count),
            "split.tensors.count": np.int32(len(names)),
        }
        rows, size = layout({n: tensors[n] for n in names[i * per_part : (i + 1) * per_part]})
        kvs = [auto_kv(k, v) for k, v in metadata.items()] if i == 0 else []
        kvs += [kv(k, I32 if k.endswith("s.count") else U16, int(v)) for k, v in split.items()]
        head = gguf(kvs, rows)
        path = folder / f"{name}-{i + 1:05}-of-{count:05}.gguf"
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + size)
        paths.append(path)
    return paths
