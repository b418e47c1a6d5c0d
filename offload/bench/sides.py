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
    """This program, through the engine's own blocks. depth: tokens in each sequence's slot.

    chosen: distinct experts of single tokens so far; spread: those of the last prompt.
    """

    def __init__(self, model: LayerModel, depth: int) -> None:
        self.model = model
        self._depth = depth
        kv = model.model.kv
        kv.open(PROMPT_SLOT)
        kv.open(1)
        fill_slot(kv, model.config, 1, depth)
        self.chosen: set[int] = set()
        self.spread = 0

    def parts(self, ids: np.ndarray) -> dict[str, list[float]]:
        """See Side."""
        return self.model.parts(together(ids, self._depth))

    def whole(self, ids: np.ndarray) -> tuple[float, float]:
        """See Side."""
        seconds = self.model.whole(together(ids, self._depth))
        self.chosen.update(*(self.model.experts(i) for i in range(self.model.config.num_layers)))
        return seconds

    def prefill(self, ids: np.ndarray) -> float:
        """See Side; one layer stands for all."""
        seconds = self.model.first_layer(Batch.of(ids, PROMPT_SLOT))
        self.spread = len(self.model.experts(0))
        return seconds
