"""Conversations that are there again after a restart, and files that are not taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gguf
from fake_model import alone, ask, make_steps, model_of
from test_session_file import MODEL

import offload
from offload import RequestError, session_file
from offload.server.slot_files import SlotFiles
from offload.sessions import SUFFIX, Sessions
from offload.steps import Steps

TALKS = [[*range(1, 21)], [*range(1, 11), *range(30, 40)], [40, 41, 42]]


def engine_of(steps: Steps, model: str = "model", tokenizer: str = "words") -> Any:
    """What SlotFiles needs of an engine."""
    sessions = Sessions(None, "fake", steps)  # type: ignore[arg-type]
    sessions._digests = model, tokenizer
    return SimpleNamespace(sessions=sessions, load_session=sessions.load)


def reply(steps: Steps, ids: list[int]) -> tuple[list[int], int]:
    """A few tokens, and how many of the prompt's rows were there."""
    answer = ask(steps, ids, max_tokens=3)
    said = [token.id for token in answer]
    assert said == alone(64, ids, max_tokens=3), "rows are right, whoever made them"
    return said, answer.stats.reused_tokens


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with TALKS, saved by another engine."""
    folder = tmp_path / "new" / "sessions"
    steps = make_steps(64, budget=300)
    for ids in TALKS:
        reply(steps, ids)
    files = SlotFiles(folder)
    (line,) = files.save(engine_of(steps))
    assert line.startswith("3 conversations saved, ")
    assert files.save(engine_of(steps)) == []
    files.close()
    return folder


def restored(folder: Path, budget: int = 300, **options: Any) -> tuple[Steps, list[str]]:
    steps = make_steps(64, budget=budget)
    files = SlotFiles(folder)
    lines = files.restore(engine_of(steps, **options))
    files.close()
    return steps, lines


def test_conversations_are_back_after_a_restart(saved: Path) -> None:
    assert len(files_in(saved)) == 3
    assert (saved.stat().st_mode & 0o777, files_in(saved)[0].stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    steps, lines = restored(saved)
    (line,) = lines
    assert line.startswith("3 conversations with 49 tokens restored in ")
    for ids in TALKS:
        said, reused = reply(steps, ids)
        assert reused == len(ids) - 1
        _, reused = reply(steps, [*ids, *said, 5, 6])
        assert reused == len(ids) + 2


def test_what_was_used_last_has_the_room(saved: Path) -> None:
    steps = make_steps(64, budget=300)
    files = SlotFiles(saved)
    files.restore(engine_of(steps))
    reply(steps, [8] * 30)
    reply(steps, TALKS[0])
    assert len(files.save(engine_of(steps))) == 1
    files.close()
    steps, lines = restored(saved, budget=64)
    assert lines[0].startswith("3 conversations with 59 tokens")  # 22, 32 and 5 rows of 81
    assert "1 conversation left out" in lines[1]
    assert "kv_tokens" in lines[1]
    assert reply(steps, TALKS[0])[1] == 19


def test_the_folder_is_a_picture_of_the_cache(saved: Path) -> None:
    steps, _ = restored(saved)
    said, _ = reply(steps, TALKS[0])
    reply(steps, [*TALKS[0], *said, 9])
    files = SlotFiles(saved)
    before = set(files_in(saved))
    (line,) = files.save(engine_of(steps))
    assert line.startswith("1 conversation saved")
    after = set(files_in(saved))
    assert (len(before - after), len(after - before)) == (1, 1)  # what has grown replaces its start
    with steps.alone():
        steps.slots.drop_all()
    assert files.save(engine_of(steps)) == []
    assert not files_in(saved)
    files.close()


def test_a_running_answer_is_not_saved(tmp_path: Path) -> None:
    steps = make_steps(64, budget=300)
    running = ask(steps, TALKS[0], max_tokens=9)
    got = [next(running).id]
    files = SlotFiles(tmp_path)
    assert files.save(engine_of(steps)) == []
    got += [token.id for token in running]
    assert got == alone(64, TALKS[0], max_tokens=9)
    assert len(files.save(engine_of(steps))) == 1
    files.close()


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a row": lambda data: data[:4100] + bytes([data[4100] ^ 1]) + data[4101:],
    "the header": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "cut off": lambda data: data[:-40],
    "empty": lambda data: b"",
    "foreign": lambda data: b"a text that somebody has put here " * 99,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_damaged_is_told_and_not_used(saved: Path, name: str) -> None:
    for path in files_in(saved)[1:]:
        path.write_bytes(CHANGES[name](path.read_bytes()))
    steps, files = make_steps(64, budget=300), SlotFiles(saved)
    lines = files.restore(engine_of(steps))
    assert sum("is not used: " in line and "\n" not in line for line in lines) == 2
    assert lines[-1].startswith("1 conversation with ")
    assert reply(steps, TALKS[2])[1] == 0
    assert reply(steps, TALKS[0])[1] == 19
    files.save(engine_of(steps))
    files.close()
    (line,) = restored(saved)[1]
    assert line.startswith("2 conversations with ")


def test_a_folder_in_the_place_of_a_conversation_costs_that_one_alone(saved: Path) -> None:
    odd = files_in(saved)[0]
    odd.unlink()
    odd.mkdir()
    steps, files = make_steps(64, budget=300), SlotFiles(saved)
    lines = files.restore(engine_of(steps))
    assert "cannot be read: Is a directory" in lines[0]
    reply(steps, [47] * 9)
    (line,) = files.save(engine_of(steps))
    assert line.startswith("1 conversation saved")
    reply(steps, [46] * 9)
    (line,) = files.save(engine_of(steps))
    assert line.startswith("1 conversation saved")
    assert odd.is_dir()
    files.close()


@pytest.mark.parametrize("other", [{"model": "other"}, {"tokenizer": "other"}])
def test_other_models_have_files_of_their_own(saved: Path, other: dict[str, str]) -> None:
    steps, lines = restored(saved, **other)
    assert lines == ["files in the folder that are not of this model, and left alone: 3"]
    assert reply(steps, TALKS[0])[1] == 0
    with steps.alone():
        steps.slots.drop_all()
    reply(steps, [*TALKS[0], 4])
    files = SlotFiles(saved)
    files.save(engine_of(steps, **other))
    files.close()
    assert len(files_in(saved)) == 4
    assert restored(saved)[1][0].startswith("3 conversations")
    label = engine_of(steps, **other).sessions.label
    for path in files_in(saved)[:3]:  # under the other's name
        path.rename(saved / f"{label}-{path.name.partition('-')[2]}")
    steps, lines = restored(saved, **other)
    assert sum("of another model" in line or "another tokenizer" in line for line in lines) == 3
    assert reply(steps, TALKS[1])[1] == 10


def test_a_folder_has_one_server(saved: Path, tmp_path: Path) -> None:
    files = SlotFiles(saved)
    with pytest.raises(RequestError, match=r"another server keeps its sessions in .*give this one"):
        SlotFiles(saved)
    files.close()
    SlotFiles(saved).close()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="sessions cannot be kept in .*: "):
        SlotFiles(tmp_path / "file")


def test_a_full_disk_is_told_and_tried_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = restored(saved)
    reply(steps, [3, 2, 1])
    files = SlotFiles(saved)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session_file, "_put", full)
        (line,) = files.save(engine_of(steps))
    assert "No space left" in line
    assert len(files_in(saved)) == 3
    assert len(files.save(engine_of(steps))) == 1
    files.close()
    assert not list(saved.glob(session_file.PREFIX + "*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from offload import session_file
from offload.server.slot_files import SlotFiles
from test_slot_files import TALKS, engine_of, restored, reply

folder, pieces = Path(sys.argv[1]), int(sys.argv[2])
steps, lines = restored(folder)
reply(steps, [9, 9, 9, 9])
put = session_file._put

def killed(*args):
    global pieces
    pieces -= 1
    if pieces < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    put(*args)

session_file._put = killed
SlotFiles(folder).save(engine_of(steps))
"""


@pytest.mark.parametrize("pieces", [0, 2])
def test_a_server_that_is_killed_in_a_save_loses_that_save_alone(saved: Path, pieces: int) -> None:
    root = Path(__file__).parents[1]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(saved), str(pieces)],
        check=False,
        cwd=root,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(saved.glob(session_file.PREFIX + "*"))) == 1
    steps, lines = restored(saved)
    assert lines[0].startswith("3 conversations with 49 tokens")
    assert not list(saved.glob(session_file.PREFIX + "*"))
    assert reply(steps, TALKS[0])[1] == 19
    assert reply(steps, [9, 9, 9, 9])[1] == 0
    assert model_of(steps).batches


def test_an_engine_is_restored(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", MODEL)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    with offload.load(path, context=200, threads=1) as engine:
        said = list(engine.generate("In the beginning", **options))
        files = SlotFiles(tmp_path / "kept")
        files.save(engine)
        files.close()
    with offload.load(path, context=200, threads=1) as engine:
        files = SlotFiles(tmp_path / "kept")
        assert len(files.restore(engine)) == 1
        assert list(engine.generate("In the beginning", **options)) == said
        assert engine.stats.reused_tokens == len("In the beginning") - 1
        files.close()
