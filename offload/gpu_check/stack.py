"""A few layers of Kimi K2.5's shape on GPU and CPU together, held to what is predicted for them.

VRAM is that of a card of 24 GiB: each layer has as many slots for experts as it would have of the
whole model there. Weights are random, so that routing has no habits: the worst case of a cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from offload.batch import Batch
from offload.bench.disk_model import disk_model, folder_in_memory, written
from offload.bench.programs import OurProgram
from offload.bench.shapes import KIMI_K25, types_named
from offload.bench.split_times import SplitFigures, hybrid_of
from offload.forecast.boxes import Box
from offload.forecast.draws import draw_routings
from offload.forecast.gpus import Gpu as Card
from offload.forecast.model_facts import facts_of_shape
from offload.forecast.one_card import one_card, sizes_of
from offload.forecast.planned import facts_of_census, layout_of_plan
from offload.forecast.seconds import EXPECTED, timeline_costs
from offload.forecast.timeline import simulate
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.gpu.probe import GpuFacts
from offload.gpu_check.bench import Bench
from offload.gpu_check.models import Source, loaded, machine
from offload.gpu_check.rates import copy_rate, random_bytes
from offload.gpu_check.report import Row, at_least, at_most, fact
from offload.gpu_share import Budget
from offload.plan import Plan
from offload.plan_options import DEFAULT_CONTEXT, PlanOptions
from offload.prompt_route import ExpertCosts, PromptRoute, Way
from offload.rate_profiles import shipped
from offload.read_bandwidth import ReadBandwidth
from offload.tiering import TierOptions
from quant.compiler import isa
from quant.run.pool import Pool

Array = np.ndarray
TYPES: Final = ("TQ1_0", "Q4_K", "Q4_K")
LAYERS: Final = 2
VRAM: Final = 24 << 30
OFF: Final = 0.2  # of the prediction
BEYOND: Final = 0.1  # of the CPU's part, above the longer side
LAUNCHING: Final = 0.03  # of a token
OVER_CPU: Final = 1.5
OF_LINK: Final = 0.6
NEVER_SLOWER: Final = 0.97  # of what no cache gives: what measurements differ by
OF_COPY: Final = 0.8  # of a copy's rate, that kernels reach
CACHE: Final = 512 << 20  # bytes that no last-level cache holds


def stack(bench: Bench) -> Iterator[Row]:
    """Decoding without a cache against its timeline and the CPU, then with one."""
    with _source(bench) as source:
        layers = source.config.num_moe_layers
        memory, link = _memory_rate(), None
        with loaded(bench, source, _options(bench, device="cpu")) as (model, _):
            cpu = float(np.median(_decoded(bench, model)[0])) / layers
        yield fact("CPU alone, a layer", 1e6 * cpu, "us")
        with loaded(bench, source, _options(bench, cache="off")) as (model, plan):
            seconds, split = _decoded(bench, model)
            cold = float(np.median(seconds)) / layers
            link = _link_rate(model)
            card = _card(bench, link)
            yield from _sides(split, layers)
            yield at_least("speed of both over the CPU's", cpu / cold, "", OVER_CPU)
            expected = _predicted(bench, source, plan, card, memory) / layers
            yield fact("a layer, predicted", 1e6 * expected, "us")
            yield fact("a layer, measured", 1e6 * cold, "us")
            yield at_most("of the prediction, off", abs(cold / expected - 1), "", OFF)
        cache = _slots(bench, source)
        with loaded(bench, source, _options(bench, cache=cache)) as (model, _):
            seconds, split = _decoded(bench, model)
            warm = float(np.median(seconds)) / layers
            yield fact("with a cache: hits", 100 * split.hits, "%")
            yield fact("with a cache: copied", split.copied / split.total / 1e9, "GB/s")
            yield at_least("speed with a cache over without", cold / warm, "", NEVER_SLOWER)


def streaming(bench: Bench) -> Iterator[Row]:
    """A prompt whose experts pass through the GPU, held to what the link brings in the same run."""
    with _source(bench) as source, loaded(bench, source, _options(bench)) as (model, plan):
        both = hybrid_of(model)
        if both is None or both.stream is None:
            yield fact("prompts are streamed", "no: " + "; ".join(plan.notes[-3:]))
            return
        link = both.stream.link_rate()
        yield fact("link, experts alone", link / 1e9, "GB/s")
        count = min(bench.setup.stack_prompt, plan.chunk)
        ids = np.random.default_rng(5).integers(0, source.config.vocab_size, count)
        ways: tuple[Way, ...] = ("cpu", "stream")
        for way in ways:
            both.route = Only(way)
            seconds = min(_prompt(model, ids) for _ in range(2))
            yield fact(f"prompt of {count}, {way}", count / seconds, "tokens/s")
        limit = source.tensors.block_bytes["routed"] / link
        yield at_least("streamed, of the link's limit", limit / seconds, "", OF_LINK)


class Only(PromptRoute):
    """Always the same way."""

    def __init__(self, way: Way) -> None:
        super().__init__(ExpertCosts(read=1.0, row=1.0, link=1.0), 2, 1, 1)
        self._way = way

    def choose(self, rows: int) -> Way:
        """Whatever was measured."""
        del rows
        return self._way


def _prompt(model: Model, ids: Array) -> float:
    """Seconds of a prompt in an empty slot."""
    model.kv.open(0)
    began = time.perf_counter()
    model.forward(Batch.of(ids))
    seconds = time.perf_counter() - began
    model.kv.close(0)
    return seconds


@contextmanager
def _source(bench: Bench) -> Iterator[Source]:
    """Of the setup, or written now, into memory where that can be."""
    if bench.setup.stack is not None:
        with GGUFFile.open(bench.setup.stack) as file:
            yield Source.of(file)
        return
    wanted = disk_model(KIMI_K25.name, *TYPES, LAYERS)
    with tempfile.TemporaryDirectory(dir=folder_in_memory(wanted.n_bytes)) as there:
        path = Path(there) / "stack.gguf"
        written(path, wanted, lambda progress: None)
        with GGUFFile.open(path) as file:
            yield Source.of(file)


def _options(bench: Bench, *, device: str = "hybrid", cache: int | str = "off") -> PlanOptions:
    context = bench.setup.stack_prompt + bench.setup.stack_depth
    return PlanOptions(device=device, context=context, vram=VRAM, tiers=TierOptions(cache=cache))


def _decoded(bench: Bench, model: Model) -> tuple[list[float], SplitFigures]:
    """Seconds of single tokens, the first ones left out, and what both sides did."""
    depth, steps = bench.setup.stack_depth, bench.setup.stack_steps
    program = OurProgram(model, 1)
    program.decode(depth, steps)
    seconds = program.decode(depth, steps)
    nothing = SplitFigures(**dict.fromkeys(SplitFigures.__dataclass_fields__, 0.0))
    return seconds, program.splits.get(depth, [nothing])[-1]


def _sides(split: SplitFigures, layers: int) -> Iterator[Row]:
    for name in ("cpu", "gpu", "waited"):
        yield fact(f"both, {name}, a layer", 1e6 * getattr(split, name) / layers, "us")
    yield fact("hidden of the shorter side", 100 * split.overlap, "%")
    yield at_most("beyond the longer side, of the CPU's part", split.over, "", BEYOND)
    yield at_most("launching, of a token", split.launching_share, "", LAUNCHING)


def _memory_rate() -> float:
    """Bytes/s that all threads read."""
    pool = Pool(machine().default_threads()[0])
    try:
        reads = ReadBandwidth(CACHE)
        return max(reads.measure(pool) for _ in range(3))
    finally:
        pool.close()


def _link_rate(model: Model) -> float | None:
    both = hybrid_of(model)
    if both is None or both.stream is None:
        return None
    return both.stream.link_rate()


def _card(bench: Bench, link: float | None) -> Card:
    """Its memory is what a copy there reads and writes, so that predictions' share is of that."""
    with bench.scope():
        slab = random_bytes(bench, bench.setup.slab_bytes)
        rate = copy_rate(bench, slab, bench.setup.slab_bytes)
    return Card(name=bench.gpu.name, vram=VRAM, bandwidth=rate / EXPECTED.vram * OF_COPY,
                flops=1.0, pcie=link or 25e9)  # fmt: skip


