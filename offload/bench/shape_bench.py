"""`bench --shape`: what this machine would do with a model that it does not have."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from offload.bench import machine
from offload.bench.arrange import arrange
from offload.bench.draws import Draws
from offload.bench.layer_bench import BenchDevice, LayerModel
from offload.bench.layout import Layout, choose_layout
from offload.bench.options import ShapeOptions
from offload.bench.pairs import pairs_of_shape
from offload.bench.parallel import Result, note_on_draws, part_bytes, results, sizes
from offload.bench.shapes import shape_named, types_named
from offload.bench.sides import Ours, Samples, Side
from offload.bench.summary import decode_pass, side, summarise, whole_model
from offload.bench.synthetic import SyntheticStore
from offload.bench.token_book import EMBEDDING, RandomTokens, Tokens
from offload.errors import PlanError
from offload.hardware import probe
from offload.read_bandwidth import ReadBandwidth
from offload.readying import compile_kernels
from offload.stats import LoadProgress
from offload.timing import Timing
from offload.topology import OtherWork
from quant.run.pool import Pool

Report = Callable[[LoadProgress], None]
PROMPT = 512  # tokens of the prefill measurement
STEPS = 4  # tokens per turn of a program
LOOK = 0.25  # seconds: are other programs busy?
PAUSE = 0.02  # seconds: lets the other program's threads go to sleep
LEAST_ROUNDS = 3
LEAST_PREFILLS = 2


def bench_shape(options: ShapeOptions, report: Report = lambda progress: None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Raises UnsupportedError for unknown names, PlanError where RAM or threads do not suffice.
    """
    if options.device != "cpu":
        from offload.bench.shape_on_gpu import bench_shape_on_gpu

        return bench_shape_on_gpu(options, report)
    config = shape_named(options.shape)
    types = types_named(options.experts, options.attention, options.shared)
    hardware = probe()
    threads = options.threads or hardware.default_threads()[0]
    if not 1 <= threads <= hardware.cpu.usable:
        raise PlanError(
            f"--threads {threads}: this process may use 1 to {hardware.cpu.usable} logical cores"
        )
    if options.depth + PROMPT > config.context_length:
        raise PlanError(
            f"--depth {options.depth}: {config.name} holds {config.context_length:,} tokens, and "
            f"{PROMPT} of them are the prompt's"
        )
    neighbours = OtherWork()
    facts = machine.describe(hardware, threads)
    time.sleep(LOOK)
    cpus, pinned = hardware.pinning(threads, options.pin, neighbours.share(hardware.cpu.cores))
    facts["threads_pinned"] = pinned
    numbers = sizes(options.parallel)
    if options.compare and len(numbers) > 1:
        types = replace(types, embedding=EMBEDDING)
    layout = choose_layout(
        config,
        types,
        layers=options.layers,
        cache=int(str(facts["cache_bytes"])),
        free=hardware.cpu.ram_free,
        for_peer=options.compare,
        packed=options.layout.layout != "native",
        together=max(numbers),
    )
    if options.compare:
        from offload.bench.llama_compare import with_llama_cpp

        return with_llama_cpp(layout, options, hardware, threads, cpus, facts, report)
    draws = draws_of(layout, options)
    device = BenchDevice(layout.model, slot_rows(options), threads, cpus, draws)
    try:
        store = SyntheticStore(
            layout.specs,
            lambda done, total: report(
                LoadProgress(phase="lay out", done_bytes=done, total_bytes=total)
            ),
        )
        layout, notes = arrange(
            store, layout.model, layout, options.layout, hardware, device.pool, report
        )
        model = LayerModel(layout.model, store, device)
        compile_kernels(model.model, model.model, report)
        notes += [
            "routed experts: chosen so that every token takes others than the ones before it",
        ]
        if len(numbers) > 1:
            notes.append(note_on_draws(layout, draws, numbers))
        ours = Ours(model, options.depth, max(numbers))
        tokens = RandomTokens(layout.model.vocab_size)
        return run(ours, {}, tokens, layout, options, facts, notes)
    finally:
        device.close()


