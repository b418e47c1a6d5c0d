"""A file mapped for reading that notices when somebody changes it, or when it cannot be read.

What a map shows changes with the file: results would change without a word. What it has no bytes
for any more reads as 0 from then on (quant/compiler/bus_guard.py). So whoever computes from it asks
`check_unchanged` before a result is given away.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offload.errors import GGUFError, shown

U8 = npt.NDArray[np.uint8]


class _Map(mmap.mmap):
    """A map that is guarded as long as it lives. number: of the guard's, None: it has none."""

    number: int | None = None

    def __del__(self) -> None:
        if self.number is not None and not sys.is_finalizing():
            from quant.compiler.bus_guard import forget

            forget(self.number)


class MappedFile:
    """data: all bytes, (size,) uint8, read-only; they stay mapped as long as a view lives.

    The file stays open as long as this object lives. size, mtime_ns: when it was opened.
    """

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        """Map a regular file; OSError if it cannot be opened, ValueError if it is none, or empty.

        Never waits, whatever the path is (a FIFO, a device).
        """
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        if not follow_links:
            flags |= getattr(os, "O_NOFOLLOW", 0)
        self.path = path
        self._descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self.info = os.fstat(self._descriptor)
        if not stat.S_ISREG(self.info.st_mode):
            raise ValueError("it is no regular file")
        self.size = self.info.st_size
        self.mtime_ns = self.info.st_mtime_ns
        if not self.size:
            raise ValueError("it is empty")
        # late: who maps nothing does not wait for the compiler's packages
        from quant.compiler.bus_guard import watch

        mapped = _Map(self._descriptor, self.size, access=mmap.ACCESS_READ)
        self.data: U8 = np.frombuffer(mapped, np.uint8)
        self._number = mapped.number = watch(self.data)
        self._fault: str | None = None

    def fault(self) -> str | None:
        """What has happened to the file since, the first thing that was found; None if nothing."""
        if self._fault is None:
            self._fault = self._look()
        return self._fault

    def _look(self) -> str | None:
        from quant.compiler.bus_guard import is_torn

        now = os.fstat(self._descriptor)
        if now.st_size < self.size:
            return (
                f"{shown(self.path, 1000)} shrank from {self.size:,} to {now.st_size:,} bytes "
                "while it was in use; load it again when it is whole"
            )
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            return f"{shown(self.path, 1000)} was changed while it was in use; load it again"
        if self._number is not None and is_torn(self._number):
            return (
                f"{shown(self.path, 1000)} could not be read while it was in use (bus error): the "
                "disk or the file system that it is on has failed; load it again when it can be "
                "read"
            )
        return None

    def check_unchanged(self) -> None:
        """Raise GGUFError if the file is not what it was."""
        if fault := self.fault():
            raise GGUFError(fault)
