"""`bench --shape`: what this machine would do with a model that it does not have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from offload.bench import machine
from offload.bench.arrange import arrange
from offload.bench.layer_bench import PARTS, BenchOps, LayerModel, filled_cache
from offload.bench.layout import Layout, choose_layout
from offload.bench.options import ShapeOptions
from offload.bench.shapes import shape_named, types_named
from offload.bench.summary import side, summarise
from offload.bench.synthetic import SyntheticStore
from offload.errors import PlanError
from offload.hardware import probe
from offload.kv_cache import KVCache
from offload.loading import compile_kernels
from offload.read_bandwidth import ReadBandwidth
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


class Side(Protocol):
    """A program under test, with its layers ready."""

    def parts(self, token: int) -> dict[str, list[float]]:
        """One decoded token: seconds by part, a figure per layer."""

    def whole(self, token: int) -> tuple[float, float]:
        """One decoded token: (seconds per layer, seconds of the head)."""

    def prefill(self, ids: np.ndarray) -> float:
        """Seconds per layer of a prompt from an empty cache."""


class Samples:
    """All timings of one side."""

    def __init__(self) -> None:
        self.of = {name: Timing() for name in (*PARTS, "layer", "head", "prefill")}

    def decode(self, side: Side, token: int) -> None:
        """STEPS tokens part by part, STEPS tokens whole."""
        for step in range(STEPS):
            for part, seconds in side.parts(token + step).items():
                for value in seconds:
                    self.of[part].add(value)
        for step in range(STEPS):
            layer, head = side.whole(token + STEPS + step)
            self.of["layer"].add(layer)
            self.of["head"].add(head)


class Ours:
    """This program, through the engine's own model class."""

    def __init__(self, model: LayerModel, depth: int) -> None:
        self.model = model
        self._kv = filled_cache(model.config, depth, 1)
        self._empty = KVCache(model.config, PROMPT, "f16")

    def parts(self, token: int) -> dict[str, list[float]]:
        """See Side."""
        return self.model.parts(np.array([token]), self._kv)

    def whole(self, token: int) -> tuple[float, float]:
        """See Side."""
        return self.model.whole(np.array([token]), self._kv)

    def prefill(self, ids: np.ndarray) -> float:
        """See Side; one layer stands for all."""
        return self.model.first_layer(ids, self._empty)


def bench_shape(options: ShapeOptions, report: Report = lambda progress: None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Raises UnsupportedError for unknown names, PlanError where RAM or threads do not suffice.
    """
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
    layout = choose_layout(
        config,
        types,
        layers=options.layers,
        cache=int(str(facts["cache_bytes"])),
        free=hardware.cpu.ram_free,
        for_peer=options.compare,
        packed=options.layout.layout != "native",
    )
    if options.compare:
        from offload.bench.llama_compare import with_llama_cpp

        return with_llama_cpp(
            layout, options, hardware, BenchOps(threads, None, cpus), facts, report
        )
    ops = BenchOps(threads, layout.experts, cpus)
    try:
        store = SyntheticStore(
            layout.specs,
            lambda done, total: report(
                LoadProgress(phase="lay out", done_bytes=done, total_bytes=total)
            ),
        )
        layout, notes = arrange(
            store, layout.model, layout, options.layout, hardware, ops.pool, report
        )
        model = LayerModel(layout.model, store, ops)
        compile_kernels(model, options.depth + 1, "f16", report)
        notes += [
            "routed experts: chosen so that every token takes others than the ones before it",
        ]
        sides: dict[str, Side] = {"ours": Ours(model, options.depth)}
        return run(sides, layout, options, facts, ops, notes)
    finally:
        ops.close()


def run(
    sides: dict[str, Side],
    layout: Layout,
    options: ShapeOptions,
    facts: dict[str, Any],
    ops: BenchOps,
    notes: list[str],
) -> dict[str, Any]:
    """Alternate between the sides for the given time; the finished result."""
    bandwidth = ReadBandwidth(layout.cache_bytes)
    reads, reads_one = Timing(), Timing()
    single = Pool(1)
    samples = {name: Samples() for name in sides}
    for side_ in sides.values():  # caches, branch predictors, page tables
        side_.parts(0)
        side_.whole(1)
    bandwidth.measure(ops.pool)
    watch = machine.Watch(ops.pool.threads)
    began = time.monotonic()
    prompt = np.random.default_rng(3).integers(0, layout.model.vocab_size, PROMPT)
    for side_ in sides.values():  # memory that the system hands out only now
        side_.prefill(prompt)
    rounds = 0
    while rounds < LEAST_PREFILLS or time.monotonic() - began < 0.4 * options.seconds:
        for name, side_ in sides.items():
            time.sleep(PAUSE)
            samples[name].of["prefill"].add(side_.prefill(prompt))
        rounds += 1
    began, rounds = time.monotonic(), 0
    while rounds < LEAST_ROUNDS or time.monotonic() - began < 0.6 * options.seconds:
        reads.add(1 / bandwidth.measure(ops.pool))
        reads_one.add(1 / bandwidth.measure(single))
        for name, side_ in sides.items():
            time.sleep(PAUSE)
            samples[name].decode(side_, (2 * STEPS * rounds) % (layout.model.vocab_size - 8))
        time.sleep(PAUSE)
        rounds += 1
    single.close()
    facts |= watch.finish()
    notes = [*layout.describe(), *notes]
    per_expert = PROMPT * layout.full.num_experts_per_tok / max(1, ops.spread)
    notes.append(
        f"decode: 1 token after {options.depth}; layer = (token - head) / layers; "
        f"{len(ops.chosen)} different experts were chosen"
    )
    notes.append(f"prefill: {PROMPT} tokens over {ops.spread} experts, {per_expert:.0f} per expert")
    results = {name: side(layout, s.of) for name, s in samples.items()}
    result = summarise(layout, options.shape, facts, reads, reads_one, results, notes)
    result["shape"]["depth"] = options.depth
    return result
