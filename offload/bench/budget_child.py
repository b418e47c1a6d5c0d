"""One program under a memory budget, in a process of its own.

    python -m offload.bench.budget_child < request.json > result.json

All programs read the same prompt and then the same tokens; what they choose by them is their own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from offload.batch import Batch
from offload.bench.budget_options import Side
from offload.engine import Engine
from offload.errors import OffloadError
from offload.expert_layout import LayoutOptions
from offload.expert_stats import ExpertStats
from offload.loading import open_model
from offload.plan_options import PlanOptions
from offload.tiering import TierOptions
from offload.timing import seconds_of

CONTEXT = 2048  # tokens; then decoding goes on behind the prompt again
FIRST = 8  # decoded tokens
WARM = 32  # decoded tokens of the warm-up at least, if there is time
LEAST = 8  # of the steady state
AGAIN, LATEST = 0.5, 16  # this share of the tokens is one of that many before it
STREAM = 8192  # different tokens in the order, at most
IO = Path("/proc/self/io")
clock = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """ram: the budget in bytes. goal: bytes from the disk after which memory must be full.

    prompt: tokens. seconds: to warm up at most; half as long is measured.
    """

    side: Side
    path: str
    ram: int
    goal: int
    threads: int
    prompt: int
    seconds: float


class Decoder(Protocol):
    """A loaded model with one sequence."""

    about: list[str]
    vocabulary: int
    context: int

    def run(self, ids: np.ndarray, first: int) -> None:
        """Compute tokens at positions first ..; what was there before from there on is gone."""

    def stats(self) -> ExpertStats | None:
        """Of its expert tiers, if it has them."""


class OurDecoder:
    """This program: as it decides by the budget, or with the mapped file alone."""

    def __init__(self, ask: Ask) -> None:
        options = PlanOptions(device="cpu", threads=ask.threads, context=CONTEXT, ram=ask.ram)
        if ask.side == "mmap":
            plain = TierOptions(home="map", cache="off")
            options = replace(options, layout=LayoutOptions(layout="native"), tiers=plain)
        parts = open_model(ask.path, options, lambda progress: None)
        self._engine, self._model = Engine(*parts), parts[4]
        plan = parts[3]
        self.about = list(plan.notes)
        self.vocabulary = self._model.config.vocab_size
        self.context = min(CONTEXT, plan.kv.context)
        self._model.kv.open(0)

    def run(self, ids: np.ndarray, first: int) -> None:
        """See Decoder."""
        self._model.forward(Batch.of(ids, 0, first))

    def stats(self) -> ExpertStats | None:
        """See Decoder."""
        return self._engine.expert_stats


class LlamaDecoder:
    """llama.cpp with its mapped file."""

    def __init__(self, ask: Ask) -> None:
        from offload.bench.llama_cpp import LlamaContext, LlamaModel
        from offload.config import ModelConfig
        from offload.gguf import GGUFFile

        with GGUFFile.open(ask.path) as file:
            config, first = ModelConfig.from_gguf(file), file.paths[0]
        self.vocabulary = config.vocab_size
        self.context = min(CONTEXT, config.context_length)
        model = LlamaModel(first, ask.threads, repack=False)
        self._context = LlamaContext(model, self.context)
        self.about = [model.about]

    def run(self, ids: np.ndarray, first: int) -> None:
        """See Decoder."""
        self._context.truncate(first)
        self._context.run(ids)

    def stats(self) -> ExpertStats | None:
        """See Decoder."""


def stream(vocabulary: int) -> np.ndarray:
    """Tokens of which half occurred just before, as a text's do: (STREAM,) int64."""
    rng = np.random.default_rng(11)
    ids = rng.integers(0, vocabulary, STREAM)
    for i in np.flatnonzero(rng.random(STREAM) < AGAIN).tolist():
        ids[i] = ids[max(0, i - int(rng.integers(1, LATEST + 1)))]
    return ids


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a run stands: seconds, bytes from the disk, tokens, and what its tiers did so far."""

    at: float
    read: int
    tokens: int
    hits: int = 0
    asked: int = 0
    from_home: int = 0
    reading: float = 0.0
    stalled: float = 0.0


class Run:
    """Decodes the stream. began: when loading did."""

    def __init__(self, ask: Ask, decoder: Decoder, began: Mark) -> None:
        self._ask = ask
        self._decoder = decoder
        self._ids = stream(decoder.vocabulary)
        self._prompt = min(ask.prompt, decoder.context // 2)
        self._position = self._prompt
        self._tokens = 0
        self._seconds: list[float] = []  # of every decoded token
        self._began = began

    def mark(self) -> Mark:
        """Now."""
        stats = self._decoder.stats()
        if stats is None:
            return Mark(clock(), read_bytes(), self._tokens)
        layers = stats.layers.values()
        hits = sum(layer.hits for layer in layers)
        return Mark(
            clock(), read_bytes(), self._tokens, hits, hits + sum(x.misses for x in layers),
            stats.bytes.get(stats.home, 0), stats.read_seconds, stats.stalled,
        )  # fmt: skip

    def whole(self) -> dict[str, Any]:
        """Prompt, first tokens, warm-up, steady state."""
        loaded = self.mark()
        self._decoder.run(self._ids[: self._prompt], 0)
        read = self.mark()
        self._decode(lambda: self._tokens < FIRST)
        first = self.mark()
        end = read.at + self._ask.seconds
        goal = self._ask.goal + self._began.read
        self._decode(lambda: clock() < end and (self._tokens < WARM or read_bytes() < goal))
        warm = self.mark()
        half = self._ask.seconds / 2
        self._decode(
            lambda: (
                clock() < warm.at + half
                or (self._tokens < warm.tokens + LEAST and clock() < warm.at + 4 * half)
            )
        )
        steady = self.mark()
        figures: dict[str, Any] = {
            "load_seconds": round(loaded.at - self._began.at, 2),
            "load_bytes": loaded.read - self._began.read,
            "prompt_tps": round(self._prompt / (read.at - loaded.at), 3),
            "prompt_bytes": read.read - loaded.read,
            "first_tps": _rate(read, first),
            "first_bytes_per_token": _per_token(read, first),
            "warmup_tokens": warm.tokens,
            "warmup_seconds": round(warm.at - read.at, 1),
            "is_full": warm.read >= goal,
            "steady_tps": _rate(warm, steady),
            "steady_tps_median": round(1 / statistics.median(self._seconds[warm.tokens :]), 3),
            "steady_tokens": steady.tokens - warm.tokens,
            "steady_seconds": round(steady.at - warm.at, 1),
            "bytes_per_token": _per_token(warm, steady),
            "disk_gbps": round((steady.read - warm.read) / (steady.at - warm.at) * 1e-9, 3),
            "about": self._decoder.about,
        }
        return figures | _tiers(warm, steady, self._decoder.stats())

    def _decode(self, goes_on: Callable[[], bool]) -> None:
        """One token at least."""
        while True:
            at = (self._prompt + self._tokens) % len(self._ids)
            token = self._ids[at : at + 1]
            self._seconds.append(seconds_of(partial(self._decoder.run, token, self._position)))
            self._tokens += 1
            self._position += 1
            if self._position == self._decoder.context:
                self._position = self._prompt
            if not goes_on():
                return


def _rate(a: Mark, b: Mark) -> float:
    return round((b.tokens - a.tokens) / (b.at - a.at), 3)


def _per_token(a: Mark, b: Mark) -> int:
    return round((b.read - a.read) / (b.tokens - a.tokens))


def _tiers(a: Mark, b: Mark, stats: ExpertStats | None) -> dict[str, Any]:
    """What the expert tiers did between two marks; empty without slots."""
    if stats is None or not stats.slots:
        return {}
    reading = b.reading - a.reading
    return {
        "home": stats.home,
        "policy": stats.policy,
        "slots": stats.slots,
        "slot_bytes": stats.slot_bytes,
        "decision": stats.decision,
        "hit_rate": round((b.hits - a.hits) / max(1, b.asked - a.asked), 4),
        "arrival_gbps": round((b.from_home - a.from_home) / reading * 1e-9, 3) if reading else None,
        "stalled_share": round((b.stalled - a.stalled) / (b.at - a.at), 4),
    }


def read_bytes() -> int:
    """Bytes that this process has had read from disks so far."""
    for line in IO.read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise OffloadError(f"{IO} does not tell how much is read from disks")


def main(request: str) -> None:
    """Do what a request asks for and write the result, or {"error": why}, to stdout."""
    try:
        ask = Ask(**json.loads(request))
        began = Mark(clock(), read_bytes(), 0)
        decoder = LlamaDecoder(ask) if ask.side == "llama_cpp" else OurDecoder(ask)
        result = Run(ask, decoder, began).whole()
    except OffloadError as exc:
        result = {"error": str(exc)}
    sys.stdout.write(json.dumps(result) + "\n")


def as_json(ask: Ask) -> str:
    """A request, in one line."""
    return json.dumps(asdict(ask))


if __name__ == "__main__":
    main(sys.stdin.readline())
