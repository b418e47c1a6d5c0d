"""Sessions: rows that come back, files that are refused, and a save that is killed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import TinyModel

import offload
from offload import RequestError, session_file
from offload.engine import Engine
from offload.session_file import ALIGN, PREFIX, START, Head
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=2, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPT = "In the beginning there was a prompt of some length."
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("session") / "tiny.gguf", MODEL)


def load(path: Path, **options: Any) -> Engine:
    return offload.load(path, **{"context": 200, "threads": 1, **options})


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with load(path) as made:
        yield made


@pytest.fixture(scope="module")
def saved(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "one.session"
    with load(path) as engine:
        list(engine.generate(PROMPT, **GREEDY))
        engine.save_session(place, note="ü \ud800")
    return place


def ids(tokens: Iterator[offload.Token]) -> list[int]:
    return [token.id for token in tokens]


def test_a_session_goes_on_where_it_was(engine: Engine, path: Path, saved: Path) -> None:
    with load(path, chunk=5) as other:
        session = other.load_session(saved)
        assert session.note == "ü \ud800"
        text = other.tokenizer.decode(session.ids)
        assert text.startswith(PROMPT)
        got = ids(other.generate([*session.ids, 65, 66], **GREEDY))
        assert other.stats.reused_tokens == len(session.ids)
        assert len(session.ids) > len(PROMPT) + 3
    assert got == ids(engine.generate([*session.ids, 65, 66], **GREEDY))


def test_the_answer_that_is_meant_is_saved(engine: Engine, path: Path, tmp_path: Path) -> None:
    first, second = engine.generate("first", **GREEDY), engine.generate("second", **GREEDY)
    next(first)
    list(second)
    engine.save_session(tmp_path / "a", first)  # while it runs
    list(first)
    engine.save_session(tmp_path / "b")
    with load(path) as other:
        assert bytes(other.load_session(tmp_path / "a").ids[:5]) == bytes(
            engine.tokenizer.encode("first")
        )
        assert list(other.load_session(tmp_path / "b").ids[:6]) == engine.tokenizer.encode("second")
        for prompt in ("first", "second"):  # both are there
            list(other.generate(prompt + "x", **GREEDY))
            assert other.stats.reused_tokens == len(prompt)


def test_a_note_is_saved_without_rows(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to save"):
        engine.save_session(tmp_path / "x")
    engine.save_session(tmp_path / "x", note="text")
    assert engine.load_session(tmp_path / "x") == offload.Session(ids=(), note="text")


def test_nothing_else_is_overwritten(engine: Engine, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("my text")
    list(engine.generate("x", **GREEDY))
    for place in (mine, tmp_path):
        with pytest.raises(RequestError, match="no session, so it is left alone"):
            engine.save_session(place)
    assert mine.read_text() == "my text"
    with pytest.raises(RequestError, match="cannot be written.*No such file"):
        engine.save_session(tmp_path / "no" / "folder")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    engine.save_session(link)
    engine.save_session(link)
    assert link.is_symlink()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine", "target"]


def changed(data: bytes, **fields: Any) -> bytes:
    """The file with other fields in its header, the checksum and the place of rows put right."""
    _, version, _, n = START.unpack(data[: START.size])
    head = json.loads(data[START.size : START.size + n]) | fields
    text = json.dumps({k: v for k, v in head.items() if v is not ...}).encode()
    rows = data[-(-(START.size + n) // ALIGN) * ALIGN :]
    start = START.pack(session_file.MAGIC, version, zlib.crc32(text), len(text)) + text
    return start + b"\0" * (-len(start) % ALIGN) + rows


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "no session of this program"),
    "text": (lambda d: b"my text, which is longer than the start of a session", "no session"),
    "version": (lambda d: d[:16] + b"\7" + d[17:], "version is 7, this program reads 2"),
    "older": (lambda d: d[:16] + b"\1" + d[17:], "version is 1, this program reads 2"),
    "header": (lambda d: flipped(d, START.size + 9), "header is damaged"),
    "huge header": (lambda d: d[:24] + struct.pack("<Q", 2**63) + d[32:], "header is damaged"),
    "start only": (lambda d: d[: START.size], "header is damaged"),
    "cut": (lambda d: d[:-1], "instead of"),
    "cut to the header": (lambda d: d[:ALIGN], "instead of"),
    "longer": (lambda d: d + b"\0", "instead of"),
    "rows": (lambda d: flipped(d, len(d) - 100), "checksum of layer 1 is wrong"),
    "sums": (lambda d: flipped(d, len(d) - 1), "checksum of layer 1 is wrong"),
    "model": (lambda d: changed(d, model="0" * 32), "of another model .tiny"),
    "tokenizer": (lambda d: changed(d, tokenizer=""), "another tokenizer"),
    "kind": (lambda d: changed(d, kind="f32"), "rows are f32, the KV cache's are f16.*--kv-type"),
    "shape": (lambda d: changed(d, row_bytes=[48, 144]), "other sizes than this model's"),
    "no list": (lambda d: changed(d, ids=5), "header is damaged"),
    "negative": (lambda d: changed(d, ids=[-1]), "header is damaged"),
    "float": (lambda d: changed(d, expanded=[[1.5, 2]]), "header is damaged"),
    "one form": (lambda d: changed(d, expanded=512), "header is damaged"),
    "backwards": (lambda d: changed(d, expanded=[[4, 8], [8, 12]]), "header is damaged"),
    "half a run": (lambda d: changed(d, expanded=[[4]]), "header is damaged"),
    "missing": (lambda d: changed(d, note=...), "header is damaged"),
    "unknown": (lambda d: changed(d, more=1), "header is damaged"),
    "no text": (lambda d: changed(d, name=None), "header is damaged"),
    "monstrous": (lambda d: changed(d, row_bytes=[2**39] * 99), "instead of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_whole_and_ours_is_refused(
    engine: Engine, saved: Path, tmp_path: Path, name: str
) -> None:
    change, message = REFUSED[name]
    place = tmp_path / "changed"
    place.write_bytes(change(saved.read_bytes()))
    with pytest.raises(RequestError, match=message) as caught:
        engine.load_session(place)
    assert "\n" not in str(caught.value)
    expected = ids(engine.generate(PROMPT, **GREEDY))
    assert engine.stats.reused_tokens == 0
    engine.load_session(saved)
    assert ids(engine.generate(PROMPT, **GREEDY)) == expected


def test_tokens_that_the_model_does_not_have(engine: Engine, saved: Path, tmp_path: Path) -> None:
    n = len(engine.load_session(saved).ids)
    place = tmp_path / "changed"
    place.write_bytes(changed(saved.read_bytes(), ids=[MODEL.vocab] * n))
    with pytest.raises(RequestError, match="tokens that the model does not have"):
        engine.load_session(place)


def test_places_that_cannot_be_read(engine: Engine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place, message in (
        (tmp_path / "none", "cannot be read: No such file"),
        (tmp_path, "cannot be read|no regular file"),
        (tmp_path / "fifo", "no regular file"),
        ("", "is empty"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.load_session(place)


def test_another_models_session_is_refused(path: Path, saved: Path, tmp_path: Path) -> None:
    twin = tiny_gguf.write(tmp_path / "renamed.gguf", MODEL)
    with load(twin) as engine:
        engine.load_session(saved)
    for other in (replace(MODEL, seed=1), replace(MODEL, theta=9.0), replace(MODEL, layers=3)):
        place = tiny_gguf.write(tmp_path / "other.gguf", other)
        with load(place) as engine, pytest.raises(RequestError, match="of another model"):
            engine.load_session(saved)
    with load(path, kv_type="f32") as engine, pytest.raises(RequestError, match="--kv-type f16"):
        engine.load_session(saved)
    with load(path, context=30) as engine, pytest.raises(RequestError, match="larger --context"):
        engine.load_session(saved)


def test_a_session_that_running_answers_leave_no_room(path: Path, saved: Path) -> None:
    with load(path, context=70) as engine:
        running = engine.generate("x", max_tokens=30)
        next(running)
        with pytest.raises(RequestError, match="leave no room"):
            engine.load_session(saved)
        running.close()
        engine.load_session(saved)


@pytest.mark.parametrize("layers_before", [0, 1, 5])
def test_a_save_that_is_killed_leaves_the_old_file(tmp_path: Path, layers_before: int) -> None:
    place = tmp_path / "one"
    head = Head(
        name="", model="", tokenizer="", kind="f16", row_bytes=[64] * 8, ids=[1] * 99,
        expanded=(), note="old",
    )  # fmt: skip
    session_file.save(place, head, [np.zeros((99, 64), np.uint8)] * 8)
    code = f"""
import os, signal
from pathlib import Path
from dataclasses import replace
import numpy as np
from offload import session_file
with session_file.opened(Path({str(place)!r})) as file:
    head = replace(file.head, note="new")
def layers():
    for i in range(8):
        if i == {layers_before}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield np.ones((99, 64), np.uint8)
session_file.save(Path({str(place)!r}), head, layers())
"""
    root = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    rows = [np.ones((99, 64), np.uint8) for _ in range(8)]
    with session_file.opened(place) as file:
        file.read_into(rows)
        assert file.head.note == "old"
    assert not any(r.any() for r in rows)
    (left,) = tmp_path.glob(PREFIX + "*")
    os.utime(left, (0, 0))
    session_file.save(place, replace(head, note="new"), rows)
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
