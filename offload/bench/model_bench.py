"""`bench MODEL`: prompt and decode tokens per second of a file, at stated lengths and depths."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from offload.bench import machine
from offload.bench.layer_bench import filled_cache
from offload.bench.options import ModelOptions
from offload.engine import CHUNK as PREFILL_TOKENS
from offload.errors import RequestError
from offload.hardware import probe
from offload.kv_cache import KVCache
from offload.loading import open_model
from offload.models.deepseek2 import DeepSeek2
from offload.planner import PlanOptions
from offload.read_bandwidth import ReadBandwidth
from offload.stats import LoadProgress
from offload.timing import Timing, seconds_of
from offload.version import __version__
from quant.run.pool import Pool

Report = Callable[[LoadProgress], None]
STEPS = 8  # decoded tokens per turn
LEAST_ROUNDS = 3
PAUSE = 0.02  # seconds between two programs' turns


class Program(Protocol):
    """A loaded model, ours or a peer's."""

    def prompt(self, ids: np.ndarray) -> float:
        """Seconds for a prompt in an empty context."""

    def decode(self, depth: int, steps: int) -> list[float]:
        """Seconds of each of `steps` single tokens after `depth` others."""


class OurProgram:
    """The engine's model object, without sampling and text."""

    def __init__(self, model: DeepSeek2) -> None:
        self.model = model
        self._rng = np.random.default_rng(4)

    def prompt(self, ids: np.ndarray) -> float:
        """See Program."""
        kv = KVCache(self.model.config, len(ids), "f16")
        began = time.perf_counter()
        for i in range(0, len(ids), PREFILL_TOKENS):
            self.model.forward(ids[i : i + PREFILL_TOKENS], kv)
        return time.perf_counter() - began

    def decode(self, depth: int, steps: int) -> list[float]:
        """See Program; the cache holds random rows."""
        kv = filled_cache(self.model.config, depth, steps)
        ids = self._rng.integers(0, self.model.config.vocab_size, (steps, 1))
        return [seconds_of(partial(self.model.forward, token, kv)) for token in ids]


def bench_model(options: ModelOptions, report: Report = lambda progress: None) -> dict[str, Any]:
    """Measure; the result is ready for JSON. Raises what `offload.load` raises, RequestError."""
    longest = max((*options.prompts, *(d + STEPS for d in options.depths)))
    file, config, _tokenizer, plan, model = open_model(
        options.path,
        PlanOptions(
            threads=options.threads,
            memory=options.memory,
            layout=options.layout,
            pin=options.pin,
        ),
        report,
    )
    try:
        if longest > config.context_length:
            raise RequestError(
                f"{longest:,} tokens are asked for, {config.name} holds {config.context_length:,}; "
                "give a smaller --depth"
            )
        facts = machine.describe(probe(), plan.threads)
        programs: dict[str, Program] = {"ours": OurProgram(model)}
        notes = ["tokens are random; sampling and text are not counted"]
        notes += [
            n for n in plan.notes if n.startswith(("experts ", "threads: ", "resident", "huge"))
        ]
        if options.compare:
            from offload.bench.llama_compare import LlamaProgram

            peer = LlamaProgram(file.paths[0], plan.threads, longest, config)
            programs["llama_cpp"] = peer
            notes.append(peer.about)
        return _run(programs, model, options, facts, notes, str(file.paths[0]), plan.layout)
    finally:
        model.ops.close()
        file.close()


def _run(
    programs: dict[str, Program],
    model: DeepSeek2,
    options: ModelOptions,
    facts: dict[str, Any],
    notes: list[str],
    path: str,
    layout: str,
) -> dict[str, Any]:
    vocabulary = model.config.vocab_size
    ids = np.random.default_rng(3).integers(0, vocabulary, max(options.prompts, default=1))
    works: dict[str, dict[str, Callable[[], list[float]]]] = {}
    for name, program in programs.items():
        works[name] = {f"prompt {n}": partial(_prompt, program, ids[:n]) for n in options.prompts}
        works[name] |= {f"decode {d}": partial(program.decode, d, STEPS) for d in options.depths}
    timings = {name: {work: Timing() for work in works[name]} for name in works}
    bandwidth = ReadBandwidth(int(facts["cache_bytes"]))
    pool, reads = Pool(facts["threads"]), Timing()
    for program in programs.values():
        program.decode(0, 2)
    bandwidth.measure(pool)
    watch = machine.Watch(facts["threads"])
    share = options.seconds / max(1, len(options.prompts) + len(options.depths))
    for work in works["ours"]:
        began, rounds = time.monotonic(), 0
        while rounds < LEAST_ROUNDS or time.monotonic() - began < share:
            for name in programs:
                if len(programs) > 1:
                    time.sleep(PAUSE)
                for value in works[name][work]():
                    timings[name][work].add(value)
            rounds += 1
            if time.monotonic() - began > 2 * share:  # a slow model: one run has to do
                break
        reads.add(1 / bandwidth.measure(pool))
    pool.close()
    facts |= watch.finish()
    facts |= {
        "read_gbps": round(1e-9 / reads.median, 3),
        "read_gbps_best": round(1e-9 / reads.best, 3),
    }
    result: dict[str, Any] = {
        "kind": "model",
        "version": __version__,
        "machine": facts,
        "model": {"path": path, "name": model.config.name, "layers": model.config.num_layers},
        "layout": layout,
        **{name: {work: _figures(t) for work, t in by.items()} for name, by in timings.items()},
        "notes": notes,
        "warnings": facts.pop("warnings"),
    }
    if "llama_cpp" in timings:
        result["ratio"] = {
            work: round(timings["llama_cpp"][work].median / timings["ours"][work].median, 3)
            for work in works["ours"]
        }
    return result


def _prompt(program: Program, ids: np.ndarray) -> list[float]:
    """Seconds per token of one prompt."""
    return [program.prompt(ids) / len(ids)]


def _figures(t: Timing) -> dict[str, float]:
    """Tokens per second from seconds per token."""
    return {
        "tps": round(1 / t.median, 2),
        "tps_best": round(1 / t.best, 2),
        "runs": len(t.samples),
    }
