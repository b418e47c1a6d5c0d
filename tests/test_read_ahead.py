"""Mapped weights are read in the background, in the order in which a pass wants them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import TinyModel

import offload
from offload import loading, read_ahead
from offload.mapped_file import MappedFile
from offload.read_ahead import ReadAhead


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pieces that were read, of 4096 bytes at most."""
    done: list[int] = []
    real = read_ahead.populate

    def populate(piece: np.ndarray) -> bool:
        done.append(len(piece))
        return real(piece)

    monkeypatch.setattr(read_ahead, "PIECE", 4096)
    monkeypatch.setattr(read_ahead, "populate", populate)
    return done


def mapped(tmp_path: Path, n_bytes: int = 10_000) -> MappedFile:
    path = tmp_path / "file"
    path.write_bytes(bytes(n_bytes))
    return MappedFile(path)


@pytest.mark.parametrize("is_old_system", [False, True])
def test_everything_is_read_once(
    tmp_path: Path, pieces: list[int], monkeypatch: pytest.MonkeyPatch, is_old_system: bool
) -> None:
    if is_old_system:
        monkeypatch.setattr(read_ahead, "populate", lambda piece: pieces.append(len(piece)))
    file = mapped(tmp_path)
    ahead = ReadAhead([file.data, file.data[100:101], file.data[:0]])
    ahead.wait()
    assert pieces == [4096, 4096, 1808, 1]


def test_nothing_to_read_is_read_at_once() -> None:
    ReadAhead([]).wait()


def test_close_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "PIECE", 1)
    go_on, done = threading.Event(), []

    def populate(piece: np.ndarray) -> bool:
        done.append(piece)
        return go_on.wait(10)

    monkeypatch.setattr(read_ahead, "populate", populate)
    ahead = ReadAhead([mapped(tmp_path).data])
    ahead.close()
    go_on.set()
    ahead.wait()
    assert len(done) <= 1


def test_a_file_that_shrinks_is_no_error_here(tmp_path: Path, pieces: list[int]) -> None:
    file = mapped(tmp_path)
    os.truncate(file.path, 0)
    ahead = ReadAhead([file.data])
    ahead.wait()
    assert len(pieces) == 3
    assert file.fault() is not None


def test_layers_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", TinyModel())
    given: list[np.ndarray] = []

    class Ahead(ReadAhead):
        def __init__(self, views: list[np.ndarray]) -> None:
            given.extend(views)
            super().__init__(views)

    monkeypatch.setattr(loading, "ReadAhead", Ahead)
    with offload.load(path), offload.GGUFFile.open(path) as file:
        names = {(t.offset, t.n_bytes): t.name for t in file.tensors.values()}
        start = min(view.ctypes.data for view in given) - min(offset for offset, _ in names)
        order = [names[view.ctypes.data - start, len(view)] for view in given]
    assert sorted(order) == sorted(names.values())
    assert order[0] == "token_embd.weight"
    assert {*order[-2:]} == {"output.weight", "output_norm.weight"}
    layers = [int(name.split(".")[1]) for name in order[1:-2]]
    assert layers == sorted(layers)
