"""What HTTP costs: tokens per second through `kimi-offload serve`, beside the engine's own.

    python -m offload.bench.serve_bench [MODEL] [--clients 1,4] [--tokens 1500] [--turns 5]
                                        [--compare llama.cpp] [--pace 0.1] [--json FILE]

In turns, each program in a process of its own, loaded once and idle while others run: the engine by
itself, the server with as many streaming clients, and with --compare llama-cpp-python's own server
on the same file (needs the packages of `llama-cpp-python[server]`). Clients are one process more;
it takes bytes and looks into them when the last has come. Every stream has a prompt of its own; a
rate is all tokens but each first one, over the time from the first to the last text of all. --pace
lets every pass take so many seconds, as a large model's. The first byte of headers is timed with
the server idle, while another stream runs, and (by a server with the context for it) while a prompt
of 15,000 tokens is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offload.bench.machine import describe
from offload.bench.serve_client import Stream, run_streams
from offload.bench.serve_headers import (
    GOAL_MS,
    LONG_PROMPT,
    first_bytes,
    first_bytes_while_reading,
)
from offload.bench.step_bench import say
from offload.data import embedded_model
from offload.errors import OffloadError
from offload.hardware import probe

START_SECONDS = 180.0
PROMPTS = (
    "In the beginning", "And it came to pass", "The LORD said unto", "Now these are the",
    "And the king", "Then answered", "Blessed is", "Hear the word of",
)  # fmt: skip
ENGINE = "offload.bench.serve_engine"
SLOWED = (
    "import sys; from offload.bench.serve_engine import slow; slow(float(sys.argv.pop(1)));"
    " from cli.kimi_offload import main; main()"
)


def prompts(count: int, turn: int) -> list[str]:
    """So many, different from each other and from other turns' (nothing is found in a cache)."""
    return [f"{turn}.{i} {PROMPTS[i % len(PROMPTS)]}" for i in range(count)]


class Server:
    """A program that listens; stopped at the end."""

    def __init__(self, name: str, command: list[str], port: int, health: str) -> None:
        self.name, self.port = name, port
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=5).close()
                break
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                self._process.kill()
                assert self._process.stderr is not None
                said = self._process.stderr.read().decode(errors="replace").strip()[-500:]
                raise OffloadError(f"{name} does not answer: {said}")
            time.sleep(0.1)
        threading.Thread(target=self._drop, daemon=True).start()

    def _drop(self) -> None:
        assert self._process.stderr is not None
        while self._process.stderr.read1():  # type: ignore[attr-defined]
            pass

    def streams(self, texts: list[str], tokens: int) -> float:
        """Tokens per second of all of them together."""
        bodies = [
            {"model": "x", "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True,
             "stream_options": {"include_usage": True}}
            for text in texts
        ]  # fmt: skip
        return rate(run_streams(self.port, "/v1/completions", bodies))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()


class EngineAlone:
    """The engine in a process of its own, asked by lines of JSON."""

    name = "engine"

    def __init__(self, model: Path, pace: float, parallel: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", ENGINE, str(model), str(pace), str(parallel)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def streams(self, texts: list[str], tokens: int) -> float:
        """Tokens per second of all of them together."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": texts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["tps"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OffloadError("the engine's process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def rate(streams: list[Stream]) -> float:
    """Tokens per second; the first of each stream belongs to its prompt."""
    seconds = max(s.last for s in streams) - min(s.first for s in streams)
    return sum(s.tokens - 1 for s in streams) / seconds


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def our_server(model: Path, pace: float, parallel: int, *more: str) -> Server:
    """`kimi-offload serve`."""
    port = free_port()
    options = ["serve", str(model), "--port", str(port), "--parallel", str(parallel)]
    options += more
    return Server("serve", [sys.executable, "-c", SLOWED, str(pace), *options], port, "/health")


def llama_server(model: Path, threads: int) -> Server:
    """llama-cpp-python's own."""
    port = free_port()
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port),
        "--n_threads", str(threads), "--n_ctx", "2048", "--chat_format", "chatml",
        "--interrupt_requests", "false",
    ]  # fmt: skip
    return Server("llama-cpp-python", command, port, "/v1/models")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The result, for JSON."""
    model = options.model or embedded_model()
    counts = [int(n) for n in options.clients.split(",")]
    facts = describe(probe(), os.cpu_count() or 1)
    result: dict[str, Any] = {"kind": "serve", "machine": facts, "pace": options.pace, "tps": {}}
    with contextlib.ExitStack() as opened:
        ours = our_server(model, options.pace, max(counts))
        opened.callback(ours.close)
        programs: list[Any] = [EngineAlone(model, options.pace, max(counts)), ours]
        opened.callback(programs[0].close)
        if options.compare:
            programs.append(llama_server(model, probe().cpu.cores))
            opened.callback(programs[-1].close)
        for count in counts:
            found: dict[str, list[float]] = {program.name: [] for program in programs}
            for turn in range(-1, options.turns):
                for program in programs:
                    tps = program.streams(prompts(count, turn), options.tokens)
                    if turn >= 0:  # the one before warms up
                        found[program.name].append(tps)
            result["tps"][str(count)] = {
                name: {"median": statistics.median(all_), "best": max(all_)}
                for name, all_ in found.items()
            }
        busy = {"prompt": prompts(1, 99)[0], "max_tokens": options.tokens, "stream": True}
        result["first_byte_ms"] = dict(first_bytes(ours.port, busy))
    context = LONG_PROMPT + 1000
    with contextlib.closing(our_server(model, options.pace, 2, f"--context={context}")) as reader:
        condition, figures = first_bytes_while_reading(reader.port)
        result["first_byte_ms"][condition] = figures
    return result


def lines(result: dict[str, Any]) -> Iterator[str]:
    """For people."""
    for count, programs in result["tps"].items():
        own = programs["engine"]["median"]
        for name, figures in programs.items():
            ratio = f", {figures['median'] / own:.3f} of the engine" if name != "engine" else ""
            yield f"{count} streams, {name}: {figures['median']:,.1f} tokens/s{ratio}"
        if "llama-cpp-python" in programs:
            peer = programs["llama-cpp-python"]["median"]
            yield f"{count} streams: {programs['serve']['median'] / peer:.2f} times its server"
    for condition, ms in result["first_byte_ms"].items():
        yield (
            f"first byte of headers, server {condition}: {ms['median']:.1f} ms, 90 % within "
            f"{ms['p90']:.1f} (goal: less than {GOAL_MS:g})"
        )


def main() -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compare", choices=["llama.cpp"])
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options)
    for line in lines(result):
        say(line)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
