"""An engine without a model, with the public face that the command line uses.

Run as a program it is `kimi-offload` with this engine in place of the real one, so that signals,
pipes and pseudo-terminals can be tried on it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any


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
    finish_reason: str = "stop"


class FakePlan:
    kv = SimpleNamespace(context=2048)

    def __str__(self) -> str:
        return "token_embd.weight: cpu, because there is no other device"


class FakeEngine:
    """Says what `script` holds, as (channel, text) pairs, and remembers what it was asked."""

    def __init__(self, script: list[tuple[str, str]] | None = None, delay: float = 0.0) -> None:
        self.script = script or [("thinking", "Hm."), ("content", "Hello"), ("content", " you")]
        self.delay = delay
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.load_arguments: dict[str, Any] = {}
        self.stats = FakeStats()
        self.plan = FakePlan()
        self.config = SimpleNamespace(name="fake-model")
        self.error: Exception | None = None
        self.is_closed = False
        self.load_seconds = 0.0
        self._is_cancelled = False

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *args: object) -> None:
        self.is_closed = True

    def cancel(self) -> None:
        self._is_cancelled = True

    def generate(self, prompt: str, **sampling: Any) -> Iterator[FakeToken]:
        self.calls.append((prompt, sampling))
        return self._say([pair for pair in self.script if pair[0] == "content"])

    def chat(
        self, messages: list[dict[str, str]], *, thinking: bool | None = None, **sampling: Any
    ) -> Iterator[FakeToken]:
        self.calls.append(([dict(m) for m in messages], {"thinking": thinking, **sampling}))
        wanted = "content" if thinking is False else "thinking content"
        return self._say([pair for pair in self.script if pair[0] in wanted])

    def _say(self, script: list[tuple[str, str]]) -> Iterator[FakeToken]:
        if self.error:
            raise self.error
        self._is_cancelled = False
        for number, (channel, text) in enumerate(script):
            if self.delay:
                time.sleep(self.delay)
            if self._is_cancelled:
                return
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
                progress(FakeProgress("read", done * 10**6, 10**8))
                time.sleep(engine.load_seconds / 5)
            progress(FakeProgress("compile", 1, 4))
        return engine

    return load


def main() -> None:
    """`kimi-offload` with an engine that says 200 words slowly, on a terminal or in a pipe."""
    import offload
    from cli import kimi_offload

    n_words = int(os.environ.get("FAKE_WORDS", "200"))
    words = [("thinking", "let me see"), *(("content", f"word{i} ") for i in range(n_words))]
    engine = FakeEngine(words, delay=0.02)
    engine.load_seconds = float(os.environ.get("FAKE_LOAD_SECONDS", "0"))
    offload.load = loader(engine)  # type: ignore[assignment]
    sys.argv[0] = "kimi-offload"
    kimi_offload.main()


if __name__ == "__main__":
    main()
