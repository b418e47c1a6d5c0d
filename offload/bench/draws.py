"""Which experts tokens choose in a bench: as random routing gives them, among the stored ones.

Sequences that are decoded together draw among as many experts as the whole model has. What they
drew is then mapped to stored experts, equal to equal and different to different, so that as many
different experts are read as in the model, however few are stored.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


class Draws:
    """Random choices. full: experts of the model; stored: of these, in memory; top_k: of a token.

    A pass takes others than the ones before it, in each layer, until all stored ones were used.
    overlap: the share of its choices that a sequence has in common with the one before it, all
    others differ from that one's; None: each draws on its own.
    """

    def __init__(self, full: int, stored: int, top_k: int, overlap: float | None = None) -> None:
        self.stored = stored
        self._full = full
        self._top_k = top_k
        self.overlap = overlap
        self._rng = np.random.default_rng(1)
        self._orders: dict[int, Array] = {}

    def decode(self, layers: int, rows: int) -> Array:
        """For one token of each of `rows` sequences: (layers, rows, K) int64."""
        return np.stack([self._stored_ids(layer, self._together(rows)) for layer in range(layers)])

    def prompt(self, layers: int, rows: int) -> Array:
        """For a prompt, all tokens on their own, among stored experts: (layers, rows, K) int64."""
        lots = self._rng.random((layers, rows, self.stored))
        return np.ascontiguousarray(np.argpartition(lots, self._top_k - 1)[..., : self._top_k])

    def _together(self, rows: int) -> Array:
        """(rows, K) of the model's experts."""
        ids = np.argpartition(self._rng.random((rows, self._full)), self._top_k - 1)
        ids = ids[:, : self._top_k]
        if self.overlap is None:
            return ids
        for before, row in zip(ids, ids[1:], strict=False):
            common = int(self.overlap * self._top_k + self._rng.random())
            others = np.setdiff1d(np.arange(self._full), before)
            row[:common] = self._rng.choice(before, common, replace=False)
            row[common:] = self._rng.choice(others, self._top_k - common, replace=False)
        return ids

    def _stored_ids(self, layer: int, ids: Array) -> Array:
        different, index = np.unique(ids, return_inverse=True)
        order = self._orders.get(layer, np.zeros(0, np.int64))
        if len(order) < len(different):
            order = self._rng.permutation(self.stored)
        taken, self._orders[layer] = np.split(order, [len(different)])
        return taken[self._rng.permutation(len(different))[index.reshape(ids.shape)]]
