"""A file that is written whole or not at all: under another name first, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path, prefix: str) -> Iterator[BinaryIO]:
    """What is written inside is at `path` afterwards, on the disk; nothing if it raises. OSError.

    prefix: of the other name, in the same folder.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    except OSError as exc:  # tell of the user's name, not of ours
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
