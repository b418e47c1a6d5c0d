"""Tokens for sequences that are decoded together, and weights with which a router obeys them.

Another program's router cannot be told what to choose. So all layers' routers are given the same
rows, and a token's embedding is the sum of the rows of the experts that it shall choose, far larger
than what layers add to it: whatever program runs the file, that token goes to those experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from offload.bench.draws import Draws
from offload.bench.shapes import TensorSpec
from offload.bench.synthetic import RandomSource
from quant.ggml import GGMLType

Array = np.ndarray
RMS = 1e6  # of an embedding; a layer of random weights adds 2 (TQ1_0) to thousands (Q2_K)
EMBEDDING = GGMLType.F32


class Tokens(Protocol):
    """Where the tokens of passes come from."""

    def take(self, steps: int, n: int) -> Array:
        """The next token of each of n sequences, for some passes: (steps, n) int64."""


class RandomTokens:
    """Any of a vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(3)

    def take(self, steps: int, n: int) -> Array:
        """See Tokens."""
        return self._rng.integers(0, self._vocabulary, (steps, n))


def prefix(vocabulary: int, depth: int) -> Array:
    """The random tokens that sequences begin with, in both programs: (depth,) int64."""
    return np.random.default_rng(5).integers(0, vocabulary, depth)


class TokenBook:
    """A vocabulary whose tokens stand for experts: choices (vocabulary, K) int64.

    sizes: numbers of sequences decoded together. Their passes have tokens of their own, as many of
    each size as there are, which come again in the same order.
    """

    def __init__(self, vocabulary: int, sizes: Sequence[int], draws: Draws) -> None:
        n_passes = vocabulary // sum(sizes)
        self._passes: dict[int, Array] = {}
        self._next = dict.fromkeys(sizes, 0)
        choices = []
        at = 0
        for n in sizes:
            self._passes[n] = np.arange(at, at + n_passes * n).reshape(n_passes, n)
            at += n_passes * n
            choices += [draws.decode(1, n)[0] for _ in range(n_passes)]
        self.choices = np.concatenate([*choices, draws.prompt(1, vocabulary - at)[0]])

    def take(self, steps: int, n: int) -> Array:
        """See Tokens."""
        at = self._next[n]
        self._next[n] = at + steps
        return self._passes[n][np.arange(at, at + steps) % len(self._passes[n])]


class ObedientSource(RandomSource):
    """Random weights but for embeddings (of type EMBEDDING) and routers: see the module."""

    def __init__(self, book: TokenBook, experts: int) -> None:
        super().__init__()
        self._choices = book.choices
        self._experts = experts

    def tensor(self, name: str, spec: TensorSpec) -> Iterator[Array]:
        """See RandomSource."""
        if "ffn_gate_inp." in name:
            yield self._router(spec.shape[-1]).view(np.uint8).reshape(-1)
        elif name.startswith("token_embd."):
            rows = self._router(spec.shape[-1])
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            chosen = np.zeros((len(self._choices), self._experts), np.float32)
            np.put_along_axis(chosen, self._choices, 1, axis=1)
            table = chosen @ rows
            table *= RMS * np.sqrt(spec.shape[-1] / self._choices.shape[1])
            yield table.view(np.uint8).reshape(-1)
        else:
            yield from super().tensor(name, spec)

    def _router(self, width: int) -> Array:
        rng = np.random.default_rng(7)
        return rng.standard_normal((self._experts, width), np.float32) * np.float32(0.02)
