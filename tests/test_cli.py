"""The command line: flags, exit codes, streams, Ctrl-C; with an engine that has no model."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine, FakeStats, loader
from terminal import FAKE_PROGRAM, Terminal, environment

import offload
from cli import _options, _paths, _render, chat_ui, input_line, kimi_offload, progress
from cli._interrupt import StopOnCtrlC
from cli._values import CountRange
from cli.answering import Settings
from offload.amounts import amount
from offload.errors import RequestError
from offload.sampling_params import SamplingParams
from offload.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(offload, "load", loader(fake))
    return fake


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, arguments, input=stdin)


# help and version


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cli.kimi_offload import kimi_offload\n"
        "try: kimi_offload(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'rich', 'prompt_toolkit', 'llama_cpp', 'jinja2', 'psutil'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "inspect" in run.stdout


def test_help_is_quick() -> None:
    # 0.3 s is the aim on a free machine; the best of three with a margin for a busy one
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "cli.kimi_offload", "--help"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        times.append(time.perf_counter() - began)
    assert min(times) < 1.0


@pytest.mark.parametrize("command", sorted(kimi_offload.COMMANDS))
def test_each_command_has_help(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


def test_version() -> None:
    assert call("--version").output == f"kimi-offload {__version__}\n"


# one answer


def test_prompt_gives_the_answer_alone_on_stdout(engine: FakeEngine) -> None:
    result = call("run", "-p", "Hi")
    assert result.exit_code == 0
    assert result.stdout == "Hello you\n"
    assert engine.calls == [([{"role": "user", "content": "Hi"}], {"thinking": None})]
    assert engine.load_arguments["path"] is None
    assert engine.is_closed


def test_thinking_goes_to_stderr_when_piped(engine: FakeEngine) -> None:
    assert "Hm." in call("run", "-p", "Hi").stderr
    assert "Hm." not in call("run", "-p", "Hi", "--hide-thinking").output
    call("run", "-p", "Hi", "--no-thinking")
    assert engine.calls[-1][1] == {"thinking": False}


def test_prompt_from_standard_input(engine: FakeEngine) -> None:
    assert call("run", stdin="one\ntwo\n").exit_code == 0
    assert engine.calls[0][0] == [{"role": "user", "content": "one\ntwo"}]


def test_raw_passes_the_text_as_it_is(engine: FakeEngine) -> None:
    assert call("run", "--raw", "-p", "Once").stdout == "Hello you\n"
    assert engine.calls == [("Once", {})]


def test_system_text_comes_first(engine: FakeEngine) -> None:
    call("run", "--system", "Be brief.", "-p", "Hi")
    assert engine.calls[0][0][0] == {"role": "system", "content": "Be brief."}


def test_sampling_flags_reach_the_engine(engine: FakeEngine) -> None:
    flags = "--temperature 0.5 --top-k 20 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1"
    flags += " --presence-penalty 1 --frequency-penalty 0.5 --max-tokens 7 --seed 3"
    call("run", "-p", "Hi", *flags.split(), "--stop", "a", "--stop", "b")
    assert engine.calls[0][1] == {
        "thinking": None,
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "max_tokens": 7,
        "stop": ("a", "b"),
        "seed": 3,
    }


@pytest.mark.parametrize("budget", ["0", "9", "-1"])
def test_flags_about_the_reply_reach_the_engine(engine: FakeEngine, budget: str) -> None:
    call("run", "-p", "Hi", "--stop-loops", "--thinking-budget", budget)
    given = {} if budget == "-1" else {"thinking_budget": int(budget)}
    assert engine.calls[0][1] == {"thinking": None, "stop_loops": True, **given}
    call("run", "--raw", "-p", "Hi", "--stop-loops")
    assert engine.calls[1][1] == {"stop_loops": True}
    assert "--raw" in call("run", "--raw", "-p", "Hi", "--thinking-budget", "3").stderr


def test_sampling_flags_are_the_fields_of_sampling_params() -> None:
    in_programs = {"logit_bias"}  # token ids are not for a command line
    names = {field.name for field in fields(SamplingParams)}
    assert names - in_programs == set(_options.SAMPLING_NAMES)
    ranges = {}

    @_options.sampling_options
    def command(**_: object) -> None: ...

    for parameter in click.Command("x", params=command.__click_params__).params:  # type: ignore[attr-defined]
        if isinstance(parameter.type, (click.IntRange, click.FloatRange)):
            ranges[parameter.name] = parameter.type
    texts = {"stop", "samplers", "dry_sequence_breakers"}
    assert set(ranges) == set(_options.SAMPLING_NAMES) - texts
    for name, interval in ranges.items():
        for edge, is_open, outside in (
            (interval.min, interval.min_open, -1),
            (interval.max, False, 1),
        ):
            if edge is None:
                continue
            SamplingParams(**{name: edge + 1e-9 if is_open else edge})
            is_unset = edge + outside == -1 and isinstance(interval, CountRange)
            with nullcontext() if is_unset else pytest.raises(RequestError):
                SamplingParams(**{name: edge + outside})


def test_flags_of_white_space_and_minus_one_reach_the_engine(engine: FakeEngine) -> None:
    flags = "--top-k -1 --max-tokens -1 --seed -1 --penalty-window -1 --dry-window -1"
    flags += " --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --samplers dry,temperature"
    assert call("run", "-p", "Hi", *flags.split(), "--stop", "\n", "--stop", " ").exit_code == 0
    given = engine.calls[0][1]
    assert given["stop"] == ("\n", " ")
    for name in ("top_k", "max_tokens", "seed", "penalty_window", "dry_window"):
        assert given[name] == -1
    given.pop("thinking")
    params = SamplingParams(**given)
    assert (params.dry_multiplier, params.dry_base, params.dry_allowed_length) == (0.8, 2, 3)
    assert params.samplers == ("dry", "temperature")
    call("run", "-p", "Hi", "--dry-sequence-breaker", "\n", "--dry-sequence-breaker", ";")
    assert engine.calls[1][1]["dry_sequence_breakers"] == ("\n", ";")
    call("run", "-p", "Hi", "--dry-sequence-breaker", "none")
    assert engine.calls[2][1]["dry_sequence_breakers"] == ()


def test_load_flags_reach_the_engine(engine: FakeEngine) -> None:
    call(
        *("run", "m.gguf", "-p", "Hi", "--context", "99", "--threads", "3", "--kv-type", "f32"),
        *("--experts-layout", "packed", "--pack-budget", "1.5", "--packed-cache", "kept"),
        *("--memory", "resident", "--no-pin", "--chunk", "64", "--ram", "2GiB"),
        *("--device", "cuda:1", "--vram", "10GiB"),
        *("--expert-cache", "1.5GB", "--expert-policy", "lfu", "--experts-home", "disk"),
    )
    expected = {"path": Path("m.gguf"), "device": "cuda:1", "context": 99, "threads": 3}
    layout = {"experts_layout": "packed", "pack_budget": 1.5, "packed_cache": Path("kept")}
    other = {"kv_type": "f32", "memory": "resident", "pin": False, "chunk": 64}
    tiers = {"expert_cache": 1_500_000_000, "expert_policy": "lfu", "expert_profile": None}
    tiers |= {"experts_home": "disk", "ram": 2 << 30, "vram": 10 << 30}
    assert engine.load_arguments == {**expected, **layout, **other, **tiers}


@pytest.mark.usefixtures("engine")
def test_stats_and_plan_go_to_stderr() -> None:
    result = call("run", "-p", "Hi", "--stats", "--plan")
    assert result.stdout == "Hello you\n"
    assert "because there is no other device" in result.stderr
    for figure in ("24.0 t/s", "15.00 t/s", "0.51 s", "12.3 MB", "0.18 GB/s"):
        assert figure in result.stderr


def test_a_full_context_is_noted(engine: FakeEngine) -> None:
    engine.stats.finish_reason = "length"
    assert "2,048 tokens is full" in call("run", "-p", "Hi").stderr
    assert "full" not in call("run", "-p", "Hi", "--max-tokens", "3").stderr


# errors and exit codes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "0<=x<=10"),
        (["--temperature", "nan"], "0<=x<=10"),
        (["--temperature", "inf"], "0<=x<=10"),
        (["--top-p", "1.5"], "0<x<=1"),
        (["--top-p", "0"], "0<x<=1"),
        (["--top-k", "-2"], "0<=x<=2147483647, or -1"),
        (["--max-tokens", "0"], "1<=x<=2147483647, or -1"),
        (["--seed", str(2**64)], f"0<=x<={2**64 - 1}, or -1"),
        (["--samplers", "top_k,typical"], "unknown sampler 'typical'; known are penalties, dry"),
        (["--samplers", "top_k,top_k"], "'top_k' is named twice"),
        (["--dry-base", "0.5"], "1<=x<=10"),
        (["--dry-sequence-breaker", ""], "the sequence breaker is empty"),
        (["--pack-budget", "1e300"], "0<=x<=1000000000"),
        (["--pack-budget", "inf"], "0<=x<=1000000000"),
        (["--pack-budget", "nan"], "0<=x<=1000000000"),
        (["--packed-cache", ""], "the path of the packed cache is empty"),
        ([""], "the path of the model is empty"),
        (["--presence-penalty", "3"], "-2<=x<=2"),
        (["--context", "0"], "x>=1"),
        (["--threads", "0"], "x>=1"),
        (["--kv-type", "q8"], "'f16', 'q8_0', 'f32'"),
        (["--stop", ""], "the stop string is empty"),
        (["-p", ""], "the prompt is empty"),
        (["-p", " \n"], "the prompt is empty"),
        (["-p", "\udcff"], "not valid UTF-8"),
        (["--system", ""], "the system text is empty"),
        (["--raw", "--system", "x"], "--raw"),
        (["--raw", "--no-thinking"], "--raw"),
        (["--sped"], "--sped"),
    ],
)
def test_a_bad_flag_is_a_usage_error(engine: FakeEngine, flags: list[str], message: str) -> None:
    result = call("run", "-p", "Hi", *flags)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not engine.calls


@pytest.mark.usefixtures("engine")
def test_empty_standard_input_is_an_error() -> None:
    result = call("run", stdin="\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no prompt")


@pytest.mark.usefixtures("engine")
def test_standard_input_that_is_not_text_is_an_error() -> None:
    result = call("run", stdin=b"ab\xff")
    assert result.exit_code == 1
    assert "byte 0xff at 2" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        RequestError("the prompt has 9 tokens,\nbut the context holds 4"),
        OSError(28, "No space left"),
        MemoryError(),
    ],
)
def test_a_users_error_is_one_line_and_code_1(engine: FakeEngine, error: Exception) -> None:
    engine.error = error
    result = call("run", "-p", "Hi")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_bug_writes_a_log_and_code_3(engine: FakeEngine, tmp_path: Path) -> None:
    engine.error = ZeroDivisionError("division by zero")
    result = call("run", "-p", "Hi")
    assert result.exit_code == 3
    assert "Traceback" not in result.output
    (log,) = (tmp_path / "data" / "kimi-offload" / "logs").iterdir()
    assert str(log) in result.stderr
    text = log.read_text()
    assert "ZeroDivisionError" in text
    assert "numpy: " in text
    assert log.stat().st_mode & 0o077 == 0


def test_a_bug_log_without_a_home_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    log = _paths.write_bug_log(ValueError("x"))
    assert "ValueError: x" in log.read_text()
    log.unlink()
    log.parent.rmdir()


def test_a_bug_is_told_where_no_log_can_be_written(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_paths, "write_bug_log", fail)
    engine.error = ZeroDivisionError("division\nby zero")
    result = call("run", "-p", "Hi")
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "ZeroDivisionError: division by zero; its log could not be written" in result.stderr


def test_messages_and_warnings_are_one_harmless_line(engine: FakeEngine) -> None:
    odd = "a\x1b[31mb\nc\x9bd"
    engine.error = RequestError(odd)
    result = call("run", "-p", "Hi")
    assert result.stderr == "error: a␛[31mb c\\x9bd\n"
    with CliRunner().isolation() as (_, err, _):
        logging.getLogger("offload.gguf").warning("%s", odd)
        assert err.getvalue() == "warning: a␛[31mb c\\x9bd\n".encode()


# inspect and doctor


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    """A file of another architecture, with an escape sequence in its name."""
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("\x1b[31mred\x1b[0m")
    writer.add_array("some.numbers", list(range(100)))
    writer.add_array("some.words", ["a", "b"])
    writer.add_float32("some.nan", float("nan"))
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inspect_shows_a_file_that_cannot_run(odd_file: Path) -> None:
    result = call("inspect", str(odd_file), "--tensors")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "␛[31mred" in result.output
    for expected in ("cannot run here:", "'llama'", "(100 items)", "attention", "F16", "32 x 32"):
        assert expected in result.output


def test_inspect_json(odd_file: Path) -> None:
    content = json.loads(call("inspect", str(odd_file), "--json", "--tensors").stdout)
    assert content["runs"] is False
    assert content["metadata"]["some.numbers"] == {"length": 100, "first": [0, 1, 2, 3, 4, 5]}
    assert content["metadata"]["some.words"] == ["a", "b"]
    assert content["metadata"]["some.nan"] == "nan"
    assert {t["name"]: t["type"] for t in content["tensor_list"]} == {
        "token_embd.weight": "F32",
        "blk.0.attn_q.weight": "F16",
    }


@pytest.mark.parametrize("content", [None, b"", b"not a model at all, only text"])
def test_inspect_refuses_what_is_no_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path  # a folder
    if content is not None:
        path = tmp_path / "file.gguf"
        path.write_bytes(content)
    result = call("inspect", str(path))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_doctor_names_the_machine() -> None:
    result = call("doctor")
    assert result.exit_code == 0
    for expected in ("physical", "kernel variant", "threading layer", "llvmlite", "embedded model"):
        assert expected in result.output


# rendering


def test_neutralise_leaves_no_control_character() -> None:
    everything = "".join(map(chr, range(0x3000)))
    clean = _render.neutralise(everything)
    left = {c for c in clean if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E}
    assert left == {"\n", "\t"}
    assert _render.neutralise("\x1b[31mred\x1b]0;t\x07") == "␛[31mred␛]0;t␇"


def test_amounts_and_clock() -> None:
    assert [amount(n) for n in (0, 999, 1000, 245_100_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "245.1 GB",
    ]
    assert [_render.clock(s) for s in (0.2, 312, 3729)] == ["0:00", "5:12", "1:02:09"]


def test_progress_shows_rate_and_time_left() -> None:
    text = progress.progress_text("copy", 10 * 10**9, 40 * 10**9, 10.0)
    assert text == "10.0 GB / 40.0 GB  1.0 GB/s  ETA 0:30"
    assert progress.progress_text("compile", 10, 40, 5.0) == "10 / 40 kernels  ETA 0:15"
    assert progress.progress_text("copy", 0, 0, 0.0) == "0 B / 0 B"


# the chat, without a terminal


def chat(engine: FakeEngine, *lines: str, **settings: Any) -> chat_ui.Chat:
    typed: Iterator[str] = iter(lines)

    def read_line() -> str:
        for line in typed:
            return line
        raise EOFError

    made = chat_ui.Chat(engine, Settings(sampling={}, **settings), read_line)  # type: ignore[arg-type]
    made.loop()
    return made


def test_chat_remembers_the_conversation(engine: FakeEngine) -> None:
    chat(engine, "one", " ", "two")
    assert [len(messages) for messages, _ in engine.calls] == [1, 3]
    assert engine.calls[1][0][1] == {"role": "assistant", "content": "Hello you"}


def test_chat_commands(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/stats", "one", "/stats", "/clear", "/think off", "two", "/system Be brief.", "three"]
    chat(engine, *lines, "/system", "/help", "/nonsense", "/think maybe", "/exit", "never")
    assert [call[1]["thinking"] for call in engine.calls] == [None, False, False]
    assert [len(call[0]) for call in engine.calls] == [1, 1, 2]
    out = capsys.readouterr().out
    for expected in ("No answer yet", "15.00 t/s", "/clear", "/nonsense is not a command"):
        assert expected in out


def test_chat_goes_on_after_an_error(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = RequestError("too long")
    made = chat(engine, "one")
    assert capsys.readouterr().err == "error: too long\n"
    assert made.messages == []


def test_chat_leaves_on_the_second_ctrl_c_in_a_row(engine: FakeEngine) -> None:
    keys = iter(["^C", "one", "^C", "^C", "never"])

    def read_line() -> str:
        key = next(keys)
        if key == "^C":
            raise KeyboardInterrupt
        return key

    settings = Settings(sampling={})
    with pytest.raises(KeyboardInterrupt):
        chat_ui.Chat(engine, settings, read_line).loop()  # type: ignore[arg-type]
    assert len(engine.calls) == 1
    assert list(keys) == ["never"]


def test_raw_chat_has_no_memory(engine: FakeEngine) -> None:
    chat(engine, "one", "two", raw=True)
    assert [call[0] for call in engine.calls] == ["one", "two"]


def test_second_ctrl_c_raises() -> None:
    cancelled = []
    with StopOnCtrlC(lambda: cancelled.append(1)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.was_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert cancelled == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("one\r", "one"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~a\nb\x1b[201~\r", "a\nb"),
        ("gone\x03kept\r", "kept"),
    ],
    ids=["enter", "backslash", "alt-enter", "paste", "ctrl-c-empties"],
)
def test_input_line_keys(keys: str, text: str) -> None:
    assert type_keys(keys) == text


def test_input_line_ends() -> None:
    with pytest.raises(EOFError):
        type_keys("\x04")
    with pytest.raises(KeyboardInterrupt):
        type_keys("\x03")


def type_keys(keys: str) -> str:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        session = input_line.make_session()
        session.app.output = DummyOutput()
        return session.prompt(">>> ")


def test_history_is_kept_private(tmp_path: Path) -> None:
    type_keys("remember me\r")
    history = tmp_path / "data" / "kimi-offload" / "history"
    assert "remember me" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_history_that_fails_does_not_end_the_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prompt_toolkit.history import FileHistory

    def full(self: FileHistory, string: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileHistory, "store_string", full)
    assert type_keys("one\r") == "one"
    history = tmp_path / "data" / "kimi-offload" / "history"
    history.unlink()
    os.mkfifo(history)
    assert type_keys("two\r") == "two"


# real processes: signals, pipes, terminals


def test_ctrl_c_ends_a_piped_answer_with_130() -> None:
    run = subprocess.Popen(
        [*FAKE_PROGRAM, "run", "-p", "Hi"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    first = run.stdout.read(6)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert first == "word0 "
    assert out.endswith("\n")
    assert "word199" not in out
    assert "Traceback" not in err


def test_a_closed_pipe_is_silent() -> None:
    run = subprocess.Popen(
        [*FAKE_PROGRAM, "run", "-p", "Hi", "--hide-thinking"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.read(5)
    run.stdout.close()
    assert run.wait(timeout=20) == 141
    assert run.stderr.read() == b""
    run.stderr.close()


def test_terminal_chat_stops_an_answer_then_leaves_on_ctrl_c() -> None:
    with Terminal("run") as terminal:
        terminal.wait_for(">>>")
        terminal.type("tell me\r")
        terminal.wait_for("\x1b[2mlet me see\x1b[0m")
        terminal.wait_for("word3 ")
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for(">>>")
        terminal.type("\x03")
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.screen


def test_terminal_chat_double_ctrl_c_leaves_at_once() -> None:
    with Terminal("run") as terminal:
        terminal.wait_for(">>>")
        terminal.type("tell me\r")
        terminal.wait_for("word3 ")
        terminal.type("\x03")
        time.sleep(0.1)  # the kernel merges signals that come together
        terminal.type("\x03")
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.screen


def test_terminal_chat_ctrl_d_leaves_with_0() -> None:
    with Terminal("run") as terminal:
        terminal.wait_for(">>>")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_stats_fields_are_those_of_the_engine() -> None:
    for name in vars(FakeStats()):
        assert hasattr(offload.RunStats(), name)


def test_group_knows_no_other_command() -> None:
    context = click.Context(kimi_offload.kimi_offload)
    assert kimi_offload.kimi_offload.get_command(context, "fly") is None
