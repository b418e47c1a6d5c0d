"""What is timed in turns: a program's layers, decoding and reading a prompt."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from offload.batch import Batch
from offload.bench.layer_bench import PARTS, LayerModel, fill_slot, together
from offload.timing import Timing

PROMPT_SLOT = 0  # sequences that are decoded have the slots from 1 on


class Side(Protocol):
    """A program under test, with its layers ready."""

    def parts(self, ids: np.ndarray) -> dict[str, list[float]]:
        """The next token of each of some sequences: seconds by part, a figure per layer."""

    def whole(self, ids: np.ndarray) -> tuple[float, float]:
        """The same: (seconds per layer, seconds of the head)."""

    def prefill(self, ids: np.ndarray) -> float:
        """Seconds per layer of a prompt from an empty cache."""


class Samples:
    """All timings of one side."""

    def __init__(self) -> None:
        self.of = {name: Timing() for name in (*PARTS, "layer", "head", "prefill")}

    def decode(self, side: Side, tokens: np.ndarray) -> None:
        """Tokens (2, steps, n): steps part by part, steps whole, of n sequences each."""
        for ids in tokens[0]:
            for part, seconds in side.parts(ids).items():
                for value in seconds:
                    self.of[part].add(value)
        for ids in tokens[1]:
            layer, head = side.whole(ids)
            self.of["layer"].add(layer)
            self.of["head"].add(head)


class Ours:
    """This program, through the engine's own blocks.

    depth: random rows in each slot of `most` sequences. chosen: distinct experts of single tokens
    so far; spread: those of the last prompt; distinct: those of a layer, on average, of each pass
    by its number of sequences.
    """

    def __init__(self, model: LayerModel, depth: int, most: int) -> None:
        self.model = model
        self._depth = depth
        kv = model.model.kv
        kv.open(PROMPT_SLOT)
        for slot in range(1, most + 1):
            kv.open(slot)
            fill_slot(kv, model.config, slot, depth)
        self.chosen: set[int] = set()
        self.spread = 0
        self.distinct: dict[int, list[float]] = {}

    def parts(self, ids: np.ndarray) -> dict[str, list[float]]:
        """See Side."""
        return self.model.parts(together(ids, self._depth))

    def whole(self, ids: np.ndarray) -> tuple[float, float]:
        """See Side."""
        seconds = self.model.whole(together(ids, self._depth))
        layers = self.model.config.num_layers
        used = [self.model.experts(layer) for layer in range(layers)]
        self.distinct.setdefault(len(ids), []).append(sum(map(len, used)) / layers)
        if len(ids) == 1:
            self.chosen.update(*used)
        return seconds

    def prefill(self, ids: np.ndarray) -> float:
        """See Side; one layer stands for all."""
        seconds = self.model.first_layer(Batch.of(ids, PROMPT_SLOT))
        self.spread = len(self.model.experts(0))
        return seconds