def _predicted(bench: Bench, source: Source, plan: Plan, card: Card, memory: float) -> float:
    """Seconds of a token, by the timeline of the same scheme, no expert in VRAM."""
    threads = machine().default_threads()[0]
    rates = replace(shipped(isa.NAME), ram=memory, cores=threads, ram_one=memory)
    box = Box(name="this machine", gpus=(card,), ram=1 << 40, ram_bandwidth=memory, rates=rates,
              disk=1.0)  # fmt: skip
    config = source.config
    layout = layout_of_plan(facts_of_census(config, source.tensors), source.tensors, plan)
    costs = timeline_costs(layout, box, bench.setup.stack_depth)
    routings = draw_routings(
        tokens=8, layers=config.num_moe_layers, experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
    )  # fmt: skip
    return simulate(costs, routings, slots=0).seconds_per_token


def _slots(bench: Bench, source: Source) -> int | str:
    """Bytes of slots that these layers have of what the whole model has on a card of VRAM bytes."""
    if bench.setup.stack is not None:
        return "auto"
    facts = facts_of_shape(KIMI_K25, types_named(*TYPES))
    _, total = bench.gpu.memory()
    card = GpuFacts(index=0, name=bench.gpu.name, architecture=0, cuda=0, free=total, total=total)
    budget = Budget(config=KIMI_K25, tensors=sizes_of(facts), gpu=card, kv_type="f16", limit=VRAM)
    found = one_card(budget, DEFAULT_CONTEXT, from_disk=False)
    slots = 0 if found is None else found.slots // KIMI_K25.num_moe_layers
    sizes = source.tensors.experts.values()
    return max(1, slots) * sum(size.slot for size in sizes) + max(size.stage for size in sizes)