def slot_rows(options: ShapeOptions) -> int:
    """Rows of a KV slot."""
    return max(PROMPT, options.depth + 1)


def draws_of(layout: Layout, options: ShapeOptions) -> Draws:
    """Who chooses experts, of as many as the whole model has."""
    full = layout.full
    return Draws(full.n_routed_experts, layout.experts, full.num_experts_per_tok, options.overlap)


def steps(n: int) -> int:
    """Passes of n sequences in a program's turn."""
    return max(1, min(STEPS, 8 * STEPS // n))


def run(
    ours: Ours,
    others: dict[str, Side],
    tokens: Tokens,
    layout: Layout,
    options: ShapeOptions,
    facts: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """Alternate between the sides for the given time; the finished result."""
    sides: dict[str, Side] = {"ours": ours, **others}
    pool = ours.model.device.pool
    bandwidth = ReadBandwidth(layout.cache_bytes)
    reads, reads_one = Timing(), Timing()
    single = Pool(1)
    numbers = sizes(options.parallel)
    samples = {name: {n: Samples() for n in numbers} for name in sides}
    for side_ in sides.values():  # caches, branch predictors, page tables
        for n in numbers:
            Samples().decode(side_, np.stack([tokens.take(1, n), tokens.take(1, n)]))
    bandwidth.measure(pool)
    watch = machine.Watch(pool.threads)
    began = time.monotonic()
    prompt = RandomTokens(layout.model.vocab_size).take(1, PROMPT)[0]
    prefill_share = 0.2 if options.parallel else 0.4
    for side_ in sides.values():  # memory that the system hands out only now
        side_.prefill(prompt)
    rounds = 0
    while rounds < LEAST_PREFILLS or time.monotonic() - began < prefill_share * options.seconds:
        for name, side_ in sides.items():
            time.sleep(PAUSE)
            samples[name][1].of["prefill"].add(side_.prefill(prompt))
        rounds += 1
    began, rounds = time.monotonic(), 0
    while rounds < LEAST_ROUNDS or time.monotonic() - began < (1 - prefill_share) * options.seconds:
        reads.add(1 / bandwidth.measure(pool))
        reads_one.add(1 / bandwidth.measure(single))
        for n in numbers:
            ids = np.stack([tokens.take(steps(n), n) for _ in range(2)])
            for name, side_ in sides.items():
                time.sleep(PAUSE)
                samples[name][n].decode(side_, ids)
        time.sleep(PAUSE)
        rounds += 1
    single.close()
    facts |= watch.finish()
    notes = [*layout.describe(), *notes]
    per_expert = PROMPT * layout.full.num_experts_per_tok / max(1, ours.spread)
    notes.append(
        f"decode: 1 token after {options.depth}; layer = (token - head) / layers; "
        f"{len(ours.chosen)} different experts were chosen"
    )
    notes.append(
        f"prefill: {PROMPT} tokens over {ours.spread} experts, {per_expert:.0f} per expert"
    )
    sides_results = {name: side(layout, s[1].of) for name, s in samples.items()}
    result = summarise(layout, options.shape, facts, reads, reads_one, sides_results, notes)
    result["shape"]["depth"] = options.depth
    result |= pairs_of_shape(layout, result["ours"], facts, options.depth)
    if options.parallel:
        result["parallel"] = _parallel(layout, samples, ours, options.depth)
    return result


def _parallel(
    layout: Layout, samples: dict[str, dict[int, Samples]], ours: Ours, depth: int
) -> Result:
    """Extrapolated to the whole model, seconds and bytes alike."""
    distinct = {n: float(np.mean(found)) for n, found in ours.distinct.items()}
    n_bytes = {n: whole_model(layout, part_bytes(layout, d)) for n, d in distinct.items()}
    passes = {
        name: {n: decode_pass(layout, s.of) for n, s in by_number.items()}
        for name, by_number in samples.items()
    }
    return results(passes, n_bytes, distinct, depth)
