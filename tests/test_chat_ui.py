"""The chat: its commands, what it forgets when the context is full, what it keeps in files."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from terminal import Terminal

from cli import _options, chat_commands, chat_ui, saved_chat
from cli.answering import Settings, check_thinking
from cli.conversation import Conversation, Turn, answer_room
from cli.saved_chat import LARGEST, SavedChat, load_chat, save_chat
from offload.errors import RequestError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine([("content", "Hello"), ("content", " you")])


def chat(engine: FakeEngine, *lines: str, sampling: Any = None, **settings: Any) -> chat_ui.Chat:
    typed: Iterator[str] = iter(lines)

    def read_line() -> str:
        for line in typed:
            return line
        raise EOFError

    made = chat_ui.Chat(
        engine,  # type: ignore[arg-type]
        Settings(sampling=sampling or {}, **settings),
        read_line,
    )
    made.loop()
    return made


def questions(engine: FakeEngine) -> list[str]:
    return [messages[-1]["content"] for messages, _ in engine.calls]


# commands


def test_commands_are_known_in_any_case_and_near_ones_are_named(
    engine: FakeEngine, capsys: Capture
) -> None:
    chat(engine, "/HELP", "/Hlep", "/exitt", "/zzz", "/EXIT", "never")
    out = capsys.readouterr().out
    assert "/retry" in out
    assert "/Hlep is not a command; did you mean /help?" in out
    assert "did you mean /exit?" in out
    assert "/zzz is not a command; /help lists them" in out
    assert not engine.calls


def test_every_command_is_in_the_help() -> None:
    for name in chat_commands.COMMANDS:
        assert f"\n{name} " in "\n" + chat_commands.HELP or name == "/quit"


def test_undo_takes_back_the_last_turn(engine: FakeEngine, capsys: Capture) -> None:
    made = chat(engine, "one", "two", "/undo", "three", "/undo", "/undo", "/undo")
    assert questions(engine) == ["one", "two", "three"]
    assert [len(messages) for messages, _ in engine.calls] == [1, 3, 3]
    assert made.messages == []
    out = capsys.readouterr().out
    assert "Taken back: three" in out
    assert "nothing to take back" in out


def test_retry_asks_again_with_another_seed(engine: FakeEngine) -> None:
    made = chat(engine, "one", "two", "/retry", "/retry", sampling={"seed": 5})
    assert questions(engine) == ["one", "two", "two", "two"]
    assert [len(messages) for messages, _ in engine.calls] == [1, 3, 3, 3]
    seeds = [sampling["seed"] for _, sampling in engine.calls]
    assert seeds[:2] == [5, 5]
    assert len(set(seeds)) == 3
    assert len(made.messages) == 4


def test_retry_after_an_error_or_an_undo(engine: FakeEngine, capsys: Capture) -> None:
    engine.error = RequestError("too long")
    chat(engine, "/retry", "one", "/retry")
    assert "no question" in capsys.readouterr().out
    assert questions(engine) == ["one", "one"]
    engine.error = None
    engine.calls.clear()
    made = chat(engine, "one", "two", "/undo", "/retry")
    assert questions(engine) == ["one", "two", "one"]
    assert len(made.messages) == 2


def test_a_retry_that_fails_keeps_the_old_answer(engine: FakeEngine) -> None:
    made = chat(engine, "one")
    engine.error = RequestError("no")
    made._read_line = iter(["/retry"]).__next__  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        made.loop()
    assert [m["content"] for m in made.messages] == ["one", "Hello you"]


def test_raw_refuses_what_it_has_not(engine: FakeEngine, capsys: Capture) -> None:
    commands = ["/undo", "/clear", "/context", "/think", "/system x", "/save f", "/load f"]
    chat(engine, *commands, "one", "/retry", "/set", "/stats", raw=True)
    out = capsys.readouterr().out
    assert out.count("--raw continues each text by itself") == len(commands)
    assert [prompt for prompt, _ in engine.calls] == ["one", "one"]


@pytest.mark.parametrize(
    ("mode", "line", "said", "thinking"),
    [
        ("none", "/think on", "no thinking mode", None),
        ("none", "/think", "no thinking mode", None),
        ("always", "/think off", "always thinks", None),
        ("switch", "/think", "as the model does by itself", None),
        ("switch", "/THINK Off", "Thinking is off", False),
        ("switch", "/think maybe", "/think on or /think off", None),
    ],
)
def test_think_knows_what_the_model_can(
    engine: FakeEngine, capsys: Capture, mode: str, line: str, said: str, thinking: bool | None
) -> None:
    engine.format.thinking_mode = mode
    made = chat(engine, line)
    assert said in capsys.readouterr().out
    assert made.settings.thinking is thinking


def test_flags_that_the_model_cannot_follow_are_refused_at_once(engine: FakeEngine) -> None:
    for mode, thinking in (("none", True), ("always", False)):
        engine.format.thinking_mode = mode
        with pytest.raises(RequestError, match="this model"):
            check_thinking(engine, Settings(thinking=thinking, sampling={}))  # type: ignore[arg-type]
        check_thinking(engine, Settings(thinking=not thinking, sampling={}))  # type: ignore[arg-type]


def test_text_that_is_no_unicode_is_refused(engine: FakeEngine, capsys: Capture) -> None:
    chat(engine, "a\udcffb", "/system a\udcff", "one")
    assert questions(engine) == ["one"]
    assert capsys.readouterr().err.count("not valid UTF-8") == 2


def test_ctrl_c_beside_an_answer_does_not_leave(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_ui.Chat, "_warn", lambda self: os.kill(os.getpid(), signal.SIGINT))
    chat(engine, "one", "two")
    assert questions(engine) == ["one", "two"]


# /set


def test_set_changes_one_setting_and_shows_them(engine: FakeEngine, capsys: Capture) -> None:
    lines = ["/set temperature 0.5", "/set top-k=20", "/set max_tokens 9", "/SET Seed 3", "one"]
    lines += ["/set stop END", '/set stop ["\\n\\nA", "b"]', "two", "/set stop default"]
    chat(engine, *lines, "/set temperature default", "three", "/set", "/set seed")
    first, second, third = (sampling for _, sampling in engine.calls)
    assert first == {"thinking": None, "temperature": 0.5, "top_k": 20, "max_tokens": 9, "seed": 3}
    assert second["stop"] == ("\n\nA", "b")
    assert third == {"thinking": None, "top_k": 20, "max_tokens": 9, "seed": 3}
    out = capsys.readouterr().out
    for name in _options.SAMPLING_NAMES:
        assert name in out
    assert "top_k 20 top_p default" in " ".join(out.split())


def test_set_changes_what_a_reply_is_held_to(engine: FakeEngine, capsys: Capture) -> None:
    chat(
        engine,
        *("/set stop_loops on", "/set thinking_budget 0", "one"),
        *("/set stop-loops default", "/set thinking_budget -1", "two"),
    )
    first, second = (wishes for _, wishes in engine.calls)
    assert first == {"thinking": None, "stop_loops": True, "thinking_budget": 0}
    assert second == {"thinking": None}
    assert "stop_loops true thinking_budget" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "line",
    [
        "/set temperature warm",
        "/set stop_loops perhaps",
        "/set thinking_budget some",
        "/set temperature 11",
        "/set temperature nan",
        "/set top_p 0",
        "/set max_tokens 0",
        "/set max_tokens 1.5",
        "/set seed x",
        "/set seed " + "9" * 5000,
        "/set tempratur 1",
        "/set context 99",
        "/set = 5",
        '/set stop ""',
    ],
)
def test_a_bad_setting_is_one_line_and_changes_nothing(
    engine: FakeEngine, capsys: Capture, line: str
) -> None:
    made = chat(engine, line, sampling={"temperature": 0.5})
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert made.settings.sampling == {"temperature": 0.5}


def test_a_setting_that_is_nearly_right_is_named(engine: FakeEngine, capsys: Capture) -> None:
    chat(engine, "/set tempratur 1")
    assert "did you mean temperature?" in capsys.readouterr().err


# the context


def small(engine: FakeEngine, context: int) -> FakeEngine:
    engine.plan.kv.context = context
    return engine


def test_old_turns_are_forgotten_with_a_notice_and_never_the_system_text(
    engine: FakeEngine, capsys: Capture
) -> None:
    # 2 + 2 tokens for the system text, 3 for a question, 4 for an answer; 60 are for the prompt
    lines = [f"q{i}" for i in range(12)]
    made = chat(small(engine, 80), *lines, "/context", system="Be brief.")
    for messages, _ in engine.calls:
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert engine.prompt_tokens(messages) <= 60
        assert [m["role"] for m in messages[1::2]] == ["user"] * len(messages[1::2])
    assert questions(engine) == lines
    err = capsys.readouterr()
    warned = err.err.index("soon the oldest turns will be forgotten")
    forgotten = err.err.index("the 3 oldest turns are forgotten")
    assert warned < forgotten
    assert "6 of 12 turns are forgotten" in err.out
    assert len(made.messages) == 25  # nothing is lost for /save


def test_undo_sees_again_what_was_forgotten(engine: FakeEngine) -> None:
    made = chat(small(engine, 80), *(f"q{i}" for i in range(6)), "long " * 20)
    assert made.conversation.n_forgotten > 0
    chat_commands.obey(made, "/undo")
    assert made.conversation.n_forgotten == 0


def test_a_message_that_does_not_fit_alone_is_refused(engine: FakeEngine, capsys: Capture) -> None:
    made = chat(small(engine, 80), "one", "word " * 100, "/context", "two", "/retry")
    assert questions(engine) == ["one", "two", "two"]
    assert [len(messages) for messages, _ in engine.calls] == [1, 3, 3]
    assert made.conversation.n_forgotten == 0
    captured = capsys.readouterr()
    assert "this message has 102 tokens with the system text, the context holds 80" in captured.err
    assert "7 of 80 tokens are used (9 %)" in captured.out


def test_max_tokens_is_left_free_for_the_answer(engine: FakeEngine) -> None:
    chat(small(engine, 80), *(f"q{i}" for i in range(9)), sampling={"max_tokens": 40})
    assert max(engine.prompt_tokens(messages) for messages, _ in engine.calls) <= 40
    assert answer_room(80, None) == 20
    assert answer_room(80, 1000) == 40
    assert answer_room(10**6, None) == 4096
    assert answer_room(1, None) == 1


def test_context_of_nothing(engine: FakeEngine, capsys: Capture) -> None:
    chat(engine, "/context")
    assert "0 of 2,048 tokens are used (0 %)" in capsys.readouterr().out


# files


def test_a_saved_conversation_goes_on_where_it_was(engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    lines = ["/system Be brief.", "one", "/set temperature 0.5", '/set stop ["a", "b"]']
    before = chat(engine, *lines, "/think off", f"/save {file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    after = chat(engine, "lost", f"/load {file}", "two")
    assert after.messages[:3] == before.messages
    messages, sampling = engine.calls[-1]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert sampling == {"thinking": False, "temperature": 0.5, "stop": ("a", "b")}
    assert os.listdir(tmp_path) == ["kept.json"]


def test_saving_replaces_only_saved_conversations(
    engine: FakeEngine, tmp_path: Path, capsys: Capture
) -> None:
    ours, foreign, link = tmp_path / "a b.json", tmp_path / "notes.txt", tmp_path / "link"
    foreign.write_text("precious")
    link.symlink_to(ours)
    made = chat(engine, "one", f"/save {ours}", "two", "/save ~/link", f"/save {foreign}")
    assert len(load_chat(str(ours)).conversation.turns) == 2
    assert link.is_symlink()
    assert foreign.read_text() == "precious"
    assert "exists and is no saved conversation" in capsys.readouterr().err
    assert len(made.messages) == 4


@pytest.mark.parametrize("name", ["", "no/such/folder/file", ".", "/dev/null", "a\0b", "x" * 300])
@pytest.mark.parametrize("command", ["/save", "/load"])
def test_a_bad_name_is_one_line(
    engine: FakeEngine, capsys: Capture, command: str, name: str
) -> None:
    made = chat(engine, "one", f"{command} {name}")
    captured = capsys.readouterr()
    assert len(made.messages) == 2
    if name:
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
    else:
        assert f"Say {command} FILE." in captured.out


def test_a_fifo_does_not_block(engine: FakeEngine, tmp_path: Path, capsys: Capture) -> None:
    os.mkfifo(tmp_path / "pipe")
    chat(engine, f"/load {tmp_path}/pipe", f"/save {tmp_path}/pipe")
    assert capsys.readouterr().err.count("not a regular file") == 1


GOOD: dict[str, Any] = {
    "format": saved_chat.FORMAT,
    "version": 1,
    "system": None,
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "settings": {"thinking": None, "sampling": {}},
}
TURN = GOOD["messages"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 5000,
        b"[]",
        b"null",
        b"{}",
        GOOD | {"format": "other"},
        GOOD | {"version": 2},
        GOOD | {"version": True},
        GOOD | {"system": 5},
        GOOD | {"extra": 1},
        GOOD | {"messages": None},
        GOOD | {"messages": {"a": 1}},
        GOOD | {"messages": ["a"]},
        GOOD | {"messages": TURN[:1]},
        GOOD | {"messages": TURN[::-1]},
        GOOD | {"messages": [{"role": "system", "content": "x"}]},
        GOOD | {"messages": [{"role": ["user"], "content": "x"}, TURN[1]]},
        GOOD | {"messages": [{"role": "user", "content": ["x"]}, TURN[1]]},
        GOOD | {"messages": [{"role": "user", "content": "\ud800"}, TURN[1]]},
        GOOD | {"messages": [TURN[0] | {"name": "x"}, TURN[1]]},
        GOOD | {"settings": []},
        GOOD | {"settings": {"thinking": "yes"}},
        GOOD | {"settings": {"other": 1}},
        GOOD | {"settings": {"sampling": [1]}},
        GOOD | {"settings": {"sampling": {"warmth": 1}}},
        GOOD | {"settings": {"sampling": {"temperature": "1"}}},
        GOOD | {"settings": {"sampling": {"temperature": float("nan")}}},
        GOOD | {"settings": {"sampling": {"top_k": 10**400}}},
        GOOD | {"settings": {"sampling": {"stop": [["a"]]}}},
        GOOD | {"settings": {"sampling": {"stop": {"a": 1}}}},
    ],
)
def test_a_bad_file_is_one_line_and_changes_nothing(
    engine: FakeEngine, tmp_path: Path, capsys: Capture, content: bytes | dict[str, Any]
) -> None:
    file = tmp_path / "bad.json"
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    file.write_bytes(data)
    made = chat(engine, "one", f"/load {file}", f"/save {file}")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 2, captured.err
    assert "is no conversation that can be loaded" in lines[0]
    assert [m["content"] for m in made.messages] == ["one", "Hello you"]
    assert file.read_bytes() == data


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as out:
        out.truncate(LARGEST * 100)
    with pytest.raises(RequestError, match="at most"):
        load_chat(str(file))


def test_a_folder_is_no_conversation(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a regular file"):
        load_chat(str(tmp_path))
    with pytest.raises(RequestError, match="not a regular file|left alone"):
        save_chat(str(tmp_path), SavedChat(conversation=Conversation()))


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.json"
    kept = SavedChat(conversation=Conversation(turns=[Turn(question="q", answer="a")]))
    save_chat(str(file), kept)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_chat(str(file), SavedChat(conversation=Conversation()))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["kept.json"]


def test_loading_for_a_model_that_cannot_switch_says_so(
    engine: FakeEngine, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "kept.json"
    chat(engine, "/think on", "one", f"/save {file}")
    engine.format.thinking_mode = "none"
    made = chat(engine, f"/load {file}", "two")
    assert made.settings.thinking is None
    assert "thinking is left out" in capsys.readouterr().out
    assert len(made.messages) == 4


# a real terminal


def test_terminal_paste_of_several_lines_then_commands(tmp_path: Path) -> None:
    env = {"FAKE_WORDS": "echo", "XDG_DATA_HOME": str(tmp_path)}
    with Terminal("run", env=env) as terminal:
        terminal.wait_for(">>>")
        terminal.type("\x1b[200~first line\nsecond line\x1b[201~\r")
        terminal.wait_for("first line\r\nsecond line\r\n")
        terminal.wait_for(">>>")
        terminal.type(f"/save {tmp_path}/kept\r")
        terminal.wait_for("Saved")
        terminal.wait_for(">>>")
        terminal.type("/exit\r")
        assert terminal.exit_code() == 0
        assert terminal.attributes() == terminal.attributes_before
    turn = load_chat(f"{tmp_path}/kept").conversation.turns[0]
    assert turn.question == "first line\nsecond line"
