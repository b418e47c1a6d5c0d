"""One answer: JSON for programs, signs of life, the notice of a loop, words whole on a terminal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine, FakeProgress, loader
from terminal import FAKE_PROGRAM, Terminal, environment

import offload
from cli import answering, kimi_offload, progress
from offload.errors import RequestError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    fake = FakeEngine()
    monkeypatch.setattr(offload, "load", loader(fake))
    return fake


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, ["run", *arguments], input=stdin)


# --json


@pytest.mark.usefixtures("engine")
def test_json_is_one_object_and_nothing_else() -> None:
    result = call("-p", "Hi", "--json", "--stats")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {
        "model": "fake-model",
        "text": "Hello you",
        "thinking": "Hm.",
        "finish_reason": "stop",
        "seed": 77,
        "usage": {"prompt_tokens": 12, "completion_tokens": 31, "reused": 0},
        "speeds": {"prompt_tps": 24.0, "decode_tps": 15.0, "time_to_first_token": 0.51},
        "repetition": None,
    }
    assert "Hm." not in result.stderr
    assert "seed 77" in result.stderr


@pytest.mark.usefixtures("engine")
def test_json_hides_thinking_and_takes_a_pipe() -> None:
    result = call("--json", "--hide-thinking", stdin="Hi")
    assert json.loads(result.stdout)["thinking"] is None


def test_json_is_safe_whatever_the_model_says(engine: FakeEngine) -> None:
    said = '\x1b[31m\0\ud800\u2028\n\x9b"'
    engine.script = [("content", said)]
    engine.stats.decode_tps = float("inf")
    engine.repeats_after = 0
    result = call("-p", "Hi", "--json", "--raw")
    assert result.stdout.isascii()
    assert result.stdout.rstrip("\n").isprintable()
    content = json.loads(result.stdout)
    assert content["text"] == said
    assert content["thinking"] == ""
    assert content["speeds"]["decode_tps"] is None
    assert content["repetition"] == {"tokens": 12, "times": 6, "channel": "content"}


def test_json_of_an_error_is_empty(engine: FakeEngine) -> None:
    engine.error = RequestError("too long")
    result = call("-p", "Hi", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: too long\n"


def test_json_of_a_stopped_answer() -> None:
    import signal

    with subprocess.Popen(
        [*FAKE_PROGRAM, "run", "-p", "Hi", "--json"],
        env=environment(FAKE_REPEATS="3"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        run.stderr.readline()  # the notice of a loop: it runs
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=20)
    assert run.returncode == 130
    content = json.loads(out)
    assert content["finish_reason"] == "cancelled"
    assert content["text"].startswith("word0 ")


def test_json_wants_a_prompt() -> None:
    with Terminal("run", "--json") as terminal:
        assert terminal.exit_code() == 2
        assert "give -p TEXT, -f FILE or a pipe" in terminal.screen


# statistics


def test_swapped_memory_is_told(engine: FakeEngine) -> None:
    assert "swapped" not in call("-p", "Hi", "--stats").stderr
    engine.stats.swapped_bytes = 3 * 10**9
    assert "3.0 GB of this process are swapped out" in call("-p", "Hi", "--stats").stderr


@pytest.mark.parametrize("max_tokens", [None, "-1", "40", "31"])
def test_a_cut_is_the_contexts_only_if_no_limit_was_met(
    engine: FakeEngine, max_tokens: str | None
) -> None:
    engine.stats.finish_reason = "length"
    sampling = {} if max_tokens is None else {"max_tokens": int(max_tokens)}
    settings = answering.Settings(sampling=sampling)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "say", lambda text, **_: said.append(text))
        answering.note_full_context(engine, settings)  # type: ignore[arg-type]
    assert bool(said) == (max_tokens != "31")


# a loop


def test_a_loop_is_said_once(engine: FakeEngine) -> None:
    engine.script = [("content", f"w{i} ") for i in range(9)]
    engine.repeats_after = 3
    result = call("-p", "Hi")
    assert result.stdout == "w0 w1 w2 w3 w4 w5 w6 w7 w8 \n"
    assert result.stderr.count("the answer repeats 12 tokens 6 times") == 1
    assert "--dry-multiplier 0.8" in result.stderr


def test_a_loop_that_ends_an_answer_is_its_finish_reason(engine: FakeEngine) -> None:
    engine.repeats_after = 0
    engine.stats.finish_reason = "loop"
    result = call("-p", "Hi", "--stop-loops", "--json")
    assert json.loads(result.stdout)["finish_reason"] == "loop"
    assert "6 times and was stopped" in result.stderr


def test_a_loop_is_said_on_a_line_of_its_own_on_a_terminal() -> None:
    with Terminal("run", "-p", "Hi", env={"FAKE_WORDS": "6", "FAKE_REPEATS": "3"}) as terminal:
        assert terminal.exit_code() == 0
    lines = terminal.lines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("[the answer repeats 12")]
    assert lines[place - 1] == "word0 word1 word2 word3"
    assert lines[place + 1].split() == ["word4", "word5"]


def test_a_loop_in_hidden_thinking_is_said_on_its_line() -> None:
    env = {"FAKE_WORDS": "2", "FAKE_REPEATS": "-1"}
    with Terminal("run", "-p", "Hi", "--hide-thinking", env=env) as terminal:
        assert terminal.exit_code() == 0
    hidden = "\x1b[2mthinking ...\x1b[0m"
    note = terminal.screen.index("[the thinking repeats 12")
    assert terminal.screen.count(hidden) == 2
    assert terminal.screen[:note].endswith(f"{hidden}\r\x1b[K\x1b[2m")


# signs of life


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def feed(self, show: Any, phase: str, steps: int, seconds: float, total: int = 60) -> None:
        for step in range(steps + 1):
            show(FakeProgress(phase, total * step // steps, total))
            self.now += seconds


def test_slow_phases_are_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress.LoadDisplay() as display:
        clock.feed(display.callback, "copy", 10, 0.1)
        clock.feed(display.callback, "compile", 10, 0.1)
        assert capsys.readouterr().err == ""
        clock.feed(display.callback, "pack", 70, 1.0, total=70 * 10**9)
        clock.feed(display.callback, "compile", 20, 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "[packing experts: 2.0 GB / 70.0 GB  1.0 GB/s  ETA 1:08]",
        "[packing experts: 32.0 GB / 70.0 GB  1.0 GB/s  ETA 0:38]",
        "[packing experts: 62.0 GB / 70.0 GB  1.0 GB/s  ETA 0:08]",
        "[compiling kernels for this processor, once: about half a minute]",
    ]


def test_a_long_prompt_is_told_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress.PromptDisplay() as display:
        clock.feed(display.callback, "prompt", 29, 1.0)
        assert capsys.readouterr().err == ""
    with progress.PromptDisplay() as display:
        clock.feed(display.callback, "prompt", 40, 1.0, total=4000)
    assert (
        capsys.readouterr().err
        == "[reading the prompt: 3,000 / 4,000 tokens  100.0 t/s  ETA 0:10]\n"
    )


def test_a_prompts_progress_comes_late_and_goes_before_the_answer() -> None:
    with Terminal(
        "run",
        "-p",
        "Hi",
        env={"FAKE_PROMPT_SECONDS": "0.4", "FAKE_PATIENCE": "0.1", "FAKE_WORDS": "2"},
    ) as slow:
        assert slow.exit_code() == 0
    line = slow.screen.rfind("reading the prompt")
    answer = slow.screen.find("let me see")
    assert 0 < line < answer
    assert "\r\x1b[K" in slow.screen[line:answer]
    assert "t/s" in slow.screen[line:answer]
    with Terminal("run", "-p", "Hi", env={"FAKE_WORDS": "2"}) as quick:
        assert quick.exit_code() == 0
    assert "reading the prompt" not in quick.screen


def test_a_pipe_gets_the_answer_only_whatever_the_progress() -> None:
    run = subprocess.run(
        [*FAKE_PROGRAM, "run", "-p", "Hi"],
        env=environment(FAKE_PROMPT_SECONDS="0.2", FAKE_PATIENCE="0.05", FAKE_WORDS="2"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "word0 word1 \n"


# words


def test_words_are_whole_on_a_terminal_and_after_a_resize() -> None:
    with Terminal("run", "-p", "Hi", columns=33, env={"FAKE_WORDS": "40"}) as terminal:
        terminal.wait_for("word9")
        terminal.resize(50)
        assert terminal.exit_code() == 0
    lines = terminal.lines()
    words = " ".join(lines).split()
    assert words[-40:] == [f"word{i}" for i in range(40)]
    widths = [len(line) for line in lines if line.startswith("word")]
    assert widths[0] <= 33
    assert 40 < max(widths) <= 50
