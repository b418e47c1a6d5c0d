"""A file that is read around the page cache (O_DIRECT), whole sectors at a time."""

from __future__ import annotations

import contextlib
import os
import weakref

import numpy as np

from offload.errors import GGUFError, reason, shown
from offload.mapped_file import MappedFile

SECTOR = 4096  # bytes; reads begin at multiples of it, in the file and in memory


class DirectFile:
    """One part of a model's file, opened once more. is_direct: whether the page cache is avoided.

    Reads may come from any thread. Raises GGUFError if it is not the file that was mapped.
    """

    def __init__(self, mapped: MappedFile) -> None:
        self.path = mapped.path
        self._size = mapped.size
        flags = os.O_RDONLY | os.O_CLOEXEC
        self.is_direct = hasattr(os, "O_DIRECT")
        try:
            try:
                self._descriptor = os.open(self.path, flags | getattr(os, "O_DIRECT", 0))
            except OSError:  # a file system without it
                self.is_direct = False
                self._descriptor = os.open(self.path, flags)
        except OSError as exc:
            raise GGUFError(f"{shown(self.path, 1000)}: {reason(exc)}") from exc
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        now = os.fstat(self._descriptor)
        if not os.path.samestat(now, mapped.info):
            raise GGUFError(
                f"{shown(self.path, 1000)} is another file than the one that was opened; load it "
                "again"
            )

    def read(self, offset: int, into: np.ndarray, need: int) -> int:
        """Fill `into` (n,) uint8, whole sectors, from a sector on; the last may reach past the end.

        need: bytes that must be there. Returns `need`; GGUFError if the file is shorter, or the
        disk refuses.
        """
        done = 0
        while done < need:
            try:
                got = os.preadv(self._descriptor, [into[done:].data], offset + done)
            except OSError as exc:
                raise GGUFError(
                    f"{shown(self.path, 1000)}: {reason(exc)} while {need:,} bytes from byte "
                    f"{offset:,} on were read; the disk may have failed or gone"
                ) from exc
            done += got
            if done >= need:
                break
            if got == 0 or os.fstat(self._descriptor).st_size < offset + need:
                raise GGUFError(
                    f"{shown(self.path, 1000)} ends at byte {offset + done:,}, but it had "
                    f"{self._size:,} bytes when it was opened: it shrank; load it again when it is "
                    "whole"
                )
            done -= done % SECTOR  # the rest of a sector cannot be asked for directly
        return need

    def forget(self, offset: int, n_bytes: int) -> None:
        """Let the system drop these bytes from its page cache."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give the descriptor back."""
        self._finalizer()
