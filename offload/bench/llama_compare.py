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
from offload.bench.shape_bench import PROMPT, Report, context, run
from offload.bench.sides import Ours
from offload.config import ModelConfig
from offload.errors import DeviceError, PlanError
from offload.gguf import GGUFFile
from offload.hardware import HardwareProfile
from offload.loading import compile_kernels
from offload.stats import LoadProgress
from offload.timing import Timing
from offload.weights import WeightStore

MEMORY = Path("/dev/shm")  # a file here needs no disk


class TheirLayers:
    """llama.cpp's side: one context as users have it, one that stops between parts."""

    def __init__(self, model: LlamaModel, layers: int, vocabulary: int, depth: int) -> None:
        self._layers = layers
        self._before = np.random.default_rng(5).integers(0, vocabulary, depth)
        context = max(PROMPT, depth) + 8
        self.plain = LlamaContext(model, context)
        self.timed = LlamaContext(model, context, timed=True)
        self._head = Timing()
        self._ready = False

    def _fill(self) -> None:
        if not self._ready:
            self.plain.fill(self._before)
            self.timed.copy_from(self.plain)
            self._ready = True

    def parts(self, ids: np.ndarray) -> dict[str, list[float]]:
        """See Side."""
        self._fill()
        self.timed.parts.clear()
        self.timed.run(ids)
        self.timed.truncate(len(self._before))
        for part, seconds in self.timed.parts:
            if part == "head":
                self._head.add(seconds)
        return _by_layer(self.timed.parts, self._layers)

    def whole(self, ids: np.ndarray) -> tuple[float, float]:
        """See Side."""
        self._fill()
        seconds = self.plain.run(ids)
        self.plain.truncate(len(self._before))
        head = self._head.median
        return (seconds - head) / self._layers, head

    def prefill(self, ids: np.ndarray) -> float:
        """See Side; the first layer's parts.

        Not the mean over layers: of its last, llama.cpp computes the last token's experts only.
        """
        self.timed.truncate(0)
        self._ready = False
        self.timed.parts.clear()
        self.timed.stop_after = PARTS[-1]
        self.timed.run(ids)
        self.timed.stop_after = ""
        self.timed.truncate(0)
        return first_layer(self.timed.parts)

    def close(self) -> None:
        """Free both contexts."""
        self.plain.close()
        self.timed.close()


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
    """llama.cpp's side of `bench MODEL`."""

    def __init__(self, path: Path, threads: int, longest: int, config: ModelConfig) -> None:
        self._model = LlamaModel(path, threads)
        self._context = LlamaContext(self._model, longest)
        self._ids = np.random.default_rng(5).integers(0, config.vocab_size, longest)
        self.about = self._model.about

    def prompt(self, ids: np.ndarray) -> float:
        """See Program."""
        self._context.truncate(0)
        return self._context.run(ids)

    def decode(self, depth: int, steps: int) -> list[float]:
        """See Program."""
        self._context.fill(self._ids[:depth])
        return [self._context.run(self._ids[i : i + 1]) for i in range(steps)]

    def close(self) -> None:
        """Free the context, then the model."""
        self._context.close()
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
    with tempfile.TemporaryDirectory(prefix="kimi-offload-", dir=_folder(layout)) as folder:
        path = Path(folder) / "weights.gguf"
        write_model(
            path,
            layout,
            lambda done, total: report(
                LoadProgress(phase="lay out", done_bytes=done, total_bytes=total)
            ),
        )
        peer, theirs, device = LlamaModel(path, threads), None, None
        try:
            with GGUFFile.open(path) as file:
                config = ModelConfig.from_gguf(file)
                device = BenchDevice(config, context(options), threads, cpus)
                store = WeightStore(file, config)
                layout, notes = arrange(
                    store, config, layout, options.layout, hardware, device.pool, report
                )
                model = LayerModel(config, store, device)
                compile_kernels(model.model, report)
                if os.name == "posix":
                    path.unlink()  # both hold it open; nothing is left even if we are killed
                theirs = TheirLayers(peer, config.num_layers, config.vocab_size, options.depth)
                ours = Ours(model, options.depth)
                notes += _notes(peer, layout)
                return run(ours, {"llama_cpp": theirs}, layout, options, facts, notes)
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
        + (", but ours its packed copy of the routed experts" * (layout.arranged == "packed"))
        + f"; both choose experts by the same router among {layout.experts}",
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
