"""One file on its way from the hub into the cache.

Bytes go into ETAG.incomplete as they come, so that nothing is lost when the program ends, however
it ends. The checksum is computed on the way; only what it confirms becomes a blob of the cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from offload.amounts import amount
from offload.errors import HubError
from offload.hub_cache import RepoCache, cache_trouble, disk_free
from offload.hub_client import Hub
from offload.hub_files import RemoteFile
from offload.hub_name import HubName
from offload.hub_tally import Tally
from offload.hub_trouble import Retry

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 8 << 30  # bytes asked for at once: signed addresses expire, servers have limits
READ: Final = 4 << 20  # bytes hashed at once
RESTARTS: Final = 3  # a server without ranges must be read from the start each time


class Transfer:
    """One file on its way, under the cache's lock for it. verify: check it if it is there."""

    def __init__(
        self,
        hub: Hub,
        name: HubName,
        commit: str,
        file: RemoteFile,
        cache: RepoCache,
        tally: Tally,
        verify: bool,
    ) -> None:
        assert file.n_bytes is not None
        self.hub, self.name, self.commit, self.file = hub, name, commit, file
        self.cache, self.tally, self.verify = cache, tally, verify
        self.size = file.n_bytes
        self.offset = 0
        self.digest = checksum(file)
        self._descriptor = -1

    def run(self) -> None:
        """Fetch what is missing, check, and move to its place; HubError if that fails."""
        blob, partial = self.cache.blob(self.file), self.cache.partial(self.file)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.cache.lock(self.file), self.file, self.tally):
                if self.tally.stop.is_set():
                    return
                if self._is_here(blob):  # perhaps another program was quicker
                    return
                self._descriptor = _open_private(partial)
                try:
                    self._take_up()
                    self._fetch()
                    if self.tally.stop.is_set():
                        return
                    self._check(partial)
                    os.fsync(self._descriptor)
                finally:
                    os.close(self._descriptor)
                partial.replace(blob)
        except OSError as exc:
            raise _write_trouble(partial, self.size - self.offset, exc) from exc

    def _is_here(self, blob: Path) -> bool:
        """Whether the blob is complete and, where asked for, right; a wrong one is removed."""
        if not self.cache.has(self.commit, self.file):
            blob.unlink(missing_ok=True)  # of another size: no download of ours
            return False
        if not self.verify or self.digest is None:
            return True
        place = blob if blob.exists() else self.cache.pointer(self.commit, self.file)
        with place.open("rb") as file:
            while chunk := file.read(READ):
                if self.tally.stop.is_set():
                    return True
                self.digest.update(chunk)
                self.tally.add(checked=len(chunk))
        if _is_right(self.digest, self.file):
            return True
        place.unlink()
        self.tally.say(f"{self.file.path}: the checksum is wrong; it is fetched again")
        self.tally.add(to_fetch=self.size)
        self.digest = checksum(self.file)
        return False

    def _take_up(self) -> None:
        """Hash what is here already; bytes that cannot belong to the file are dropped."""
        length = os.fstat(self._descriptor).st_size
        if length > self.size:
            os.ftruncate(self._descriptor, 0)
            length = 0
        while self.offset < length and not self.tally.stop.is_set():
            chunk = os.pread(self._descriptor, min(READ, length - self.offset), self.offset)
            if not chunk:
                break
            if self.digest is not None:
                self.digest.update(chunk)
            self.offset += len(chunk)
            self.tally.add(checked=len(chunk))

    def _fetch(self) -> None:
        tries = restarts = 0
        while self.offset < self.size and not self.tally.stop.is_set():
            before = self.offset
            try:
                end = min(self.size, self.offset + PIECE)
                with self.hub.body(self.name, self.commit, self.file, self.offset, end) as body:
                    if body.start < self.offset:
                        restarts += 1
                        if restarts > RESTARTS:
                            raise HubError(f"{self.name}: the server cannot resume {self.file.path}"
                                           f" and broke off {RESTARTS} times")  # fmt: skip
                        self._start_over()
                        end = self.size
                    self._receive(body.chunks)
                if self.offset < end and not self.tally.stop.is_set():
                    raise Retry(f"{self.name}: {self.file.path} ended {end - self.offset:,} bytes "
                                "early; check the network")  # fmt: skip
            except Retry as exc:
                tries = 1 if self.offset > before else tries + 1
                seconds = exc.pause(tries)
                if seconds >= 2:
                    self.tally.say(f"{exc.reason}; next try in {seconds:.0f} s")
                self.tally.stop.wait(seconds)

    def _start_over(self) -> None:
        self.tally.say(f"{self.file.path}: the server cannot resume it; it is read from the start")
        self.tally.add(to_fetch=self.offset)
        os.ftruncate(self._descriptor, 0)
        self.offset, self.digest = 0, checksum(self.file)

    def _receive(self, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            if self.tally.stop.is_set():
                return
            if self.offset + len(chunk) > self.size:
                raise HubError(
                    f"{self.name}: {self.file.path} goes on after the {self.size:,} bytes that the "
                    "hub's list gives it"
                )
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self._descriptor, view, self.offset)
                if self.digest is not None:
                    self.digest.update(view[:written])
                view = view[written:]
                self.offset += written
                self.tally.add(fetched=written)

    def _check(self, partial: Path) -> None:
        """Remove the file if its checksum is wrong, so that the next try starts anew."""
        if self.digest is None:
            self.tally.say(f"{self.file.path}: no checksum is known; only its size was checked")
        elif not _is_right(self.digest, self.file):
            partial.unlink(missing_ok=True)
            raise HubError(
                f"{self.name}: {self.file.path} arrived damaged: its checksum is "
                f"{self.digest.hexdigest()[:12]}... instead of {(self.file.etag or '')[:12]}...; "
                "it was removed: run the same command again"
            )


