"""Compiled kernels kept on disk, so that only the first start compiles them.

    FOLDER/kernels/<Numba>-<instruction set>-<digest>/<module>.<kernel>-<digest>.kernel

    a line that names the format | sha256 of the rest | sha256 of the key | pickled machine code

The folder's digest is of all that decides what the code is and where it runs: the sources, the
versions of Python, Numba, LLVM and NumPy, the processor's name and features, the instruction set.
A file's is of its function and signature. Machine code is executed, so a folder or a file that
somebody else owns or may write is not loaded. Nothing here can end a start: what is missing,
damaged or refused is compiled, and what cannot be written is not kept; each is said once.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import pickle
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from quant.compiler import isa

log = logging.getLogger(__name__)

MAGIC = b"kimi-offload kernel 1\n"
DIGEST_BYTES = 32
HEADER_BYTES = len(MAGIC) + 2 * DIGEST_BYTES
MAX_BYTES = 256 << 20  # of one kernel; the largest have some hundred kB
STALE_SECONDS = 3600.0  # after which a temporary file belongs to no running process
PACKAGES = ("quant", "offload")  # whose kernels are kept


def base_folder() -> Path:
    """$KIMI_OFFLOAD_CACHE, or the user's folder for caches; RuntimeError without a home."""
    wanted = os.environ.get("KIMI_OFFLOAD_CACHE")
    if wanted:
        return Path(wanted).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kimi-offload"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "kimi-offload" / "cache"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore a relative path
    root = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    return root / "kimi-offload"


