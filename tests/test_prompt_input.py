"""Where a prompt comes from: -p, -f and standard input together, nothing silently left out."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine, loader
from terminal import FAKE_PROGRAM, Terminal, environment

import offload
from cli import kimi_offload, prompt_input


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    fake = FakeEngine()
    monkeypatch.setattr(offload, "load", loader(fake))
    return fake


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, ["run", *arguments], input=stdin)


def asked(engine: FakeEngine) -> str:
    (messages, _) = engine.calls[-1]
    content: str = messages[-1]["content"]
    return content


def test_text_file_and_input_are_all_used(engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbffrom the file\r\n")
    assert call("-p", "Sum up:", stdin="the input\n").exit_code == 0
    assert asked(engine) == "Sum up:\n\nthe input"
    call("-p", "Sum up:", "-f", str(file))
    assert asked(engine) == "Sum up:\n\nfrom the file"
    call("-p", "Sum up:", "-f", str(file), "-f", "-", stdin="the input")
    assert asked(engine) == "Sum up:\n\nfrom the file\n\nthe input"
    call("-f", str(file), stdin="more")
    assert asked(engine) == "from the file\n\nmore"
    call("-f", "-", stdin="all")
    assert asked(engine) == "all"
    call("--raw", "-p", "a", stdin="b")
    assert engine.calls[-1][0] == "a\n\nb"


@pytest.mark.parametrize("stdin", [None, "", " \n"])
def test_empty_input_beside_a_text_is_nothing(engine: FakeEngine, stdin: str | None) -> None:
    assert call("-p", "Hi", stdin=stdin).exit_code == 0
    assert asked(engine) == "Hi"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("folder", "Is a directory"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a\xff", "byte 0xff at 1"),
        (b"\xff\xfea\0", "UTF-16"),
    ],
)
def test_a_bad_file_is_one_line(
    engine: FakeEngine, tmp_path: Path, content: bytes | str | None, message: str
) -> None:
    file = tmp_path / "prompt.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    result = call("-p", "Hi", "-f", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not engine.calls


def test_what_never_ends_is_refused(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prompt_input, "LARGEST", 2**20)
    result = call("-f", "/dev/zero")
    assert result.exit_code == 1
    assert "longer than 1 MiB" in result.stderr
    assert "longer than 1 MiB" in call("-p", "Hi", stdin="x" * (2**20 + 1)).stderr
    assert not engine.calls


@pytest.mark.usefixtures("engine")
def test_empty_names_and_inputs_are_told() -> None:
    assert call("-f", "").exit_code == 2
    result = call("-f", "-", stdin="")
    assert result.exit_code == 1
    assert "standard input is empty" in result.stderr


def test_a_closed_input_is_nothing_or_an_error() -> None:
    for arguments, code in ((["-p", "Hi"], 0), ([], 1), (["-f", "-"], 1), (["--json"], 1)):
        run = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *FAKE_PROGRAM, "run", *arguments],
            env=environment(FAKE_WORDS="3"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == code, run.stderr
        assert ("standard input is closed" in run.stderr) == bool(code)


def test_a_pipe_that_nobody_closes_is_told() -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*FAKE_PROGRAM, "run", "-p", "Hi"],
        env=environment(FAKE_WORDS="3", FAKE_PATIENCE="0.2"),
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        os.close(reader)
        assert run.stderr is not None
        line = run.stderr.readline()
        assert (
            line == "[waiting for the end of standard input (</dev/null if nothing is to come)]\n"
        )
        os.write(writer, b"late")
        os.close(writer)
        out, _ = run.communicate(timeout=20)
    assert run.returncode == 0
    assert out == "word0 word1 word2 \n"


def test_a_pipe_that_does_not_block_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with subprocess.Popen(
        [*FAKE_PROGRAM, "run", "-f", "-", "--raw", "-p", "Hi"],
        env=environment(FAKE_WORDS="echo"),
        stdin=reader,
        stdout=subprocess.PIPE,
    ) as run:
        os.close(reader)
        time.sleep(0.15)
        os.write(writer, b"late")
        os.close(writer)
        out, _ = run.communicate(timeout=20)
    assert out == b"Hi\n\nlate\n"


def test_an_input_that_cannot_be_read_is_nothing() -> None:
    """As `nohup` leaves it."""
    with open(os.devnull, "wb") as unreadable:
        run = subprocess.run(
            [*FAKE_PROGRAM, "run", "-p", "Hi"],
            env=environment(FAKE_WORDS="3"),
            stdin=unreadable,
            capture_output=True,
            check=False,
        )
    assert run.returncode == 0
    assert run.stdout == b"word0 word1 word2 \n"


def test_a_terminal_is_not_read_beside_a_text() -> None:
    with Terminal("run", "-p", "Hi", env={"FAKE_WORDS": "3"}) as terminal:
        terminal.wait_for("word2")
        assert terminal.exit_code() == 0


def test_the_prompt_can_be_typed() -> None:
    with Terminal("run", "-f", "-", env={"FAKE_WORDS": "3", "FAKE_PATIENCE": "0.1"}) as terminal:
        terminal.wait_for("Ctrl-D ends it")
        terminal.type("Hi\n\x04")
        terminal.wait_for("word2")
        assert terminal.exit_code() == 0
