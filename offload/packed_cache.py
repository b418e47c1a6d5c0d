"""Packed experts kept on disk, so that the next start maps them instead of packing.

One file per layer, DIR/<key>/blk.<layer>.packed:

    line of JSON {"key", "tensors": [{"name", "at", "n_bytes", "sums"}], ...}, its sha256, padding
    tensors, each at a multiple of 4096 bytes

The key digests what the model file was (size, time of change, header), where the layer's tensors
lie in it, samples of their bytes, and the layout's version: anything else is made anew. `sums` are
sha256 of pieces of 16 MiB; all are checked before a file is used, in parallel, while its pages come
from disk (with the processor's own sha256 that keeps up with a good SSD). Files appear under their
name only when they are whole (temporary file, fsync, rename).
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from offload.errors import PlanError
from offload.expert_layout import Packable, packed_matrix_bytes, type_for
from offload.gguf import GGUFFile
from offload.memory import amount
from offload.weights import fused_name

log = logging.getLogger(__name__)

Array = np.ndarray
FORMAT = 1
ALIGN = 4096
PIECE = 16 << 20  # bytes of one sum
SAMPLES, SAMPLE_BYTES = 64, 4096  # of a tensor, in the key
HEADER_LIMIT = 1 << 24
STALE_SECONDS = 24 * 3600.0


class PackedCache:
    """The packed layers of one model file in a folder. notes: what went wrong, a line each."""

    def __init__(self, folder: Path, file: GGUFFile, threads: int) -> None:
        if folder.exists() and not folder.is_dir():
            raise PlanError(f"--packed-cache {folder}: this is a file; name a folder")
        self._file = file
        self._threads = threads
        self._identity = _identity(file)
        self._folder = folder / f"{file.paths[0].stem}-{self._identity.hex()[:16]}"
        self._is_broken = False  # writing failed; told once
        self.notes: list[str] = []
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
            with path.open("rb") as f:
                if os.fstat(f.fileno()).st_size < ALIGN:
                    raise ValueError("it is cut off")
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            made = self._checked(np.frombuffer(mapped, np.uint8), layer)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            self._say(f"{path} is not used: {reason}; it is made again")
            return None
        self.loaded += 1
        return made

    def _checked(self, data: Array, layer: Packable) -> list[Array]:
        """The tensors in a file's bytes; ValueError, KeyError or TypeError if it is damaged."""
        newline = data[:HEADER_LIMIT].tobytes().find(b"\n")
        if newline < 0:
            raise ValueError("its header is damaged")
        line = data[:newline].tobytes()
        if data[newline + 1 : newline + 33].tobytes() != hashlib.sha256(line).digest():
            raise ValueError("its header is damaged")
        header = json.loads(line)
        if header["key"] != self.key(layer):
            raise ValueError("the model or the layout has changed since")
        made = []
        for m, entry in zip(layer.matrices, header["tensors"], strict=True):
            size = m.count * packed_matrix_bytes(m)
            part = data[entry["at"] : entry["at"] + size]
            if entry["name"] != m.name or entry["n_bytes"] != size or len(part) != size:
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
        """Keep a packed layer; where that fails it is said once and nothing else is tried."""
        if self._is_broken:
            return
        try:
            self._write(layer, tensors)
        except OSError as exc:
            self._is_broken = True
            size = amount(layer.packed_bytes)
            self._say(
                f"--packed-cache: {size} could not be written to {self._folder}: "
                f"{exc.strerror or exc}; this run goes on without it"
            )
            return
        self.stored += 1

    def _write(self, layer: Packable, tensors: Sequence[Array]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        free = shutil.disk_usage(self._folder).free
        if free < layer.packed_bytes + ALIGN:
            raise OSError(None, f"{amount(free)} are free")
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
        self.notes.append(line)

    def summary(self) -> list[str]:
        """What came of it."""
        if self.loaded or self.stored:
            what = f"packed cache {self._folder}: {self.loaded} layers mapped, {self.stored} stored"
            return [what, *self.notes]
        return self.notes


def _identity(file: GGUFFile) -> bytes:
    """Digest of what tells this version of a model file from any other."""
    digest = hashlib.sha256()
    for i, path in enumerate(file.paths):
        info = path.stat()
        digest.update(f"{FORMAT} {i} {info.st_size} {info.st_mtime_ns} ".encode())
        starts = [t.offset for t in file.tensors.values() if t.part == i]
        with path.open("rb") as f:
            digest.update(f.read(min(starts, default=info.st_size)))
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
