"""`--compare llama.cpp`: the same weights, threads and minutes for both programs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offload.bench.arrange import arrange
from offload.bench.gguf_writer import write_model
from offload.bench.layer_bench import PARTS, BenchDevice, LayerModel
from offload.bench.layout import Layout
from offload.bench.llama_cpp import LlamaContext, LlamaModel
from offload.bench.options import ShapeOptions
from offload.bench.parallel import note_on_draws, sizes
from offload.bench.shape_bench import PROMPT, Report, draws_of, run, slot_rows
from offload.bench.sides import Ours
from offload.bench.synthetic import RandomSource
from offload.bench.token_book import ObedientSource, RandomTokens, TokenBook, Tokens, prefix
from offload.config import ModelConfig
from offload.errors import DeviceError, PlanError
from offload.gguf import GGUFFile
from offload.hardware import HardwareProfile
from offload.readying import compile_kernels
from offload.stats import LoadProgress
from offload.timing import Timing
from offload.weights import WeightStore

MEMORY = Path("/dev/shm")  # a file here needs no disk


class Contexts:
    """Of a number of sequences: one as users have it, one that stops between parts."""

    def __init__(self, model: LlamaModel, context: int, sequences: int) -> None:
        self.plain = LlamaContext(model, context, sequences=sequences)
        self.timed = LlamaContext(model, context, sequences=sequences, timed=True)
        self.head = Timing()


class TheirLayers:
    """llama.cpp's side. sizes: numbers of sequences that are decoded together, 1 among them.

    All sequences have the same `depth` random tokens before.
    """

    def __init__(
        self, model: LlamaModel, layers: int, vocabulary: int, depth: int, sizes: Sequence[int]
    ) -> None:
        self._layers = layers
        self._before = prefix(vocabulary, depth)
        self.contexts = {
            n: Contexts(model, (max(PROMPT, depth) if n == 1 else depth) + 8, n) for n in sizes
        }

    def _filled(self, n: int) -> Contexts:
        contexts = self.contexts[n]
        contexts.plain.fill(self._before)
        if contexts.timed.length != len(self._before):
            contexts.timed.copy_from(contexts.plain)
        return contexts

    def parts(self, ids: np.ndarray) -> dict[str, list[float]]:
        """See Side."""
        contexts = self._filled(len(ids))
        timed = contexts.timed
        timed.parts.clear()
        timed.step(ids)
        timed.truncate(len(self._before))
        for part, seconds in timed.parts:
            if part == "head":
                contexts.head.add(seconds)
        return _by_layer(timed.parts, self._layers)

    def whole(self, ids: np.ndarray) -> tuple[float, float]:
        """See Side."""
        contexts = self._filled(len(ids))
        seconds = contexts.plain.step(ids)
        contexts.plain.truncate(len(self._before))
        head = contexts.head.median
        return (seconds - head) / self._layers, head

    def prefill(self, ids: np.ndarray) -> float:
        """See Side; the first layer's parts.

        Not the mean over layers: of its last, llama.cpp computes the last token's experts only.
        """
        timed = self.contexts[1].timed
        timed.truncate(0)
        timed.parts.clear()
        timed.stop_after = PARTS[-1]
        timed.run(ids)
        timed.stop_after = ""
        timed.truncate(0)
        return first_layer(timed.parts)

    def close(self) -> None:
        """Free all contexts."""
        for contexts in self.contexts.values():
            contexts.plain.close()
            contexts.timed.close()


def first_layer(stamps: list[tuple[str, float]]) -> float:
    """Seconds of all parts up to the end of the first layer."""
    total = 0.0
    for part, seconds in stamps:
        total += seconds
        if part == PARTS[-1]:
            break
    return total


def _by_layer(stamps: list[tuple[str, float]], layers: int) -> dict[str, list[float]]:
    """Seconds by part, one figure per layer."""
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for part, seconds in stamps:
        if part != "head":
            times[part].append(seconds)
    if any(len(found) != layers for found in times.values()):
        counts = ", ".join(f"{part} {len(found)}" for part, found in times.items())
        raise DeviceError(
            f"this llama.cpp names the nodes of its graph otherwise: of {layers} layers, {counts} "
            "were seen; leave --compare out"
        )
    return times


class LlamaProgram:
    """llama.cpp's side of `bench MODEL`. sizes: numbers of sequences decoded together."""

    def __init__(
        self, path: Path, threads: int, longest: int, config: ModelConfig, sizes: Sequence[int]
    ) -> None:
        self._model = LlamaModel(path, threads)
        self._context = LlamaContext(self._model, longest)
        self._ids = prefix(config.vocab_size, longest)
        self._together: dict[int, LlamaContext] = {
            n: LlamaContext(self._model, longest, sequences=n) for n in sizes
        }
        self.about = self._model.about

    def prompt(self, ids: np.ndarray) -> float:
        """See Program."""
        self._context.truncate(0)
        return self._context.run(ids)

    def decode(self, depth: int, steps: int) -> list[float]:
        """See Program."""
        self._context.fill(self._ids[:depth])
        return [self._context.run(self._ids[i : i + 1]) for i in range(steps)]

    def together(self, depth: int, ids: np.ndarray) -> float:
        """See Program."""
        context = self._together[len(ids)]
        context.fill(self._ids[:depth])
        seconds = context.step(ids)
        context.truncate(depth)
        return seconds

    def close(self) -> None:
        """Free the contexts, then the model."""
        for context in (self._context, *self._together.values()):
            context.close()
        self._model.close()


