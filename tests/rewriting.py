"""Copies of a model file with other metadata or with tensor types that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_bytes as gb
from gguf_bytes import ARRAY, STRING, kv, tensor

from offload.gguf import GGUFFile, StringArray


def rewritten(source: Path, path: Path, changes: dict[str, bytes | None], foreign: int = 0) -> Path:
    """A copy with other metadata (None removes a key); `foreign` tensors of unknown types."""
    with GGUFFile.open(source) as f:
        kvs = [_entry(key, value) for key, value in f.metadata.items() if key not in changes] + [
            gb.string(key) + value for key, value in changes.items() if value is not None
        ]
        start = min(info.offset for info in f.tensors.values())
        rows = [
            tensor(
                info.name,
                info.shape,
                (145, 77)[i % 2] if i < foreign else int(info.ggml_type),
                info.offset - start,
            )
            for i, info in enumerate(reversed(list(f.tensors.values())))
        ]
        path.write_bytes(gb.gguf(kvs, rows, source.read_bytes()[start:]))
    return path


def _entry(key: str, value: Any) -> bytes:
    if isinstance(value, StringArray):
        return kv(key, ARRAY, gb.array(STRING, list(value)))
    return gb.auto_kv(key, value)
