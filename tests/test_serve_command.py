"""`kimi-offload serve` as a program: its line, its end, its errors, sessions over a restart."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from server_client import HI

from cli.kimi_offload import kimi_offload
from offload import server

PROGRAM = (sys.executable, "-m", "cli.kimi_offload", "serve")


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program and its address; it is killed if it has not ended."""
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        [*PROGRAM, "--port", "0", *options], stdout=pipe, stderr=pipe, text=True
    )
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        found = re.fullmatch(
            r"(\S+) is served at (http://127\.0\.0\.1:\d+): (\d) answers at a time, [\d,]+ tokens "
            r"each\n",
            line,
        )
        assert found, line or program.communicate()[1]
        yield program, found[2]
    finally:
        program.kill()
        program.communicate()


def chat(address: str, tokens: int = 20) -> dict:
    body = {"messages": HI, "max_tokens": tokens}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_ends_by_a_signal_and_conversations_are_there_again(tmp_path: Path) -> None:
    folder = ("--sessions", str(tmp_path / "talks"), "--parallel", "2", "--alias", "kimi")
    with served(*folder) as (program, address):
        first = chat(address)
        assert first["model"] == "kimi"
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
    with served(*folder) as (program, address):
        again = chat(address)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 10
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with served("--drain-seconds", "600") as (program, address):
        body = {"prompt": "In the", "n": 16, "max_tokens": 900, "stream": True, "temperature": 3}
        with httpx.stream(
            "POST", f"{address}/v1/completions", json=body, trust_env=False
        ) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            program.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.3)
            program.send_signal(signal.SIGTERM)
            assert program.wait(5) == 128 + signal.SIGTERM


def error(*options: str) -> tuple[int, str]:
    done = subprocess.run([*PROGRAM, *options], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = error("--port", str(port))
        assert code == 1
        assert f"port {port} of 127.0.0.1 cannot be listened on: address already in use" in text
        assert text.count("\n") == 1
    for options in (["--host", "0.0.0.0"], ["--cors", "*"]):
        done = CliRunner().invoke(kimi_offload, ["serve", *options])
        assert done.exit_code == 2
        assert "--api-key" in done.output
    keys = tmp_path / "keys"
    for data, words in ((b"\xff\xfe", "byte 0 is no UTF-8 text"), (b"\n \n", "no key in it")):
        keys.write_bytes(data)
        done = CliRunner().invoke(kimi_offload, ["serve", "--api-key-file", str(keys)])
        assert done.exit_code == 2
        assert words in done.output
    code, text = error("--port", "0", str(tmp_path / "nothing.gguf"))
    assert code in (1, 2)
    assert "nothing.gguf" in text


def test_a_key_of_the_environment_is_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[server.Options] = []

    def served(path: object, wish: object, options: server.Options, **_: object) -> bool:
        given.append(options)
        return True

    monkeypatch.setattr(server, "serve", served)
    for value in ("three words here", " three words here\n"):
        done = CliRunner().invoke(kimi_offload, ["serve"], env={"KIMI_OFFLOAD_API_KEY": value})
        assert done.exit_code == 0
    assert [options.keys for options in given] == [("three words here",)] * 2