def with_llama_cpp(
    layout: Layout,
    options: ShapeOptions,
    hardware: HardwareProfile,
    threads: int,
    cpus: Sequence[frozenset[int]] | None,
    facts: dict[str, Any],
    report: Report,
) -> dict[str, Any]:
    """Write the layout to a temporary file, run both programs on it in turns, remove it."""
    numbers = sizes(options.parallel)
    vocabulary = layout.model.vocab_size
    tokens: Tokens = RandomTokens(vocabulary)
    source = RandomSource()
    notes_on_tokens = [f"both choose experts by the same router among {layout.experts}"]
    if len(numbers) > 1:
        draws = draws_of(layout, options)
        tokens = book = TokenBook(vocabulary, numbers, draws)
        source = ObedientSource(book, layout.experts)
        notes_on_tokens = [
            "both choose experts by the same router, the same in all layers, which gives every "
            "token the experts that were drawn for it",
            note_on_draws(layout, draws, numbers),
        ]
    with tempfile.TemporaryDirectory(prefix="kimi-offload-", dir=_folder(layout)) as folder:
        path = Path(folder) / "weights.gguf"
        write_model(
            path,
            layout,
            lambda done, total: report(
                LoadProgress(phase="lay out", done_bytes=done, total_bytes=total)
            ),
            source,
        )
        peer, theirs, device = LlamaModel(path, threads), None, None
        try:
            with GGUFFile.open(path) as file:
                config = ModelConfig.from_gguf(file)
                device = BenchDevice(config, slot_rows(options), threads, cpus)
                store = WeightStore(file, config)
                layout, notes = arrange(
                    store, config, layout, options.layout, hardware, device.pool, report
                )
                model = LayerModel(config, store, device)
                compile_kernels(model.model, model.model, report)
                if os.name == "posix":
                    path.unlink()  # both hold it open; nothing is left even if we are killed
                theirs = TheirLayers(peer, config.num_layers, vocabulary, options.depth, numbers)
                ours = Ours(model, options.depth, max(numbers))
                notes += [*_notes(peer, layout), *notes_on_tokens]
                return run(ours, {"llama_cpp": theirs}, tokens, layout, options, facts, notes)
        finally:
            if theirs is not None:
                theirs.close()
            peer.close()
            if device is not None:
                device.close()


def _notes(peer: LlamaModel, layout: Layout) -> list[str]:
    return [
        peer.about,
        "both programs read the same mapped file with the same threads, in turns"
        + (", but ours its packed copy of the routed experts" * (layout.arranged == "packed")),
        "llama.cpp's parts: seconds between the ends of attention, router, routed and shared "
        "experts, through its evaluation callback; its whole layer: without it; its head: with it",
        "prefill: the first layer's seconds, of both"
        + (
            "; llama.cpp computes the experts of a last layer for the last token only, so with one "
            "layer the two are not the same work: give --layers 2" * (layout.model.num_layers == 1)
        ),
    ]


def _folder(layout: Layout) -> str:
    """Where the file fits: in memory if possible; PlanError if nowhere."""
    need = layout.n_bytes + (64 << 20)
    places = [MEMORY] * MEMORY.is_dir() + [Path(tempfile.gettempdir())]
    for place in places:
        if shutil.disk_usage(place).free > need:
            return str(place)
    raise PlanError(
        f"the temporary file needs {need / 2**30:.1f} GiB, and neither of "
        f"{', '.join(map(str, places))} has that much room; give fewer --layers or set TMPDIR"
    )
