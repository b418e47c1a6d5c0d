"""`run --session FILE`: what is kept, what goes on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fake_engine import FakeEngine, loader

import offload
from cli import chat_ui
from cli.answering import Settings
from cli.chat_session import ChatSession
from cli.kimi_offload import kimi_offload
from offload.errors import RequestError


class SessionEngine(FakeEngine):
    """Keeps notes alone."""

    refusal: str | None = None

    def save_session(self, path: Path, *, note: str) -> None:
        if self.refusal:
            raise RequestError(self.refusal)
        path.write_text(note)

    def load_session(self, path: Path) -> Any:
        return SimpleNamespace(note=path.read_text(), ids=())


@pytest.fixture
def engine() -> SessionEngine:
    return SessionEngine([("content", "Hello"), ("content", " you")])


def chat(
    engine: SessionEngine, path: Path, *lines: str, sampling: Any = None, **settings: Any
) -> chat_ui.Chat:
    typed = iter(lines)

    def read_line() -> str:
        for line in typed:
            return line
        raise EOFError

    session = ChatSession(engine, path)  # type: ignore[arg-type]
    chosen = session.load(Settings(sampling=sampling or {}, **settings))
    made = chat_ui.Chat(engine, chosen, read_line, session)  # type: ignore[arg-type]
    made.loop()
    return made


def test_a_chat_goes_on_with_its_settings(engine: SessionEngine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    chat(engine, path, "one", "/set top_k 5", "/think off", "two", system="Be brief.")
    made = chat(engine, path, "three", sampling={"seed": 3})
    contents = [message["content"] for message in engine.calls[-1][0]]
    assert contents == ["Be brief.", "one", "Hello you", "two", "Hello you", "three"]
    assert engine.calls[-1][1] == {"thinking": False, "top_k": 5, "seed": 3}
    assert len(made.conversation.turns) == 3


def test_it_is_saved_after_each_answer_and_at_the_end(
    engine: SessionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    def save(path: Path, *, note: str) -> None:
        saved.append(len(json.loads(json.loads(note)["chat"])["messages"]))

    monkeypatch.setattr(engine, "save_session", save)
    chat(engine, tmp_path / "s", "one", "/help", "two", "/undo", "/undo", "/exit")
    assert saved == [2, 4, 0]


def test_what_is_forgotten_stays_so(engine: SessionEngine, tmp_path: Path) -> None:
    engine.plan.kv.context = 60
    path = tmp_path / "s"
    first = chat(engine, path, *["four words of text"] * 12)
    assert first.conversation.n_forgotten
    assert chat(engine, path).conversation.n_forgotten == first.conversation.n_forgotten


def test_a_save_that_fails_is_told_and_the_chat_goes_on(
    engine: SessionEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.refusal = "the disk is full"
    made = chat(engine, tmp_path / "s", "one", "two")
    assert len(made.conversation.turns) == 2
    assert "error: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("", "holds no chat"),
        ("[]", "holds no chat"),
        ('{"chat": 5, "n_forgotten": 0}', "holds no chat"),
        ('{"chat": "{}", "n_forgotten": -1}', "holds no chat"),
        ('{"chat": "{}", "n_forgotten": 0}', "no conversation that can be loaded"),
        ("[" * 100_000, "holds no chat"),
    ],
)
def test_other_notes_are_refused(
    engine: SessionEngine, tmp_path: Path, note: str, message: str
) -> None:
    path = tmp_path / "s"
    path.write_text(note)
    with pytest.raises(RequestError, match=message):
        chat(engine, path)
    assert path.read_text() == note


def test_another_system_text_is_refused(engine: SessionEngine, tmp_path: Path) -> None:
    chat(engine, tmp_path / "s", "one", system="Be brief.")
    with pytest.raises(RequestError, match="another system text"):
        chat(engine, tmp_path / "s", system="Be long.")
    assert chat(engine, tmp_path / "s").conversation.system == "Be brief."


def test_single_answers_make_a_conversation(
    engine: SessionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "load", loader(engine))
    monkeypatch.setattr("cli.cmd_run.guard_crashes", lambda: None)
    arguments = ["run", "--session", str(tmp_path / "s"), "--chunk", "64", "-p"]
    for question in ("one", "two"):
        assert CliRunner().invoke(kimi_offload, [*arguments, question]).exit_code == 0
    assert [m["content"] for m in engine.calls[-1][0]] == ["one", "Hello you", "two"]
    assert engine.load_arguments["chunk"] == 64
    refused = CliRunner().invoke(kimi_offload, [*arguments, "three", "--raw"])
    assert refused.exit_code == 2
    assert "--session" in refused.output
