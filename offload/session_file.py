"""A session in a file: a conversation's rows of the KV cache, so that the next start has them.

    16 bytes  magic
    u32, u32  version, crc32 of the header
    u64       bytes of the header
    JSON      what the rows are of: `Head`; zeros up to a multiple of 4096
    rows      of each layer, (tokens, its row_bytes) uint8
    u32 ...   crc32 of each layer's rows

A file appears under its name only when it is whole (temporary file beside it, fsync, rename), and
replaces nothing but another session. What is read is not trusted: nothing is allocated before the
header agrees with the size of the file and with the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offload.batch import Runs
from offload.errors import RequestError, reason, shown
from offload.gguf import GGUFFile
from offload.gguf_cursor import StringArray
from offload.whole_file import whole_file

Array = np.ndarray
MAGIC = b"kimi-offload KV\n"
VERSION = 2
START = struct.Struct("<16sIIQ")
ALIGN = 4096
LARGEST_HEADER = 64 << 20
SAMPLE = 64  # bytes of each tensor that tell one model from another
PREFIX = ".kimi-offload-session-"
STALE_SECONDS = 24 * 3600.0  # after which what a killed save has left is removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the rows are of. model, tokenizer: digests. kind, row_bytes (by layer): of the rows.

    ids: the tokens. expanded: `batch.expanded_runs` of the prompt. note: the caller's own text.
    """

    name: str
    model: str
    tokenizer: str
    kind: str
    row_bytes: list[int]
    ids: list[int]
    expanded: Runs
    note: str

    @property
    def rows_bytes(self) -> int:
        """Of all layers."""
        return sum(self.row_bytes) * len(self.ids)


# --- writing ------------------------------------------------------------------------------------


def save(path: Path, head: Head, layers: Sequence[Array]) -> None:
    """Write it; RequestError if that fails, or if another kind of file is there."""
    path = Path(os.path.realpath(path))  # what is replaced must not be a link to it
    try:
        if path.exists() and not _is_session(path):
            raise RequestError(
                f"{shown(path, 1000)} exists and is no session, so it is left alone; choose "
                "another name"
            )
        _sweep(path.parent)
        with whole_file(path, PREFIX) as file:
            _write(file, head, layers)
    except OSError as exc:
        raise RequestError(
            f"the session cannot be written to {shown(path, 1000)}: {reason(exc)}"
        ) from exc


def _write(file: BinaryIO, head: Head, layers: Sequence[Array]) -> None:
    text = json.dumps(asdict(head)).encode()
    if len(text) > LARGEST_HEADER:
        raise RequestError(f"the session's header takes {len(text):,} bytes; shorten the note")
    start = START.pack(MAGIC, VERSION, zlib.crc32(text), len(text))
    padding = -(START.size + len(text)) % ALIGN
    _put(file, start + text + b"\0" * padding)
    with ThreadPoolExecutor(1) as pool:
        sums = []
        for rows in layers:
            data = np.ascontiguousarray(rows).data.cast("B")
            sums.append(pool.submit(zlib.crc32, data))
            _put(file, data)
        _put(file, struct.pack(f"<{len(sums)}I", *(future.result() for future in sums)))


