"""The helper process: what it does to itself never reaches this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload.child import Child, ChildError
from offload.child_frames import Frame
from offload.errors import DeviceError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child("odd_child", Frame({"do": "echo"}), seconds=10)
    yield made
    made.close()


def ask(child: Child, do: str, body: bytes = b"", seconds: float = 10) -> Frame:
    return child.call(Frame({"do": do}, body), seconds=seconds, reply_bytes=len(body))


def test_it_answers_in_its_own_session(child: Child) -> None:
    body = bytes(range(256)) * 5_000  # more than a socket holds
    reply = ask(child, "echo", body)
    assert reply.body == body
    assert reply.header["pid"] != os.getpid()
    assert reply.header["session"] != os.getsid(0)
    assert ask(child, "environment").header == {"backtrace": "1", "input": ""}


def test_what_it_prints_does_not_matter(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    ask(child, "talk")
    assert ask(child, "echo", b"x").body == b"x"
    assert capfd.readouterr() == ("", "")


def test_an_exception_is_told(child: Child) -> None:
    assert ask(child, "raise").header == {"failed": "ValueError", "said": "two\nlines"}
    assert ask(child, "grow").header["failed"] == "MemoryError"
    assert ask(child, "echo", b"x").body == b"x"


@pytest.mark.parametrize(
    ("do", "how", "said"),
    [
        ("abort", "crashed", r"the reason\x1b[31m"),
        ("close", "crashed", "it ended with code 3"),
        ("sleep", "late", ""),
    ],
)
def test_a_lost_process_is_one_error_and_starts_again(
    child: Child, do: str, how: str, said: str
) -> None:
    before = ask(child, "echo").header["pid"]
    start = time.monotonic()
    with pytest.raises(ChildError) as caught:
        ask(child, do, seconds=0.2 if do == "sleep" else 10)
    assert time.monotonic() - start < 5
    assert (caught.value.how, caught.value.said) == (how, said)
    assert ask(child, "echo").header["pid"] != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_an_answer_that_is_too_long_is_none(child: Child) -> None:
    with pytest.raises(ChildError, match="too long"):
        child.call(Frame({"do": "echo"}, b"xx"), seconds=10, reply_bytes=1)


def test_an_interrupt_leaves_no_answer_behind(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ask(child, "echo").header["pid"]
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ask(child, "sleep")
    reply = ask(child, "echo", b"x")
    assert reply.body == b"x"
    assert reply.header["pid"] != before


def test_threads_take_turns(child: Child) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(20):
            body = bytes([number, i]) * 1_000
            if ask(child, "echo", body).body != body:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_ends_with_its_object() -> None:
    child = Child("odd_child", Frame({"do": "echo"}), seconds=10)
    pid = ask(child, "echo").header["pid"]
    del child
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


SCRIPT = """
import os, signal, sys
from offload.child import Child
from offload.child_frames import Frame
child = Child("odd_child", Frame({"do": "echo"}), seconds=10)
def ask():
    return child.call(Frame({"do": "echo"}), seconds=10, reply_bytes=0).header["pid"]
"""


def run(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_it_ends_when_this_program_is_killed() -> None:
    done = run("print(ask(), flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert gone(int(done.stdout))


def test_a_fork_starts_its_own() -> None:
    done = run(
        "mine = ask()\n"
        "if os.fork() == 0:\n"
        "    os._exit(0 if ask() != mine else 1)\n"
        "_, status = os.wait()\n"
        "print(status, ask() == mine)"
    )
    assert done.stdout.split() == ["0", "True"]
    assert done.stderr == ""


def test_no_standard_streams_are_needed(tmp_path: Path) -> None:
    # as `kimi-offload run ... <&- >&- 2>&-` does it: the lowest descriptors are free
    out = str(tmp_path / "x")
    script = (
        "for fd in (0, 1, 2): os.close(fd)\n"
        f"os.write(os.open({out!r}, os.O_WRONLY | os.O_CREAT), b'%d' % ask())"
    )
    run(script)
    assert int((tmp_path / "x").read_text()) > 0


def test_no_python_to_start(monkeypatch: pytest.MonkeyPatch, child: Child) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeviceError, match="cannot start a helper process"):
        ask(child, "echo")
