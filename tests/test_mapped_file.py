"""Mapped files: changes are noticed, and a fault is one line instead of a silent end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import offload
from offload.errors import GGUFError
from offload.mapped_file import MappedFile

ROOT = Path(offload.__file__).parent.parent
BYTES = bytes(range(256)) * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(BYTES)
    return path


def test_unchanged_file_is_mapped_whole(path: Path) -> None:
    file = MappedFile(path)
    assert file.data.tobytes() == BYTES
    assert not file.data.flags.writeable
    file.check_unchanged()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.truncate(path, 100), r"shrank from 16,384 to 100 bytes"),
        (lambda path: os.truncate(path, 0), r"shrank from 16,384 to 0 bytes"),
        (lambda path: path.write_bytes(BYTES + b"more"), "was changed"),
        (lambda path: path.write_bytes(BYTES[::-1]), "was changed"),
        (lambda path: os.utime(path, (1, 1)), "was changed"),
    ],
)
def test_change_is_named(path: Path, change: Callable[[Path], object], words: str) -> None:
    file = MappedFile(path)
    change(path)
    with pytest.raises(GGUFError, match=rf"weights\.bin {words}.* load it again"):
        file.check_unchanged()


def test_replaced_or_removed_file_stays_as_it_was(path: Path) -> None:
    file = MappedFile(path)
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)
    file.check_unchanged()
    path.unlink()
    file.check_unchanged()
    assert file.data.tobytes() == BYTES


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p), lambda p: p.touch()]
)
def test_what_cannot_be_mapped_is_an_error_and_never_waits(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "odd")
    with pytest.raises((OSError, ValueError)):
        MappedFile(tmp_path / "odd", follow_links=False)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises((OSError, ValueError)):
        MappedFile(tmp_path / "odd")
    assert len(os.listdir("/proc/self/fd")) == descriptors


FAULT = """
import os, sys, threading
import numpy as np
from offload import bus_errors
from offload.mapped_file import MappedFile
file = MappedFile(sys.argv[1])
if sys.argv[2] == "program":
    bus_errors.end_with(lambda: os._exit(1))
os.truncate(sys.argv[1], 0)
thread = threading.Thread(target=file.data.sum)
thread.start()
thread.join()
print("still here")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the handler is Linux' own")
@pytest.mark.parametrize("kind", ["program", "library"])
def test_fault_is_one_line_that_names_the_file(path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULT, str(path), kind],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path} shrank from 16,384 to 0 bytes while it was in use")
    assert done.returncode == (1 if kind == "program" else -signal.SIGBUS)
