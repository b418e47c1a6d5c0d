"""Guessing the next layer's experts, so that a disk that would idle reads them ahead.

The next layer's router is applied to this layer's residual stream, before its experts have changed
it. Whether that pays is tried out on the run itself: some passes with, some without, and again.
"""

from __future__ import annotations

import ctypes
from statistics import median

import numpy as np

from offload.devices.base import Router
from quant.ggml import GGMLType

Array = np.ndarray
WINDOW = 8  # passes of one token with guesses, then as many without
ROUNDS = 3  # such pairs before it is decided
AGAIN = 1000  # passes after which it is tried anew
GAIN = 0.98  # of the time without, that guessing must not exceed


class Guesser:
    """Knows the routers of all layers; says whether to guess, and what.

    Only routers whose rows are float32 in the file are applied.
    """

    def __init__(self) -> None:
        self._routers: dict[int, tuple[Array, Array, Array, int]] = {}
        self._next: dict[int, int] = {}
        self._seconds: tuple[list[float], list[float]] = [], []  # a pass without, with
        self._passes = 0
        self._is_decided = False
        self.is_on = False

    def learn(self, layer: int, router: Router) -> None:
        """A router of the model, in the order of layers."""
        gate = router.gate
        if gate.quant.ggml_type != GGMLType.F32 or gate.group_rows != 1:
            return
        if self._routers:
            self._next[max(self._routers)] = layer
        room = (ctypes.c_float * (gate.n_rows * gate.n_cols)).from_address(gate.address)
        rows = np.frombuffer(memoryview(room), np.float32).reshape(gate.n_rows, gate.n_cols)
        bias = router.bias if router.bias.size else np.zeros(gate.n_rows, np.float32)
        self._routers[layer] = rows[:, : gate.used_cols], router.norm, bias, router.top_k

    def guess(self, layer: int, x: Array) -> tuple[int, list[int]] | None:
        """(the next layer with experts, its likeliest ones); x (T, H): rows of the residual stream.

        None if there is no such layer, or it is not the time to guess.
        """
        if not self.is_on or layer not in self._next:
            return None
        following = self._next[layer]
        gate, norm, bias, top_k = self._routers[following]
        h = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-6)) * norm
        scores = 1 / (1 + np.exp(-np.clip(h @ gate.T, -50, 50))) + bias
        best = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
        return following, np.unique(best).tolist()

    def after(self, seconds: float, rows: int) -> None:
        """A pass took so long; those of one row decide."""
        if rows != 1 or not self._next:
            return
        self._passes += 1
        if self._is_decided:
            if self._passes >= AGAIN:
                self._seconds[0].clear()
                self._seconds[1].clear()
                self._passes, self._is_decided = 0, False
            return
        self._seconds[self.is_on].append(seconds)
        self.is_on = self._passes // WINDOW % 2 == 1
        if self._passes >= 2 * WINDOW * ROUNDS:
            without, with_ = (median(s) for s in self._seconds)
            self.is_on = with_ < GAIN * without
            self._is_decided = True

    @property
    def verdict(self) -> str:
        """Whether guesses are made, with the figures."""
        if not self._next:
            return "no guesses of the next layer's experts: its router's rows are not float32"
        if not self._is_decided:
            return "guesses of the next layer's experts: being tried out"
        without, with_ = (1e3 * median(s) for s in self._seconds)
        state = "on" if self.is_on else "off"
        return (
            f"guesses of the next layer's experts {state}: a token took {with_:.1f} ms with, "
            f"{without:.1f} ms without"
        )
