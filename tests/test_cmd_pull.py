"""`kimi-offload pull`, and hf: names after other commands: streams, questions, exit codes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_gguf
from click.testing import CliRunner, Result
from fake_engine import FakeEngine, loader
from fake_hub import Answer, FakeHub, Repo, Storage
from hub_fixtures import fake

import offload
from cli import hub_model, kimi_offload, pull_display
from offload import LoadProgress, hub_preview
from offload.errors import HubError

__all__ = ["fake"]

ROOT = Path(__file__).parents[1]
NAME = "hf:o/r:F32"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tiny_gguf.write(path, tiny_gguf.TinyModel()).read_bytes()


@pytest.fixture
def repo(fake: FakeHub, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> Repo:
    monkeypatch.setattr(hub_preview, "memory_bandwidth", lambda threads, free: 30e9)
    fake.repos["o/r"] = Repo({"tiny-F32.gguf": tiny, "mmproj-F16.gguf": b"x"})
    return fake.repos["o/r"]


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, arguments, input=stdin)


def small_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hub_preview.used_bytes
    monkeypatch.setattr(hub_preview, "used_bytes", lambda tensors: real(tensors) + 10**15)


def test_pull_prints_the_path_alone_on_stdout(fake: FakeHub, repo: Repo, tiny: bytes) -> None:
    result = call("pull", NAME)
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()).read_bytes() == tiny
    assert "runs here  yes: deepseek2" in result.stderr
    assert "tokens/s" in result.stderr
    assert "downloaded" in result.stderr
    again = call("pull", "o/r")
    assert (again.stdout, again.stderr) == (result.stdout, "")


def test_check_downloads_nothing(fake: FakeHub, repo: Repo, tmp_path: Path) -> None:
    result = call("pull", NAME, "--check")
    assert result.exit_code == 0
    assert result.stdout.startswith("hf:o/r:F32\n  files ")
    assert not (tmp_path / "cache").exists()
    repo.files["tiny-F32.gguf"] = b"GGUF\3\0\0\0" + bytes(16)
    result = call("pull", NAME, "--check")
    assert result.exit_code == 1
    assert "runs here  no:" in result.stdout
    assert result.stderr.startswith("error: hf:o/r:F32 cannot run here")


def test_what_cannot_run_needs_force(fake: FakeHub, repo: Repo) -> None:
    repo.files["tiny-F32.gguf"] = b"GGUF\3\0\0\0" + bytes(16)
    result = call("pull", NAME, "--yes")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nothing was downloaded" in result.stderr.splitlines()[-1]
    assert call("pull", NAME, "--force").exit_code == 0


def test_more_than_ram_needs_a_yes_in_a_pipe(
    fake: FakeHub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_ram(monkeypatch)
    result = call("pull", NAME)
    assert result.exit_code == 1
    assert "kimi-offload pull hf:o/r:F32 --yes" in result.stderr
    assert call("pull", NAME, "-y").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pull",), 2, "Missing argument"),
        (("pull", ""), 2, "empty"),
        (("pull", NAME, "--parallel", "0"), 2, "range"),
        (("pull", NAME, "--revision", ""), 2, "empty"),
        (("pull", NAME, "--revision", "../x"), 1, "cannot be a revision"),
        (("pull", "hf:o/r@a:F32", "--revision", "b"), 1, "names the revision a"),
        (("pull", "nonsense"), 1, "form is hf:OWNER/REPO[:QUANT]"),
        (("pull", "hf:o/r:Q7"), 1, "it has F32 30.4 MB"),
        (("run", "hf:o/none", "-p", "x"), 1, "there is no repository o/none"),
        (("inspect", "hf:o/r:Q7"), 1, "nothing in o/r is called Q7"),
        (("bench", "hf:o"), 1, "form is"),
        (("run", "o/r:F32", "-p", "x"), 1, "a model on the hub is written hf:o/r:F32"),
        (("inspect", "o/r"), 1, "a model on the hub is written hf:o/r"),
        (("run", "hf:o/none", "--temperature", "hot"), 2, "temperature"),
    ],
)
def test_mistakes_are_one_line(
    fake: FakeHub, repo: Repo, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1
    if code == 2:
        assert fake.requests == []


def test_run_downloads_once_then_starts_without_the_hub(
    fake: FakeHub, repo: Repo, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(offload, "load", loader(engine))
    result = call("run", NAME, "-p", "Hi")
    assert result.exit_code == 0, result.output
    assert result.stdout == "Hello you\n"
    assert Path(engine.load_arguments["path"]).read_bytes() == tiny
    assert "runs here  yes" in result.stderr
    fake.requests.clear()
    result = call("run", "hf:o/r", "-p", "Hi")
    assert (result.stdout, fake.requests) == ("Hello you\n", [])
    assert "runs here" not in result.stderr


def test_run_of_more_than_ram_names_the_command_that_does_it(
    fake: FakeHub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_ram(monkeypatch)
    result = call("run", NAME, "-p", "Hi")
    assert result.exit_code == 1
    assert "nothing was downloaded: kimi-offload pull hf:o/r:F32 --yes" in result.stderr


def test_inspect_reads_headers_only(fake: FakeHub, repo: Repo, tmp_path: Path) -> None:
    result = call("inspect", NAME, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["file_bytes"] == len(repo.files["tiny-F32.gguf"])
    assert not (tmp_path / "cache").exists()


def test_notices_and_names_cannot_act_on_a_terminal(
    fake: FakeHub, repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    pull_display.PullDisplay().notice("a\x1b[31mb\nc")
    assert capsys.readouterr().err == "a\u241b[31mb\u240ac\n"


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(pull_display.time, "monotonic", lambda: now[0])
    display = pull_display.PullDisplay()
    display.__enter__()
    for second in range(26):
        now[0] = 100.0 + second
        done, total = second * 10**9, 240 * 10**9
        display.callback(LoadProgress(phase="download", done_bytes=done, total_bytes=total))
    display.__exit__(HubError, HubError("the cable"), None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "download 4%  10.0 GB / 240.0 GB  1.0 GB/s  ETA 3:50"
    assert lines[1].startswith("download 8%  20.0 GB / 240.0 GB  1.0 GB/s")
    assert lines[2] == (
        "downloaded 25.0 GB in 0:25, 1.0 GB/s; the same command goes on from what is kept"
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("missing", "fits", "answer", "asked"),
    [
        (5e9, True, "y", True),
        (5e9, True, "n", True),
        (1e6, True, "", False),
        (1e6, False, "", True),
    ],
)
def test_large_downloads_are_asked_for_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, missing: float, fits: bool, answer: str, asked: bool
) -> None:
    verdict = hub_preview.Verdict(
        name=NAME, n_files=1, n_bytes=int(missing), bytes_here=0, folder=Path("x"),
        disk_free=10**12, obstacle=None, ram_free=10**10, weights=0 if fits else 10**11,
    )  # fmt: skip
    display = pull_display.PullDisplay()
    questions: list[tuple[str, bool]] = []

    def confirm(question: str, *, default: bool, err: bool) -> bool:
        questions.append((question, default))
        return default if not answer else answer == "y"

    monkeypatch.setattr(hub_model, "is_terminal", lambda stream: True)
    monkeypatch.setattr("click.confirm", confirm)
    if answer == "n" or not fits:
        with pytest.raises(HubError, match="nothing was downloaded"):
            hub_model.Approval(display)(verdict)
    else:
        hub_model.Approval(display)(verdict)
    assert bool(questions) == asked
    hub_model.Approval(display, yes=True)(replace(verdict, weights=10**11))


# the real program, in a process of its own; its model cannot run, so that nothing is measured


def test_ctrl_c_before_the_first_bytes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with pull_display.PullDisplay() as display:
            display.callback(LoadProgress(phase="download", done_bytes=0, total_bytes=9))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "stopped; the same command goes on from what is kept\n"


OLD_MODEL = b"GGUF\1\0\0\0" + bytes(range(256)) * 12_000


def environment(fake: FakeHub, tmp_path: Path) -> dict[str, str]:
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": fake.endpoint, "HF_TOKEN": ""}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**kept, **home, "PYTHONPATH": search, "TERM": "xterm", "NO_COLOR": ""}


def test_ctrl_c_keeps_what_has_come_and_the_next_pull_goes_on(
    fake: FakeHub, tmp_path: Path
) -> None:
    fake.repos["o/r"] = Repo({"old-F32.gguf": OLD_MODEL})
    go_on = threading.Event()
    fake.storage_faults = [Storage(), Storage(wait=go_on)]
    command = [sys.executable, "-m", "cli.kimi_offload", "pull", NAME, "--force"]
    where = environment(fake, tmp_path)
    with subprocess.Popen(
        command, cwd=ROOT, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert fake.half_sent.wait(60)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(
            path.stat().st_size for path in tmp_path.rglob("*.incomplete")
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    go_on.set()
    assert (process.returncode, out) == (130, "")
    assert "the same command goes on from what is kept" in err
    assert "Traceback" not in err
    fake.storage_faults = [Answer(503)]
    done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.read_bytes() == OLD_MODEL
    assert path.is_relative_to(tmp_path / "hf" / "hub"), "HF_HOME is respected"
    assert not fake.ranges()[-1].startswith("bytes=0-"), "it went on from there"
    assert "words of the hub" not in done.stderr, "the library keeps quiet"


def test_a_wrong_instruction_set_is_one_line(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos["o/r"] = Repo({"old-F32.gguf": OLD_MODEL})
    where = environment(fake, tmp_path) | {"KIMI_OFFLOAD_ISA": "foo"}
    command = [sys.executable, "-m", "cli.kimi_offload", "pull", NAME]
    done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "KIMI_OFFLOAD_ISA=foo" in done.stderr


def test_a_terminal_shows_one_line_of_progress(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos["o/r"] = Repo({"old-F32.gguf": OLD_MODEL})
    master, slave = pty.openpty()
    go_on = threading.Event()
    fake.storage_faults = [Storage(), Storage(wait=go_on)]
    with subprocess.Popen(
        [sys.executable, "-m", "cli.kimi_offload", "pull", NAME, "--force"],
        cwd=ROOT,
        env=environment(fake, tmp_path),
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    shown += os.read(master, 4096)
                except OSError:
                    break
            if b"download " in shown and b"MB" in shown.split(b"download ")[-1]:
                go_on.set()
        assert process.wait(20) == 0
    os.close(master)
    text = shown.decode()
    assert "looking for the model" in text
    assert "runs here" in text
    assert "downloaded" in text
    assert go_on.is_set(), text
