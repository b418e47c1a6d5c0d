"""`bench MODEL`: prompt and decode tokens per second of a file, at stated lengths and depths."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from offload.bench import machine
from offload.bench.model_parallel import LEAST_ROUNDS, PAUSE, STEPS, run_together
from offload.bench.on_gpu import (
    card_facts,
    check_where,
    found_gpus,
    of_vram,
    split_result,
    with_and_without_cache,
)
from offload.bench.options import ModelOptions
from offload.bench.pairs import pairs_of_model
from offload.bench.parallel import Result, sizes
from offload.bench.programs import OurProgram, Program
from offload.errors import RequestError
from offload.forward import Model
from offload.hardware import probe
from offload.loading import open_model
from offload.read_bandwidth import ReadBandwidth
from offload.stats import LoadProgress
from offload.tensor_census import census
from offload.timing import Timing
from offload.version import __version__
from quant.run.pool import Pool

Report = Callable[[LoadProgress], None]


def bench_model(options: ModelOptions, report: Report = lambda progress: None) -> dict[str, Any]:
    """Measure; the result is ready for JSON. Raises what `offload.load` raises, RequestError.

    A hybrid is measured twice, with its expert cache and without.
    """
    if options.device != "cpu":
        found_gpus(options.device)
    if options.device == "hybrid" and options.cache != "off":
        return with_and_without_cache(options, lambda asked: _measured(asked, report))
    return _measured(options, report)


def _measured(options: ModelOptions, report: Report) -> dict[str, Any]:
    longest = max((*options.prompts, *(d + STEPS for d in options.depths)))
    parts = open_model(options.path, options.wish(longest), report)
    file, config, _tokenizer, plan, model, ahead = parts
    with ExitStack() as opened:
        for part in (file, model, ahead):
            opened.callback(part.close)
        ahead.wait()
        check_where(plan, options.device)
        if longest > config.context_length:
            raise RequestError(
                f"{longest:,} tokens are asked for, {config.name} holds {config.context_length:,}; "
                "give a smaller --depth"
            )
        if longest > plan.kv.context:
            raise RequestError(
                f"{longest:,} tokens are asked for, the plan has room for {plan.kv.context:,}; "
                "give a smaller --depth, or a plan with more (kv.context)"
            )
        facts = machine.describe(probe(), plan.threads)
        numbers = sizes(options.parallel)
        ours = OurProgram(model, max(numbers))
        programs: dict[str, Program] = {"ours": ours}
        notes = ["tokens are random; sampling and text are not counted"]
        notes += [
            n for n in plan.notes if n.startswith(("experts ", "threads: ", "resident", "huge"))
        ]
        if options.compare:
            from offload.bench.llama_compare import LlamaProgram

            peer = LlamaProgram(
                file.paths[0], plan.threads, longest, config, numbers if options.parallel else ()
            )
            opened.callback(peer.close)
            programs["llama_cpp"] = peer
            notes.append(peer.about)
        result = _run(programs, model, options, facts, notes, str(file.paths[0]), plan.layout)
        model.check_files()  # zeros are read where a file has shrunk
        if plan.vram is not None:
            result["gpu"] = card_facts(plan)
            read = result["machine"]["read_gbps"]
            if ours.splits:
                result["hybrid"] = split_result(ours.splits, result["gpu"], read)
            else:
                result["vram_share"] = of_vram(ours.read, result["ours"], result["gpu"])
            return result
        counted = census(file, config)
        return result | pairs_of_model(config, counted, plan, result["ours"], ours)


def _run(
    programs: dict[str, Program],
    model: Model,
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
    seconds = options.seconds / (2 if options.parallel else 1)
    share = seconds / max(1, len(options.prompts) + len(options.depths))
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
    together: Result = {}
    if options.parallel:
        together = run_together(programs, model, options, seconds)
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
    if together:
        result["parallel"] = together
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
