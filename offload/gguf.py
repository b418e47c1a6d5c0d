"""GGUFFile: one GGUF or all its shards, memory-mapped, with checked metadata and tensor views.

Opening reads the headers only. Every view handed out is read-only, costs no copy and covers exactly
one tensor's bytes; it keeps its part mapped, also after `close()`, until it is dropped.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offload import shards
from offload.arguments import path_argument, shown
from offload.errors import GGUFError, RequestError
from offload.gguf_cursor import StringArray
from offload.gguf_header import Header, TensorInfo, parse_header
from quant.ggml import BLOCK

__all__ = ["GGUFFile", "StringArray", "TensorInfo"]

U8 = npt.NDArray[np.uint8]
MAX_PARTS: Final = 99_999  # five digits in a shard's name


class GGUFFile:
    """A model file, or the whole set when it is sharded. Use as a context manager.

    metadata: keys of the first part; numbers, bools and strings as Python values, number arrays as
        read-only numpy views, string arrays as StringArray (decoded item by item).
    tensors: name -> TensorInfo over all parts, in file order.
    version, alignment: of the first part. paths: the parts in order. file_bytes: their total.
    """

    def __init__(self, paths: list[Path], parts: list[U8], headers: list[Header]) -> None:
        self.paths: tuple[Path, ...] = tuple(paths)
        self.version: int = headers[0].version
        self.alignment: int = headers[0].alignment
        self.file_bytes: int = sum(len(part) for part in parts)
        self.metadata: Mapping[str, Any] = MappingProxyType(headers[0].metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_merge_tensors(paths, headers))
        self._parts: list[U8] = parts

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Map the file, or every shard of the set that it belongs to, and parse the headers.

        path: the file or any one shard, NAME-00002-of-00005.gguf.
        Raises GGUFError (missing, damaged, not a GGUF) or UnsupportedError (version, tensor type).
        """
        given = path_argument("the path of the model", path, GGUFError)
        part, header = _open_part(given, 0)
        count = _split_value(header, "split.count", given) or 1
        if count == 1:
            opened = cls([given], [part], [header])
        else:
            paths = shards.shard_paths(given, count)
            pairs = [_open_part(p, i) for i, p in enumerate(paths)]
            opened = cls(paths, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return opened

    def raw(self, name: str) -> U8:
        """Exactly the bytes of a tensor: (n_bytes,) uint8, read-only, no copy."""
        info = self._info(name)
        return self._parts[info.part][info.offset : info.offset + info.n_bytes]

    def blocks(self, name: str) -> U8:
        """The same bytes as (*shape[:-1], n_blocks, block_bytes) uint8."""
        info = self._info(name)
        block = BLOCK[info.ggml_type]
        n_blocks = info.shape[-1] // block.size
        return self.raw(name).reshape(*info.shape[:-1], n_blocks, block.n_bytes)

    def tail_bytes(self, name: str) -> int:
        """Mapped bytes of the same part that follow the tensor's end, 0 for the part's last one.

        A kernel that loads whole vectors may read at most this far past the end; whoever hands
        tensors to such kernels copies those whose tail is too short.
        """
        info = self._info(name)
        return len(self._parts[info.part]) - (info.offset + info.n_bytes)

    def _info(self, name: str) -> TensorInfo:
        """Where a tensor is; RequestError if it is not in the file, or the file is closed."""
        info = self.tensors.get(name) if isinstance(name, str) else None
        if info is None:
            raise RequestError(f"{self.paths[0].name}: there is no tensor {shown(name)}")
        if not self._parts:
            raise RequestError(f"{name}: the GGUFFile is closed")
        return info

    def close(self) -> None:
        """Drop the maps and the metadata; views taken earlier stay valid and keep theirs mapped.

        `tensors`, `paths` and the numbers stay readable; calling it twice is fine.
        """
        self._parts = []
        self.metadata = MappingProxyType({})

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<GGUFFile {self.paths[0].name}: {len(self.paths)} parts, {len(self.tensors)} tensors>"
        )


def _open_part(path: Path, part: int) -> tuple[U8, Header]:
    """Map one file and parse its header. The array keeps the map open."""
    shards.check_is_file(path)
    try:
        with path.open("rb") as file:
            shards.check_magic(file.read(64), path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise shards.unreadable(path, exc) from exc
    return np.frombuffer(mapped, np.uint8), parse_header(memoryview(mapped), part, str(path))


def _split_value(header: Header, key: str, path: Path) -> int | None:
    """A split.* key: None if absent, otherwise a small non-negative int."""
    value = header.metadata.get(key)
    limit = MAX_PARTS if key != "split.tensors.count" else 2**31
    if value is not None and (type(value) is not int or not 0 <= value <= limit):
        raise GGUFError(f"{path.name}: {key} is {value!r}; 0 to {limit:,} is allowed")
    return value


def _merge_tensors(paths: list[Path], headers: list[Header]) -> dict[str, TensorInfo]:
    """All tensors by name, after checking that the parts belong together."""
    merged: dict[str, TensorInfo] = {}
    first = {key: _split_value(headers[0], key, paths[0]) for key in _SPLIT_KEYS}
    for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if len(paths) > 1:
            _check_split_keys(i, path, header, first)
        for info in header.tensors:
            if info.name in merged:
                raise GGUFError(
                    f"the tensor {info.name} is in two parts, {paths[merged[info.name].part].name} "
                    f"and {path.name}; these files do not belong together"
                )
            merged[info.name] = info
    expected = first["split.tensors.count"]
    if expected is not None and expected != len(merged):
        raise GGUFError(
            f"{paths[0].name}: the {len(paths)} parts hold {len(merged):,} tensors, but "
            f"split.tensors.count says {expected:,}; a part is from another download"
        )
    return merged


_SPLIT_KEYS: Final = ("split.count", "split.tensors.count")


def _check_split_keys(i: int, path: Path, header: Header, first: dict[str, int | None]) -> None:
    number = _split_value(header, "split.no", path)
    if number != i:
        raise GGUFError(
            f"{path.name}: split.no is {number}, but the name says part {i + 1} (split.no {i}); "
            "the file was renamed or belongs to another download"
        )
    for key in _SPLIT_KEYS:
        value = _split_value(header, key, path)
        if value != first[key]:
            raise GGUFError(
                f"{path.name}: {key} is {value}, but the first part says {first[key]}; the parts "
                "are from different downloads"
            )