def checksum(file: RemoteFile) -> _Hash | None:
    """The hash that the etag of a file is: SHA-256, or git's SHA-1; None if it is neither."""
    etag = file.etag or ""
    if not all(letter in "0123456789abcdef" for letter in etag):
        return None
    if len(etag) == 64:
        return hashlib.sha256()
    if len(etag) == 40:
        return hashlib.sha1(b"blob %d\0" % (file.n_bytes or 0), usedforsecurity=False)
    return None


def _is_right(digest: _Hash, file: RemoteFile) -> bool:
    return digest.hexdigest() == file.etag


class _locked:  # noqa: N801
    """Hold the cache's lock of a blob, and say so where another process has it."""

    def __init__(self, path: Path, file: RemoteFile, tally: Tally) -> None:
        self._path, self._file, self._tally = path, file, tally

    def __enter__(self) -> None:
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        is_first = True
        while not self._tally.stop.is_set():
            try:
                self._lock = WeakFileLock(self._path, timeout=0.1 if is_first else 1)
                self._lock.__enter__()
                return
            except Timeout:
                if is_first:
                    self._tally.say(f"{self._file.path}: another download has it in hand; waiting")
                is_first = False

    def __exit__(self, *error: object) -> None:
        if hasattr(self, "_lock"):
            self._lock.__exit__(None, None, None)


def _open_private(path: Path) -> int:
    """Open or make a partial file; links, devices and the like are refused."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HubError(f"{path} is not a regular file; remove it and try again")
    return descriptor


def _write_trouble(path: Path, missing: int, exc: OSError) -> HubError:
    """The error for a file that cannot be written."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        free = disk_free(path.parent)
        has = "" if free is None else f", {amount(free)} free"
        return HubError(
            f"the disk is full: {path.parent} needs {amount(missing)} more for this file"
            f"{has}; what has come stays: make room, or set HF_HUB_CACHE to a larger disk, and run "
            "the same command again"
        )
    if exc.errno == errno.EFBIG:
        return HubError(f"{path}: this file system, or a limit (ulimit -f), allows no file of this "
                        "size; set HF_HUB_CACHE to another disk")  # fmt: skip
    if exc.errno == errno.ELOOP:
        return HubError(f"{path} is a link; remove it and try again")
    return cache_trouble(path, exc)
