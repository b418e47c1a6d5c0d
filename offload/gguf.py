"""GGUFFile: one GGUF or all its shards, memory-mapped, with checked metadata and tensor views.

Opening reads the headers only. Every view handed out is read-only, costs no copy and covers exactly
one tensor's bytes; it keeps its part mapped, also after `close()`, until it is dropped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offload import shards
from offload.arguments import path_argument, quoted
from offload.errors import GGUFError, RequestError, shown
from offload.gguf_cursor import StringArray
from offload.gguf_header import Header, parse_header
from offload.gguf_tensors import ForeignTensor, TensorInfo
from offload.mapped_file import MappedFile
from offload.metadata import integer
from quant.ggml import BLOCK

__all__ = ["ForeignTensor", "GGUFFile", "StringArray", "TensorInfo"]

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
MAX_PARTS: Final = 99_999  # five digits in a shard's name
MAX_PADDING: Final = 65_536  # bytes behind the tensors in which another header is looked for


class GGUFFile:
    """A model file, or the whole set when it is sharded. Use as a context manager.

    metadata: keys of the first part; numbers, bools and strings as Python values, number arrays as
        read-only numpy views, string arrays as StringArray (decoded item by item).
    tensors: name -> TensorInfo over all parts, in file order. foreign: likewise, those of types
        that this program does not know; no model can be run from a file that has any.
    version, alignment: of the first part. paths: the parts in order. file_bytes: their total.
    mapped: the parts as long as they are open.
    """

    def __init__(self, paths: list[Path], parts: list[MappedFile], headers: list[Header]) -> None:
        self.paths: tuple[Path, ...] = tuple(paths)
        self.version: int = headers[0].version
        self.alignment: int = headers[0].alignment
        self.file_bytes: int = sum(part.size for part in parts)
        self.metadata: Mapping[str, Any] = MappingProxyType(headers[0].metadata)
        _check_names(paths, headers)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {info.name: info for header in headers for info in header.tensors}
        )
        self.foreign: Mapping[str, ForeignTensor] = MappingProxyType(
            {info.name: info for header in headers for info in header.foreign}
        )
        self.mapped: tuple[MappedFile, ...] = tuple(parts)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Map the file, or every shard of the set that it belongs to, and parse the headers.

        path: the file or any one shard, NAME-00002-of-00005.gguf.
        Raises GGUFError (missing, damaged, not a GGUF) or UnsupportedError (version).
        """
        given = path_argument("the path of the model", path, GGUFError)
        part, header = _open_part(given, 0)
        count = _split_value(header, "split.count", given) or 1
        if count > 1 and shards.parse_shard_name(given) is None and _is_whole(header, given):
            log.warning(
                "%s says that it is one of %d parts (split.count), but holds all tensors",
                shards.label(given.name),
                count,
            )
            count = 1
        if count == 1:
            opened = cls([given], [part], [header])
        else:
            paths = shards.shard_paths(given, count)
            pairs = [_open_part(p, i) for i, p in enumerate(paths)]
            opened = cls(paths, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return opened

    @classmethod
    def open_part(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Map one part of a set alone: its own metadata and tensors, whatever the others hold."""
        given = path_argument("the path of the model", path, GGUFError)
        part, header = _open_part(given, 0)
        return cls([given], [part], [header])

    def raw(self, name: str) -> U8:
        """Exactly the bytes of a tensor: (n_bytes,) uint8, read-only, no copy."""
        info = self._info(name)
        return self.mapped[info.part].data[info.offset : info.offset + info.n_bytes]

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
        return self.mapped[info.part].size - (info.offset + info.n_bytes)

    def _info(self, name: str) -> TensorInfo:
        """Where a tensor is; RequestError if it is not in the file, or the file is closed."""
        info = self.tensors.get(name) if isinstance(name, str) else None
        if info is None:
            raise RequestError(f"{shown(self.paths[0].name)}: there is no tensor {quoted(name)}")
        if not self.mapped:
            raise RequestError(f"{shown(name)}: the GGUFFile is closed")
        return info

    def close(self) -> None:
        """Drop the maps and the metadata; views taken earlier stay valid and keep theirs mapped.

        `tensors`, `paths` and the numbers stay readable; calling it twice is fine.
        """
        self.mapped = ()
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
            f"<GGUFFile {shards.label(self.paths[0].name)}: {len(self.paths)} parts, "
            f"{len(self.tensors) + len(self.foreign)} tensors>"
        )


def _open_part(path: Path, part: int) -> tuple[MappedFile, Header]:
    """Map one file and parse its header."""
    shards.check_is_file(path)
    try:
        with path.open("rb") as file:
            shards.check_magic(file.read(64), path)
        mapped = MappedFile(path)
    except OSError as exc:
        raise shards.unreadable(path, exc) from exc
    try:
        header = parse_header(mapped.data.data, part, str(path))
    except GGUFError as exc:
        mapped.check_unchanged()  # if it is not, that is why
        if hint := shards.piece_hint(path):
            raise GGUFError(f"{exc}{hint}") from exc
        raise
    _check_what_follows(mapped, header, path)
    mapped.check_unchanged()
    return mapped, header


def _check_what_follows(mapped: MappedFile, header: Header, path: Path) -> None:
    """Recognise parts that were joined with `cat`: behind the tensors another GGUF begins."""
    window = min(header.alignment, MAX_PADDING) + 8
    behind = mapped.data[header.end : header.end + window + 4].tobytes()
    found = behind.find(b"GGUF")
    if found < 0 or behind[found + 4 : found + 8] not in (b"\2\0\0\0", b"\3\0\0\0"):
        return
    at = header.end + found
    count = _split_value(header, "split.count", path) or 1
    if count > 1:
        number = (_split_value(header, "split.no", path) or 0) + 1
        raise GGUFError(
            f"{shards.label(path)} is several parts joined with cat: part {number} of {count} ends "
            f"at byte {header.end:,} and another GGUF file follows, which cannot be read in there; "
            "give the first of the original parts, or join those with `llama-gguf-split --merge "
            "FIRST-PART OUTPUT`"
        )
    log.warning(
        "%s: another GGUF file begins at byte %s, behind this one's tensors; it is not read",
        shards.label(path),
        f"{at:,}",
    )


def _split_value(header: Header, key: str, path: Path) -> int | None:
    """A split.* key: None if absent, otherwise a small non-negative int."""
    limit = MAX_PARTS if key != "split.tensors.count" else 2**31
    try:
        return integer(header.metadata, key, 0, limit)
    except GGUFError as exc:
        raise GGUFError(f"{shards.label(path)}: {exc}") from exc


def _is_whole(header: Header, path: Path) -> bool:
    """Whether a part holds all tensors of its set: tools that join parts leave the keys behind."""
    held = len(header.tensors) + len(header.foreign)
    return held > 0 and held == _split_value(header, "split.tensors.count", path)


def _check_names(paths: list[Path], headers: list[Header]) -> None:
    """Do the parts belong together? No tensor twice; what they say of the set must agree."""
    seen: dict[str, Path] = {}
    first = _split_value(headers[0], "split.count", paths[0])
    for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if len(paths) > 1:
            _check_split_keys(i, path, header, first)
        for name in (*(t.name for t in header.tensors), *(t.name for t in header.foreign)):
            if name in seen:
                raise GGUFError(
                    f"the tensor {shown(name)} is in two parts, "
                    f"{shards.label(seen[name].name)} and {shards.label(path.name)}; these "
                    "files do not belong together"
                )
            seen[name] = path
    if len(paths) < (first or 1) and not _is_whole(headers[0], paths[0]):
        return  # a part alone
    for path, header in zip(paths, headers, strict=True):
        stated = _split_value(header, "split.tensors.count", path)
        if stated is not None and stated != len(seen):
            # Tools that add or drop tensors leave the count behind: what the model needs decides.
            log.warning(
                "%s says that the model has %s tensors (split.tensors.count), but %s are there; if "
                "answers are odd, a part is from another download",
                shards.label(path.name),
                f"{stated:,}",
                f"{len(seen):,}",
            )
            return


def _check_split_keys(i: int, path: Path, header: Header, count: int | None) -> None:
    number = _split_value(header, "split.no", path)
    if number != i:
        raise GGUFError(
            f"{shards.label(path.name)}: split.no is {number}, but the name says part {i + 1} "
            f"(split.no {i}); the file was renamed or belongs to another download"
        )
    stated = _split_value(header, "split.count", path)
    if stated != count:
        raise GGUFError(
            f"{shards.label(path.name)}: split.count is {stated}, but the first part says "
            f"{count}; the parts are from different downloads"
        )
