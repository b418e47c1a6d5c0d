"""An engine without a model, with the public face that the command line uses.

Run as a program it is `kimi-offload` with this engine in place of the real one, so that signals,
pipes and pseudo-terminals can be tried on it. Environment variables make it slow or odd (`main`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from offload.errors import RequestError
from offload.expert_stats import ExpertStats
from offload.plan import ExpertSlots


@dataclass
class FakeProgress:
    phase: str
    done_bytes: int
    total_bytes: int


@dataclass
class FakeToken:
    id: int
    text: str
    channel: str = "content"


@dataclass
class FakeRepetition:
    n_tokens: int
    times: int
    channel: str = "content"


@dataclass
class FakeStats:
    prompt_tokens: int = 12
    prompt_seconds: float = 0.5
    decode_tokens: int = 30
    decode_seconds: float = 2.0
    time_to_first_token: float = 0.51
    bytes_read_per_token: int = 12_300_000
    prompt_tps: float = 24.0
    decode_tps: float = 15.0
    gbps: float = 0.18
    reused_tokens: int = 0
    swapped_bytes: int = 0
    seed: int = 77
    finish_reason: str | None = "stop"
    repetition: FakeRepetition | None = None


@dataclass
class FakePlan:
    kv: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(context=2048))
    cache: ExpertSlots = ExpertSlots(why="all experts are in RAM")

    def __str__(self) -> str:
        return "token_embd.weight: cpu, because there is no other device"


class FakeEngine:
    """Says what `script` holds, as (channel, text) pairs, and remembers what it was asked.

    A prompt has one token a word, and two for each message.
    """

    def __init__(self, script: list[tuple[str, str]] | None = None, delay: float = 0.0) -> None:
        self.script = script or [("reasoning", "Hm."), ("content", "Hello"), ("content", " you")]
        self.delay = delay
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.load_arguments: dict[str, Any] = {}
        self.stats = FakeStats()
        self.plan = FakePlan()
        self.expert_stats = ExpertStats()
        self.config = SimpleNamespace(name="fake-model")
        self.format = SimpleNamespace(thinking_mode="switch", name="fake")
        self.error: Exception | None = None
        self.repeats_after: int | None = None  # pieces
        self.is_closed = False
        self.load_seconds = 0.0
        self.prompt_seconds = 0.0
        self._is_cancelled = False
        self._on_routing: Callable[[int, np.ndarray], None] | None = None

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *args: object) -> None:
        self.is_closed = True

    def expected_speed(self) -> str:
        return "expected speed: fake"

    def check_prediction(self) -> list[str]:
        return ["predicted 15.10 t/s, measured 15.00"]

    def cancel(self) -> None:
        self._is_cancelled = True

    def trace_routing(self, callback: Callable[[int, np.ndarray], None] | None) -> None:
        self._on_routing = callback

    def prompt_tokens(self, messages: list[dict[str, str]], *, thinking: bool | None = None) -> int:
        if not messages:
            raise RequestError("there are no messages; give at least one from the user.")
        return sum(2 + len(message["content"].split()) for message in messages)

    def generate(
        self,
        prompt: str,
        *,
        progress: Callable[[FakeProgress], None] | None = None,
        **sampling: Any,
    ) -> Iterator[FakeToken]:
        self.calls.append((prompt, sampling))
        return self._say([pair for pair in self.script if pair[0] == "content"], progress, 12)

    def chat(
        self,
        messages: list[dict[str, str]],
        *,
        thinking: bool | None = None,
        progress: Callable[[FakeProgress], None] | None = None,
        **sampling: Any,
    ) -> Iterator[FakeToken]:
        self.calls.append(([dict(m) for m in messages], {"thinking": thinking, **sampling}))
        wanted = "content" if thinking is False else "reasoning content"
        script = [pair for pair in self.script if pair[0] in wanted]
        return self._say(script, progress, self.prompt_tokens(messages))

    def _say(
        self,
        script: list[tuple[str, str]],
        progress: Callable[[FakeProgress], None] | None,
        n_prompt: int,
    ) -> Iterator[FakeToken]:
        if self.error:
            raise self.error
        self._is_cancelled = False
        self.stats.repetition = None
        if self.script == [("content", "echo")]:
            prompt = self.calls[-1][0]
            script = [("content", prompt if isinstance(prompt, str) else prompt[-1]["content"])]
        return self._run(script, progress, n_prompt)

    def _run(
        self,
        script: list[tuple[str, str]],
        progress: Callable[[FakeProgress], None] | None,
        n_prompt: int,
    ) -> Iterator[FakeToken]:
        for step in range(21):
            if progress is not None:
                progress(FakeProgress("prompt", n_prompt * step // 20, n_prompt))
            time.sleep(self.prompt_seconds / 20)
        for number, (channel, text) in enumerate(script):
            if self.delay:
                time.sleep(self.delay)
            if self._is_cancelled:
                self.stats.finish_reason = "cancelled"
                return
            if self._on_routing is not None:
                self._on_routing(1, np.array([[number, number + 1]]))
            if number == self.repeats_after:
                self.stats.repetition = FakeRepetition(12, 6, channel)
            yield FakeToken(number, text, channel)


def loader(engine: FakeEngine) -> Callable[..., FakeEngine]:
    """What takes the place of `offload.load`."""

    def load(
        path: Path | None = None,
        *,
        progress: Callable[[FakeProgress], None] | None = None,
        **arguments: Any,
    ) -> FakeEngine:
        engine.load_arguments = {"path": path, **arguments}
        if progress is not None:
            for done in range(0, 101, 25):
                progress(FakeProgress("copy", done * 10**6, 10**8))
                time.sleep(engine.load_seconds / 5)
            progress(FakeProgress("compile", 1, 4))
        return engine

    return load


def main() -> None:
    """`kimi-offload` with an engine that says 200 words slowly, on a terminal or in a pipe.

    FAKE_WORDS: how many words, or "echo", or what it says as it stands. FAKE_LOAD_SECONDS,
    FAKE_PROMPT_SECONDS: how long loading and reading the prompt take. FAKE_CONTEXT: tokens.
    FAKE_REPEATS: the word at which it goes in circles. FAKE_PATIENCE: seconds until notices come.
    FAKE_GUARD: native crashes are caught as by the real one, which takes longer to start.
    """
    import offload
    from cli import cmd_run, kimi_offload, progress, prompt_input

    if "FAKE_GUARD" not in os.environ:
        cmd_run.guard_crashes = lambda: None

    said = os.environ.get("FAKE_WORDS", "200")
    words = [("reasoning", "let me see")]
    if said.isdigit():
        words += [("content", f"word{i} ") for i in range(int(said))]
    else:
        words = [("content", said)]
    engine = FakeEngine(words, delay=0.02)
    engine.load_seconds = float(os.environ.get("FAKE_LOAD_SECONDS", "0"))
    engine.prompt_seconds = float(os.environ.get("FAKE_PROMPT_SECONDS", "0"))
    engine.plan.kv.context = int(os.environ.get("FAKE_CONTEXT", "2048"))
    if "FAKE_REPEATS" in os.environ:
        engine.repeats_after = int(os.environ["FAKE_REPEATS"]) + 1
    offload.load = loader(engine)  # type: ignore[assignment]
    if "FAKE_PATIENCE" in os.environ:
        prompt_input.WAIT_NOTICE = float(os.environ["FAKE_PATIENCE"])
        progress.PROMPT_SHOWN_AFTER = prompt_input.WAIT_NOTICE
    sys.argv[0] = "kimi-offload"
    kimi_offload.main()


if __name__ == "__main__":
    main()
