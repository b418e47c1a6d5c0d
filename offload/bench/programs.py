"""What `bench MODEL` runs: a loaded model, ours or a peer's."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np

from offload.batch import Batch, expanded_runs
from offload.bench.layer_bench import fill_slot, together
from offload.bench.sides import PROMPT_SLOT
from offload.bench.split_times import Meter, SplitFigures, gpu_seconds, hybrid_of
from offload.bench.token_book import prefix
from offload.forward import Model
from offload.timing import seconds_of

CHUNK = 512  # prompt tokens in one pass


class Program(Protocol):
    """A loaded model, ours or a peer's."""

    def prompt(self, ids: np.ndarray) -> float:
        """Seconds for a prompt in an empty context."""

    def decode(self, depth: int, steps: int) -> list[float]:
        """Seconds of each of `steps` single tokens after `depth` others."""

    def together(self, depth: int, ids: np.ndarray) -> float:
        """Seconds for the next token of len(ids) sequences after the same `depth` others."""


class OurProgram:
    """The engine's model object, without sampling and text. most: sequences decoded together.

    read: bytes of weights of a decoded token, by depth; splits: of such tokens, where CPU and GPU
    share the model.
    """

    def __init__(self, model: Model, most: int) -> None:
        self.model = model
        self.read: dict[int, float] = {}
        self.splits: dict[int, list[SplitFigures]] = {}
        self._hybrid = hybrid_of(model)
        self._gpu_seconds: dict[int, float] = {}
        self._rng = np.random.default_rng(4)
        self._most = most
        self.block_seconds: dict[int, list[list[float]]] = {}  # of decoded tokens, by depth
        self._filled = -1  # tokens of `prefix` in all slots of sequences
        for slot in range(most + 1):
            model.kv.open(slot)

    def prompt(self, ids: np.ndarray) -> float:
        """See Program."""
        return seconds_of(partial(self._read, ids, PROMPT_SLOT))

    def _read(self, ids: np.ndarray, slot: int) -> None:
        expanded = expanded_runs(len(ids))
        for i in range(0, len(ids), CHUNK):
            self.model.forward(Batch.of(ids[i : i + CHUNK], slot, i, expanded=expanded))

    def decode(self, depth: int, steps: int) -> list[float]:
        """See Program; the cache holds random rows."""
        config = self.model.config
        self._filled = -1
        fill_slot(self.model.kv, config, 1, depth)
        ids = self._rng.integers(0, config.vocab_size, (steps, 1))
        batches = [together(token, depth + i) for i, token in enumerate(ids)]
        seconds, told = [], self.block_seconds.setdefault(depth, [])
        meter = None if self._hybrid is None else Meter(self._hybrid)
        read = self.model.bytes_read
        for batch in batches:
            before = self.model.block_seconds()
            seconds.append(seconds_of(partial(self.model.forward, batch)))
            after = self.model.block_seconds()
            told.append([b - a for a, b in zip(before, after, strict=True)])
        self.read[depth] = (self.model.bytes_read - read) / max(1, steps)
        if meter is not None:
            if depth not in self._gpu_seconds:
                self._gpu_seconds[depth] = gpu_seconds(self.model, batches[-1])
            split = meter.figures(steps, sum(seconds), self._gpu_seconds[depth])
            self.splits.setdefault(depth, []).append(split)
        return seconds

    def together(self, depth: int, ids: np.ndarray) -> float:
        """See Program."""
        if self._filled != depth:
            if depth:
                self._read(prefix(self.model.config.vocab_size, depth), 1)
            for slot in range(2, self._most + 1):
                self.model.kv.copy(1, slot, depth)
            self._filled = depth
        return seconds_of(partial(self.model.forward, together(ids, depth)))