@cache
def source_digest() -> str:
    """Of every source file that kernels are made from."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def folder_name() -> str:
    """The name of the folder for this program on this processor."""
    facts = (
        source_digest(), sys.version, sys.implementation.cache_tag, platform.machine(),
        numba.__version__, llvmlite.__version__, np.__version__, isa.NAME, *isa.target(),
        str(isa.numba_settings.OPT),
    )  # fmt: skip
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return f"{numba.__version__}-{isa.NAME}-{digest}"


def _trusted_users() -> tuple[int, ...]:
    return (0, os.geteuid()) if hasattr(os, "geteuid") else (0,)


def distrust(info: os.stat_result) -> str | None:
    """Why machine code from a file or folder must not be run here; None if it may."""
    if not hasattr(os, "geteuid"):  # Windows: the user's own profile folder
        return None
    if info.st_uid not in _trusted_users():
        return f"it belongs to another user (number {info.st_uid})"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(info.st_mode):o}; chmod go-w)"
    return None


class Store:
    """The folder FOLDER/<kind>/<name>, of one program version. All methods never raise.

    state: one line for people, whether kernels are kept, where, and if not, why.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.folder: Path | None = None
        self.can_write = False
        self.state = ""
        self._said: set[str] = set()
        try:
            base = base_folder()
        except RuntimeError:  # Path.home() finds none
            self._without("there is no home folder")
            return
        folder = base / kind / name
        try:
            _make_folders(folder)
        except (OSError, ValueError) as exc:
            if not os.path.isdir(folder):  # unlike Path.is_dir it answers without raising
                self._without(f"{folder} cannot be made: {_reason(exc)}")
                return
        for place in (folder, folder.parent):
            if why := _distrust_folder(place):
                self._without(f"{place} is not used: {why}")
                return
        self.folder = folder
        self.can_write = os.access(folder, os.W_OK | os.X_OK)
        self.state = f"{folder}{'' if self.can_write else ' (read-only)'}"
        if self.can_write:
            self._sweep()

    def read(self, name: str, key: bytes) -> bytes | None:
        """The payload kept under `name`; None if there is none that can be used."""
        if self.folder is None:
            return None
        try:
            data = _read_trusted(self.folder / name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            self._say("read", f"{self.folder / name} is not used: {_reason(exc)}; compiled again")
            return None
        rest = data[len(MAGIC) + DIGEST_BYTES :]
        sound = (
            len(data) > HEADER_BYTES
            and data.startswith(MAGIC)
            and hashlib.sha256(rest).digest() == data[len(MAGIC) :][:DIGEST_BYTES]
            and rest[:DIGEST_BYTES] == hashlib.sha256(key).digest()
        )
        if not sound:
            self._say("read", f"{self.folder / name} is damaged; compiled again")
            return None
        return rest[DIGEST_BYTES:]

    def damaged(self, name: str, exc: Exception) -> None:
        """Note that a payload could not be turned into code."""
        self._say("read", f"{name} cannot be loaded ({type(exc).__name__}); compiled again")

    def write(self, name: str, key: bytes, payload: bytes) -> None:
        """Keep a payload; the file appears whole or not at all."""
        if self.folder is None:
            return
        rest = hashlib.sha256(key).digest() + payload
        data = MAGIC + hashlib.sha256(rest).digest() + rest
        if not self.can_write:
            self._say("write", f"{self.folder} is read-only; kernels are compiled at every start")
            return
        try:
            _write_whole(self.folder / name, data)
        except OSError as exc:
            self.can_write = False
            self.state = f"{self.folder} (cannot be written: {_reason(exc)})"
            self._say("write", f"{self.folder} cannot be written ({_reason(exc)}); this run goes on"
                      " without, the next one compiles again")  # fmt: skip

    def _without(self, why: str) -> None:
        self.state = f"none: {why}"
        way = "KIMI_OFFLOAD_CACHE names another folder"
        self._say("folder", f"{why}; compiled kernels are not kept ({way})")

    def _say(self, kind: str, line: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("kernel cache: %s", line)

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        assert self.folder is not None
        for path in self.folder.glob("*.tmp"):
            try:
                if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except OSError:  # another process was quicker
                pass


@cache
def store() -> Store:
    """The one of this process, opened when the first kernel is needed."""
    return Store("kernels", folder_name())


class KernelCache(_Cache):
    """Numba's interface for one function, over the `store`."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._py_func = py_func

    @property
    def cache_path(self) -> str:
        """For Numba's statistics."""
        return str(store().folder or "")

    def enable(self) -> None:
        """Part of the interface; it is always on."""

    def disable(self) -> None:
        """Part of the interface; it is always on."""

    def flush(self) -> None:
        """Part of the interface; files are keyed by content and need no flushing."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        name, key = self._entry(sig)
        payload = store().read(name, key)
        if payload is None:
            return None
        rtsys.initialize(target_context)  # all that running needs; compiling needs the registries
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception as exc:  # whatever is wrong with it, compiling goes on
            store().damaged(name, exc)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        if not data.library.has_dynamic_globals:
            store().write(*self._entry(sig), dumps(data._reduce()))

    def _entry(self, sig: Any) -> tuple[str, bytes]:
        """(file name, key): of the function, where it stands, its code and its signature."""
        fn = self._py_func
        code = fn.__code__
        name = f"{fn.__module__}.{fn.__qualname__}"
        digest = hashlib.sha256(repr((name, code.co_firstlineno, str(sig))).encode())
        digest.update(code.co_code)
        if not name.startswith("quant."):  # its source is not in the folder's digest
            digest.update(Path(inspect.getfile(fn)).read_bytes())
        plain = "".join(c if c.isalnum() or c in "._" else "-" for c in name)
        return f"{plain[:100]}-{digest.hexdigest()[:16]}.kernel", digest.digest()


def is_kept(fn: Callable[..., Any]) -> bool:
    """Whether a function's source is watched, so that its code may be kept."""
    return (fn.__module__ or "").partition(".")[0] in PACKAGES


def _make_folders(folder: Path) -> None:
    """Make the two folders that are ours, writable by their owner only, whatever the umask."""
    for place in (folder.parent, folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.mkdir(mode=0o755)
        except FileExistsError:
            continue
        place.chmod(0o755)


def _distrust_folder(folder: Path) -> str | None:
    try:
        link = folder.lstat()
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in _trusted_users():
            return "it is a link of another user"
        info = folder.stat()
    except OSError as exc:
        return _reason(exc)
    return distrust(info) if stat.S_ISDIR(info.st_mode) else "it is no folder"


def _read_trusted(path: Path) -> bytes:
    """All bytes of a regular file of ours; ValueError if it is anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("it is no regular file")
        if why := distrust(info):
            raise ValueError(why)
        if info.st_size > MAX_BYTES:
            raise ValueError(f"it has {info.st_size:,} bytes, too many for a kernel")
        return file.read(MAX_BYTES)


def _write_whole(path: Path, data: bytes) -> None:
    """Write, sync, rename; nothing is left behind by a failure."""
    descriptor, name = tempfile.mkstemp(".tmp", f"{path.name[:40]}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # not a temporary file's 0600: other users may load root's kernels
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
