"""Conversations on the disk over a restart: a folder with the rows of the KV cache's idle slots.

    files = SlotFiles(folder)         # it is this process's until close
    files.restore(engine)             # before the first request
    files.save(engine)                # now and then when idle, and at the end
    files.close()

The folder is a picture of the cache: a file for each conversation, none twice, and as many as the
cache holds; those that it has dropped since, and damaged ones, are removed by the next save. Files
are session files, whole or not there at all. What is of another model, or of another kind of rows,
is left alone. Everything between two steps of the engine, each file by itself, so that answers go
on in between.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

from offload import session_file
from offload.amounts import amount
from offload.engine import Engine
from offload.errors import OffloadError, RequestError, reason, shown
from offload.sessions import SUFFIX

LOCK = ".lock"


class SlotFiles:
    """Those of one folder, which is made if it is not there; RequestError if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused: set[Path] = set()
        name = shown(folder, 1000)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK, timeout=0)
            self._lock.acquire()
        except Timeout:
            raise RequestError(
                f"another server keeps its sessions in {name}; end it, or give this one another "
                "folder"
            ) from None
        except OSError as exc:
            raise RequestError(f"sessions cannot be kept in {name}: {reason(exc)}") from exc
        for left in folder.glob(session_file.PREFIX + "*"):  # by a save that was killed
            with contextlib.suppress(OSError):
                left.unlink()

    def restore(self, engine: Engine) -> list[str]:
        """Load what there is room for, what was used last above all; lines about it for people."""
        began, lines = time.perf_counter(), []
        chosen, room, n_left = [], engine.sessions.free_rows, 0
        ours = self._ours(engine)
        for path in sorted(ours, key=_age, reverse=True):
            try:
                with session_file.opened(path) as file:
                    n_rows = len(file.head.ids)
            except RequestError as exc:
                self._refused.add(path)
                lines.append(str(exc))
                continue
            if n_rows <= room:
                room -= n_rows
                chosen.append(path)
            else:
                n_left += 1
        n_loaded = n_tokens = 0
        for path in reversed(chosen):
            try:
                n_tokens += len(engine.load_session(path).ids)
                n_loaded += 1
            except RequestError as exc:
                self._refused.add(path)
                lines.append(str(exc))
        seconds = time.perf_counter() - began
        if n_loaded:
            lines.append(f"{_talks(n_loaded)} with {n_tokens:,} tokens restored in {seconds:.1f} s")
        if n_left:
            lines.append(
                f"{_talks(n_left)} left out, for which the KV cache has no room; "
                "load with larger kv_tokens"
            )
        others = sum(path not in ours and path.name != LOCK for path in self._folder.iterdir())
        if others:
            lines.append(
                f"files in the folder that are not of this model, and left alone: {others}"
            )
        return lines

    def save(self, engine: Engine) -> list[str]:
        """Write what is not there yet and remove what the cache has dropped; lines for people.

        Cheap if nothing has changed. What cannot be written is told, and tried again next time.
        """
        began, n_saved, n_bytes = time.perf_counter(), 0, 0
        try:
            while self._refused:
                _remove(self._refused.pop())
            saved = {path.name for path in self._ours(engine)}
            while (name := engine.sessions.save_idle(self._folder, saved)) is not None:
                saved.add(name)
                n_saved += 1
                n_bytes += (self._folder / name).stat().st_size
            now = time.time_ns()
            idle = engine.sessions.idle()
            for i, name in enumerate(idle):  # in the order in which they were used
                with contextlib.suppress(FileNotFoundError):
                    os.utime(self._folder / name, ns=(now + i, now + i))
            for name in saved.difference(idle):
                _remove(self._folder / name)
        except OffloadError as exc:
            return [str(exc)]
        except OSError as exc:
            return [f"sessions cannot be kept: {reason(exc)}"]
        if not n_saved:
            return []
        seconds = time.perf_counter() - began
        return [f"{_talks(n_saved)} saved, {amount(n_bytes)} in {seconds:.1f} s"]

    def close(self) -> None:
        """Let another server have the folder."""
        self._lock.release()

    def _ours(self, engine: Engine) -> list[Path]:
        return list(self._folder.glob(f"{engine.sessions.label}-*{SUFFIX}"))


def _remove(path: Path) -> None:
    """What cannot be removed costs nothing but its place."""
    with contextlib.suppress(OSError):
        path.unlink()


def _talks(n: int) -> str:
    return f"{n} conversation{'s' * (n != 1)}"


def _age(path: Path) -> int:
    """When it was used last, in ns."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
