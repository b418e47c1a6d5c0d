"""Mapped files: changes are noticed, and a fault is one line instead of a silent end."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from offload.errors import GGUFError
from offload.mapped_file import MappedFile
from quant.compiler import bus_guard

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is Linux' own")
@pytest.mark.parametrize("left", [0, 4096])
def test_what_is_gone_reads_as_zeros_and_marks_the_file(path: Path, left: int) -> None:
    file, other = MappedFile(path), MappedFile(path)
    before = bus_guard.faults()
    os.truncate(path, left)
    sums: list[int] = []
    threads = [threading.Thread(target=lambda: sums.append(int(file.data.sum()))) for _ in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(BYTES[:left])] * 4
    assert bus_guard.faults() > before
    os.truncate(path, len(BYTES))
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
    with pytest.raises(GGUFError, match=r"weights\.bin could not be read .* load it again"):
        file.check_unchanged()
    other.check_unchanged()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is Linux' own")
def test_maps_are_guarded_as_long_as_a_view_lives(path: Path) -> None:
    file = MappedFile(path)
    number = file._number
    assert number is not None
    view = file.data[100:200]
    del file
    assert bus_guard._entries[number, 0] == view.ctypes.data - 100
    del view
    assert not bus_guard._entries[number].any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is Linux' own")
def test_more_maps_than_the_guard_has_room_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_guard, "_free", deque())
    MappedFile(path).check_unchanged()
