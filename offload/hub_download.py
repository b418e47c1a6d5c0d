"""Fetch the files of a model: several at once, resumed where they broke off, checked by checksum.

Bytes go into ETAG.incomplete as they come, so that nothing is lost when the program ends, however
it ends. The checksum is computed on the way; only what it confirms becomes a blob of the cache.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from offload.errors import HubError, OffloadError
from offload.hub_cache import RepoCache, cache_trouble, disk_free
from offload.hub_client import Hub
from offload.hub_files import RemoteFile
from offload.hub_name import HubName
from offload.hub_trouble import Retry
from offload.stats import LoadProgress

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 8 << 30  # bytes asked for at once: signed addresses expire, servers have limits
READ: Final = 4 << 20  # bytes hashed at once
RESTARTS: Final = 3  # a server without ranges must be read from the start each time
TICK = 0.2  # seconds between two reports
LEAVE = 1.0  # seconds that threads get to end after Ctrl-C

Report = Callable[[LoadProgress], None]
Notice = Callable[[str], None]


class Tally:
    """Counts of all threads: bytes fetched and to fetch, bytes checked and to check."""

    def __init__(self, notice: Notice) -> None:
        self._lock = threading.Lock()
        self._notices: list[str] = []
        self._notice = notice
        self.fetched = self.to_fetch = self.checked = self.to_check = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def add(self, *, fetched: int = 0, to_fetch: int = 0, checked: int = 0) -> None:
        """Count some bytes."""
        with self._lock:
            self.fetched += fetched
            self.to_fetch += to_fetch
            self.checked += checked

    def say(self, text: str) -> None:
        """Leave a message for the thread that may speak."""
        with self._lock:
            self._notices.append(text)

    def fail(self, error: BaseException) -> None:
        """Keep the first error and end all threads."""
        with self._lock:
            self.error = self.error or error
        self.stop.set()

    def report(self, report: Report) -> None:
        """Pass on messages and progress; called by the caller's thread only."""
        with self._lock:
            notices, self._notices = self._notices, []
        for text in notices:
            self._notice(text)
        if self.fetched == 0 and self.checked < self.to_check:
            report(LoadProgress(phase="check", done_bytes=self.checked, total_bytes=self.to_check))
        elif self.to_fetch:
            report(
                LoadProgress(phase="download", done_bytes=self.fetched, total_bytes=self.to_fetch)
            )


def download(
    hub: Hub,
    name: HubName,
    commit: str,
    files: Sequence[RemoteFile],
    *,
    parallel: int,
    verify: bool,
    report: Report,
    notice: Notice,
) -> None:
    """Bring all files into the cache. verify: also compute the checksums of those that are there.

    report: progress of all files together, in bytes of this call, from the caller's thread. The
    first error ends all; what has come stays and is taken up by the next call.
    """
    cache = RepoCache(hub.cache, name.repo, uses_links=hub.uses_links)
    wanted = [file for file in files if verify or not cache.has(commit, file)]
    tally = Tally(notice)
    for file in wanted:
        assert file.n_bytes is not None
        here = cache.bytes_here(commit, file)
        tally.to_fetch += file.n_bytes - here
        tally.to_check += here
    waiting = iter(wanted)
    lock = threading.Lock()

    def work() -> None:
        while not tally.stop.is_set():
            with lock:
                file = next(waiting, None)
            if file is None:
                return
            try:
                _Transfer(hub, name, commit, file, cache, tally, verify).run()
            except BaseException as exc:
                tally.fail(exc)

    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(wanted)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                tally.report(report)
                thread.join(TICK)
    finally:
        tally.stop.set()
        deadline = time.monotonic() + LEAVE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        tally.report(report)  # how far it came, in any case
    if tally.error is not None:
        raise tally.error


class _Transfer:
    """One file on its way, under the cache's lock for it."""

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
        """Fetch what is missing, check, and move to its place."""
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

    def _receive(self, chunks: Any) -> None:
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
                    self._tally.say(f"{self._file.path}: another process fetches it; waiting")
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


def _write_trouble(path: Path, missing: int, exc: OSError) -> OffloadError:
    """The error for a file that cannot be written."""
    import errno

    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        free = disk_free(path.parent)
        has = "" if free is None else f", {free / 1e9:.2f} GB free"
        return HubError(
            f"the disk is full: {path.parent} needs {missing / 1e9:.2f} GB more for this file"
            f"{has}; what has come stays: make room, or set HF_HUB_CACHE to a larger disk, and run "
            "the same command again"
        )
    if exc.errno == errno.EFBIG:
        return HubError(f"{path}: this file system, or a limit (ulimit -f), allows no file of this "
                        "size; set HF_HUB_CACHE to another disk")  # fmt: skip
    if exc.errno == errno.ELOOP:
        return HubError(f"{path} is a link; remove it and try again")
    return cache_trouble(path, exc)
