"""How the program ends: signals, closed streams, a terminal that goes; the terminal as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import FAKE_PROGRAM, Terminal, environment

SLOW_LOAD = {"FAKE_LOAD_SECONDS": "20"}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        (signal.SIGTERM, "loading"),
        (signal.SIGHUP, "answer"),
        (signal.SIGTERM, "answer"),
        (signal.SIGQUIT, "answer"),
        (signal.SIGTERM, "thinking"),
        (signal.SIGTERM, "input line"),
        (signal.SIGINT, "loading"),
    ],
)
def test_a_signal_leaves_the_terminal_as_it_was(number: int, phase: str) -> None:
    env = SLOW_LOAD if phase == "loading" else {}
    with Terminal("run", env=env) as terminal:
        if phase == "loading":
            terminal.wait_for("copy")
        else:
            terminal.wait_for(">>>")
        if phase in ("answer", "thinking"):
            terminal.type("tell me\r")
            terminal.wait_for("word3 " if phase == "answer" else "\x1b[2m")
        assert terminal.attributes() != terminal.attributes_before
        terminal.program.send_signal(number)
        assert terminal.exit_code() == 128 + number
        assert terminal.attributes() == terminal.attributes_before
        assert "Traceback" not in terminal.screen
        rest = terminal.screen
        assert rest.rfind("\x1b[0m") >= rest.rfind("\x1b[2m")
        assert rest.rfind("\x1b[?25h") >= rest.rfind("\x1b[?25l")
        assert rest.rfind("\x1b[?2004l") >= rest.rfind("\x1b[?2004h")


def test_a_signal_ends_a_piped_answer() -> None:
    with piped("run", "-p", "Hi") as run:
        assert run.stdout is not None
        run.stdout.read(6)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=20)
    assert run.returncode == 143
    assert out.endswith("\n")
    assert "Traceback" not in err


def test_an_ignored_hangup_stays_ignored() -> None:
    """As `nohup` asks."""
    with piped("run", "-p", "Hi", ignore=signal.SIGHUP, words=20) as run:
        assert run.stdout is not None
        run.stdout.read(6)
        run.send_signal(signal.SIGHUP)
        out, _ = run.communicate(timeout=20)
    assert run.returncode == 0
    assert "word19" in out


@pytest.mark.parametrize("is_answering", [False, True])
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_terminal_that_goes_ends_the_program(is_answering: bool, is_ignored: bool) -> None:
    with Terminal("run", ignore=[signal.SIGHUP] if is_ignored else []) as terminal:
        terminal.wait_for(">>>")
        if is_answering:
            terminal.type("tell me\r")
            terminal.wait_for("word3 ")
        terminal.hang_up()
        code = terminal.exit_code()
        assert code in ((0, 129) if is_ignored else (129,))


@pytest.mark.parametrize("stream", ["0", "1", "2"])
def test_a_closed_stream_is_no_error(stream: str) -> None:
    script = f'exec "$@" {stream}>&-'
    run = subprocess.run(
        [
            "sh",
            "-c",
            script,
            "sh",
            *FAKE_PROGRAM,
            "run",
            "-p",
            "Hi",
            "--stats",
            "--max-tokens",
            "5",
        ],
        env=environment(FAKE_WORDS="5"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    if stream != "1":
        assert run.stdout == "word0 word1 word2 word3 word4 \n"


@pytest.mark.parametrize(
    ("arguments", "stream", "code"),
    [
        (["run", "-p", "Hi"], "1", 1),
        (["run", "-p", "Hi"], "2", 0),
        (["run", "-p", "Hi", "--sped"], "2", 2),
        (["--help"], "1", 1),
        (["--version"], "1", 1),
    ],
)
def test_a_full_disk_is_one_line(arguments: list[str], stream: str, code: int) -> None:
    run = subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}>/dev/full', "sh", *FAKE_PROGRAM, *arguments],
        env=environment(FAKE_WORDS="5"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code
    if stream == "1":
        last = run.stderr.splitlines()[-1]
        assert last == "error: No space left on device"
        assert "Exception ignored" not in run.stderr


def test_help_into_a_closed_pipe_is_141() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [*FAKE_PROGRAM, "--help"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert run.returncode == 141
    assert run.stderr == b""


def test_ctrl_c_while_packages_are_imported(tmp_path: Path) -> None:
    package = tmp_path / "offload_slow.py"
    package.write_text("import time\ntry:\n    time.sleep(20)\nexcept BaseException:\n    pass\n")
    code = (
        "import sys\nfrom cli._interrupt import ends_at_once\n"
        "with ends_at_once():\n    sys.stderr.write('x'); sys.stderr.flush()\n"
        "    import offload_slow\n"
        "sys.exit(5)"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **environment(),
                "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}",
            },
            stderr=subprocess.PIPE,
        ) as run:
            assert run.stderr is not None
            assert run.stderr.read(1) == b"x"
            time.sleep(0.05)
            run.send_signal(number)
            assert run.wait(timeout=10) == 128 + number
            assert run.stderr.read() == b""


def test_ctrl_c_in_a_callback_is_not_lost() -> None:
    """An exception in a destructor or a ctypes callback goes no further; the ending does."""
    code = (
        "import os, signal, time\nfrom cli._interrupt import end_on_signals\nend_on_signals()\n"
        "class Odd:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        for _ in range(10**9): pass\n"
        "del [Odd()][0]\n"
        "time.sleep(20)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        check=False,
        timeout=15,
    )
    assert run.returncode == 143
    assert run.stderr == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the handler is Linux' own")
@pytest.mark.parametrize(
    ("number", "phase"),
    [
        (signal.SIGSEGV, "answer"),
        (signal.SIGABRT, "input line"),
        (signal.SIGBUS, "answer"),
        (signal.SIGFPE, "loading"),
    ],
)
def test_a_crash_leaves_the_terminal_as_it_was(number: int, phase: str) -> None:
    env = {"FAKE_GUARD": "1"} | (SLOW_LOAD if phase == "loading" else {})
    with Terminal("run", env=env) as terminal:
        terminal.wait_for("copy" if phase == "loading" else ">>>")
        if phase == "answer":
            terminal.type("tell me\r")
            terminal.wait_for("word3 ")
        assert terminal.attributes() != terminal.attributes_before
        terminal.program.send_signal(number)
        terminal.exit_code()
        assert terminal.program.returncode == -number
        assert terminal.attributes() == terminal.attributes_before
        assert terminal.screen.count("error: kimi-offload crashed in native code") == 1
        assert terminal.screen.rfind("\x1b[?25h") > terminal.screen.rfind("error:")
        assert "Traceback" not in terminal.screen


class piped(subprocess.Popen[str]):  # noqa: N801
    """The fake program with pipes."""

    def __init__(self, *arguments: str, ignore: int | None = None, words: int = 200) -> None:
        super().__init__(
            [*FAKE_PROGRAM, *arguments],
            env=environment(FAKE_WORDS=str(words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: ignore and signal.signal(ignore, signal.SIG_IGN),
        )