def _put(file: BinaryIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _sweep(folder: Path) -> None:
    """Remove what killed saves have left."""
    for path in folder.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _is_session(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


# --- reading ------------------------------------------------------------------------------------


class SessionFile:
    """An opened session; head is checked against the file's size."""

    def __init__(self, file: BinaryIO, head: Head, label: str) -> None:
        self.head = head
        self._file = file
        self._label = label

    def refuse(self, why: str) -> RequestError:
        """The error that says why it is not used."""
        return RequestError(f"{self._label} is not used: {why}")

    def read_into(self, layers: Sequence[Array]) -> None:
        """Read the rows into layers (tokens, row_bytes) uint8; RequestError if they are damaged."""
        with ThreadPoolExecutor(1) as pool:
            sums = []
            for rows in layers:
                data = rows.data.cast("B")
                self._fill(data)
                sums.append(pool.submit(zlib.crc32, data))
            kept = bytearray(4 * len(sums))
            self._fill(memoryview(kept))
            wanted = struct.unpack(f"<{len(sums)}I", kept)
            for layer, (future, checksum) in enumerate(zip(sums, wanted, strict=True)):
                if future.result() != checksum:
                    raise self.refuse(f"the checksum of layer {layer} is wrong")

    def _fill(self, data: memoryview) -> None:
        while data:
            n = self._file.readinto(data)  # type: ignore[attr-defined]
            if not n:
                raise self.refuse("it is cut off")
            data = data[n:]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SessionFile]:
    """Open a session; RequestError if it is none, or damaged."""
    label = f"the session {shown(path, 1000)}"
    try:
        # a FIFO must not block
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            try:
                head = _head(file, os.fstat(descriptor))
            except ValueError as exc:
                raise RequestError(f"{label} is not used: {exc}") from exc
            yield SessionFile(file, head, label)
    except OSError as exc:
        raise RequestError(f"{label} cannot be read: {reason(exc)}") from exc


def _head(file: BinaryIO, about: os.stat_result) -> Head:
    """The checked header, with the file at the first row; ValueError."""
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    start = file.read(START.size)
    if len(start) < START.size or start[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no session of this program")
    _, version, checksum, n_bytes = START.unpack(start)
    if version != VERSION:
        raise ValueError(f"its version is {version}, this program reads {VERSION}")
    if n_bytes > min(LARGEST_HEADER, about.st_size):
        raise ValueError("its header is damaged")
    text = file.read(n_bytes)
    if len(text) != n_bytes or zlib.crc32(text) != checksum:
        raise ValueError("its header is damaged")
    head = _checked(text)
    rows_at = -(-(START.size + n_bytes) // ALIGN) * ALIGN
    size = rows_at + head.rows_bytes + 4 * len(head.row_bytes)
    if about.st_size != size:
        raise ValueError(f"it has {about.st_size:,} bytes instead of {size:,}")
    file.seek(rows_at)
    return head


def _checked(text: bytes) -> Head:
    damaged = ValueError("its header is damaged")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise damaged from exc
    if not isinstance(given, dict) or given.keys() != {field.name for field in fields(Head)}:
        raise damaged
    texts = (given[name] for name in ("name", "model", "tokenizer", "kind", "note"))
    numbers, runs = (given["ids"], given["row_bytes"]), given["expanded"]
    if not all(isinstance(value, str) for value in texts) or not all(map(_are_counts, numbers)):
        raise damaged
    if not isinstance(runs, list) or not all(_are_counts(run) and len(run) == 2 for run in runs):
        raise damaged
    if any(a >= b for a, b in pairwise(chain([-1], *runs))):
        raise damaged
    return Head(**given | {"expanded": tuple((first, end) for first, end in runs)})


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**40 for n in values)


# --- what a model is ----------------------------------------------------------------------------


def digests(file: GGUFFile) -> tuple[str, str]:
    """Of a model (sizes, tensors, samples of their bytes) and of its tokenizer.

    The same for a copy of the file, and for one that differs only in names or its chat template.
    """
    model, tokenizer = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for key in sorted(file.metadata):
        if not key.startswith(("general.", "tokenizer.chat_template", "split.")):
            digest = tokenizer if key.startswith("tokenizer.") else model
            digest.update(key.encode() + b"\0" + _bytes_of(file.metadata[key]) + b"\0")
    for name, info in sorted(file.tensors.items()):
        model.update(repr((name, info.ggml_type.name, info.shape)).encode())
        data = file.raw(name)
        middle = len(data) // 2
        model.update(data[middle : middle + SAMPLE].tobytes())
    return model.hexdigest(), tokenizer.hexdigest()


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, StringArray):
        return b"\0".join(value.raw(i) for i in range(len(value)))
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return repr(value).encode()
