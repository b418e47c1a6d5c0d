"""Packed experts kept on disk, so that the next start maps them instead of packing.

One file per layer, DIR/<key>/blk.<layer>.packed:

    line of JSON {"key", "tensors": [{"name", "at", "n_bytes", "sums"}], ...}, its sha256, padding
    tensors, each at a multiple of 4096 bytes

The key digests what the model file was (size, inode, times of change, header), where the layer's
tensors lie in it, samples of their bytes, and the layout's version: anything else is made anew. A
file that another user owns or may write, or that is none (a link, a pipe), is not used. `sums` are
sha256 of pieces of 16 MiB; all are checked before a file is used, in parallel, while its pages come
from disk (with the processor's own sha256 that keeps up with a good SSD). Files appear under their
name only when they are whole (temporary file, fsync, rename).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offload.amounts import binary_amount
from offload.errors import PlanError, reason, shown
from offload.expert_layout import Packable, packed_matrix_bytes, type_for
from offload.gguf import GGUFFile
from offload.mapped_file import MappedFile
from offload.weights import fused_name
from quant.compiler.kernel_cache import distrust

log = logging.getLogger(__name__)

Array = np.ndarray
FORMAT = 2
ALIGN = 4096
PIECE = 16 << 20  # bytes of one sum
SAMPLES, SAMPLE_BYTES = 64, 4096  # of a tensor, in the key
HEADER_LIMIT = 1 << 24
STALE_SECONDS = 24 * 3600.0


class PackedCache:
    """The packed layers of one model file in a folder."""

    def __init__(self, folder: Path, file: GGUFFile, threads: int) -> None:
        if os.path.exists(folder) and not os.path.isdir(folder):  # Path's own may raise
            raise PlanError(f"--packed-cache {folder}: this is a file; name a folder")
        self._file = file
        self._threads = threads
        self._identity = _identity(file)
        # by the place of the model: what is made anew replaces what was there
        place = hashlib.sha256(os.fsencode(os.path.realpath(file.paths[0]))).hexdigest()
        self._folder = folder / f"{file.paths[0].stem}-{place[:16]}"
        self._is_broken = False  # writing failed; told once
        self._refused: dict[str, list[Path]] = {}  # by reason
        self._notes: list[str] = []
        self.mapped: list[MappedFile] = []  # the files in use
        self.loaded = self.stored = 0

    def _path(self, layer: Packable) -> Path:
        return self._folder / f"blk.{layer.layer}.packed"

    def key(self, layer: Packable) -> str:
        """What a file of this layer must say to be used."""
        digest = hashlib.sha256(self._identity)
        for m in layer.matrices:
            packed = type_for(m)
            assert packed is not None
            name = m.name if m.name in self._file.tensors else fused_name(m.name)
            info = self._file.tensors[name]
            facts = (
                FORMAT, m.name, packed.ggml_type.name, packed.version, packed.group_rows,
                packed.group_bytes, m.count, m.n_rows, m.n_cols, info.part, info.offset,
            )  # fmt: skip
            digest.update(repr(facts).encode())
            data = self._file.raw(name)
            for at in np.linspace(0, max(0, len(data) - SAMPLE_BYTES), SAMPLES).astype(np.int64):
                digest.update(data[at : at + SAMPLE_BYTES].data)
        return digest.hexdigest()

    # --- reading ----------------------------------------------------------------------------------

    def load(self, layer: Packable) -> list[Array] | None:
        """The packed tensors, mapped and checked; None where they must be made."""
        path = self._path(layer)
        try:
            file = MappedFile(path, follow_links=False)
            if why := distrust(file.info):
                raise ValueError(why)
            made = self._checked(file.data, layer)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            why = reason(exc)
            if why not in self._refused:
                log.warning("%s is not used: %s; it is made again", shown(path, 1000), why)
            self._refused.setdefault(why, []).append(path)
            return None
        self.mapped.append(file)
        self.loaded += 1
        return made

    def _checked(self, data: Array, layer: Packable) -> list[Array]:
        """The tensors in a file's bytes; ValueError if it is damaged or of another model."""
        header = _header(data)
        if header["key"] != self.key(layer):
            raise ValueError("the model or the layout has changed since")
        entries = header["tensors"]
        if len(entries) != len(layer.matrices):
            raise ValueError("its header is damaged")
        made = []
        for m, entry in zip(layer.matrices, entries, strict=True):
            size = m.count * packed_matrix_bytes(m)
            at = entry["at"]
            if entry["name"] != m.name or entry["n_bytes"] != size or at % ALIGN:
                raise ValueError("its header is damaged")
            part = data[at : at + size]
            if len(part) != size:
                raise ValueError("it is cut off")
            if self._sums(part) != entry["sums"]:
                raise ValueError(f"the checksum of {m.name} is wrong")
            made.append(part)
        return made

    def _sums(self, data: Array) -> list[str]:
        """sha256 of every piece, in parallel."""

        def one(at: int) -> str:
            return hashlib.sha256(data[at : at + PIECE].data).hexdigest()

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(one, range(0, len(data), PIECE)))

    # --- writing ----------------------------------------------------------------------------------

    def store(self, layer: Packable, tensors: Sequence[Array]) -> None:
        """Keep a packed layer; where that fails it is said once and nothing else is tried.

        GGUFError if the model's file is not what it was: what was packed is not its weights.
        """
        if self._is_broken:
            return
        for part in self._file.mapped:
            part.check_unchanged()
        try:
            self._write(layer, tensors)
        except OSError as exc:
            self._is_broken = True
            size = binary_amount(layer.packed_bytes)
            self._say(
                f"--packed-cache: {size} could not be written to {shown(self._folder, 1000)}: "
                f"{reason(exc)}; this run goes on without it"
            )
            return
        self.stored += 1

    def _write(self, layer: Packable, tensors: Sequence[Array]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        free = shutil.disk_usage(self._folder).free
        if free < layer.packed_bytes + ALIGN:
            raise OSError(None, f"{binary_amount(free)} are free")
        entries, at = [], 0
        for m, data in zip(layer.matrices, tensors, strict=True):
            entries.append(
                {"name": m.name, "at": 0, "n_bytes": len(data), "sums": self._sums(data)}
            )
        header = {"key": self.key(layer), "tensors": entries}
        at = -(-(len(json.dumps(header)) + 64 * len(entries) + 64) // ALIGN) * ALIGN
        for entry, data in zip(entries, tensors, strict=True):
            entry["at"] = at
            at += -(-len(data) // ALIGN) * ALIGN
        line = json.dumps(header).encode()
        descriptor, name = tempfile.mkstemp(".tmp", "blk.", self._folder)
        try:
            with os.fdopen(descriptor, "wb") as f:
                f.write(line + b"\n" + hashlib.sha256(line).digest())
                for entry, data in zip(entries, tensors, strict=True):
                    _pad(f, int(str(entry["at"])))
                    f.write(data.data)
                _pad(f, at)
                f.flush()
                os.fsync(f.fileno())
            Path(name).chmod(0o644)  # not a temporary file's 0600: others may map it too
            os.replace(name, self._path(layer))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(self._folder)

    def _sweep(self) -> None:
        """Remove what killed runs left behind."""
        for path in self._folder.glob("blk.*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except OSError:  # another run's, already gone
                pass

    def _say(self, line: str) -> None:
        log.warning("%s", line)
        self._notes.append(line)

    def summary(self) -> list[str]:
        """What came of it, and what went wrong, a line each."""
        notes = list(self._notes)
        for why, paths in self._refused.items():
            more = f" (so are {len(paths) - 1} more)" if len(paths) > 1 else ""
            notes.append(f"{shown(paths[0], 1000)} is not used: {why}; it is made again{more}")
        if self.loaded or self.stored:
            counts = f"{self.loaded} layers mapped, {self.stored} stored"
            return [f"packed cache {shown(self._folder, 1000)}: {counts}", *notes]
        return notes


def _header(data: Array) -> dict[str, Any]:
    """{"key", "tensors": [{"name", "at", "n_bytes", "sums"}, ...]}, typed; ValueError."""
    damaged = ValueError("its header is damaged")
    start = data[:HEADER_LIMIT].tobytes()
    line, newline, rest = start.partition(b"\n")
    if not newline or rest[:32] != hashlib.sha256(line).digest():
        raise damaged
    try:
        header = json.loads(line)
    except RecursionError as exc:
        raise damaged from exc
    if not isinstance(header, dict) or not isinstance(header.get("tensors"), list):
        raise damaged
    for entry in header["tensors"]:
        if not isinstance(entry, dict):
            raise damaged
        sizes = entry.get("at"), entry.get("n_bytes")
        if not all(type(n) is int and 0 <= n <= len(data) for n in sizes):
            raise damaged
        if not {"name", "sums"} <= entry.keys():
            raise damaged
    return {"key": header.get("key"), "tensors": header["tensors"]}


def _identity(file: GGUFFile) -> bytes:
    """Digest of what tells this version of a model file from any other.

    The inode and the time of its last change tell a file that was replaced or written to with its
    time put back, even if only bytes between the samples differ.
    """
    digest = hashlib.sha256()
    for i, part in enumerate(file.mapped):
        info = part.info
        facts = info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev
        digest.update(f"{FORMAT} {i} {facts} ".encode())
        starts = [t.offset for t in file.tensors.values() if t.part == i]
        digest.update(part.data[: min(starts, default=info.st_size)].data)
    return digest.digest()


def _pad(f: BinaryIO, position: int) -> None:
    f.write(b"\0" * (position - f.tell()))


def _sync_folder(folder: Path) -> None:
    """Make the new name last; systems that cannot do without."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
