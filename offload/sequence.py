"""Sequence: a model, the KV cache, and the tokens whose rows are in it. One pass at a time.

Tokens whose prefix is still in the cache are not computed again; that never changes a result
(prefill and decoding agree bit for bit up to devices/cpu_attention.EXACT_CONTEXT tokens).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from offload.kv_cache import KVCache
from offload.models.deepseek2 import DeepSeek2
from offload.plan import KVType
from offload.stats import LoadProgress, RunStats
from offload.turns import Turn

PREFILL_TOKENS = 512  # prompt tokens in one forward pass

Report = Callable[[LoadProgress], None]


class Sequence:
    """The owner of model and cache. Every pass belongs to a turn, asked before each layer."""

    def __init__(self, model: DeepSeek2, kv: KVCache) -> None:
        self.model = model
        self.kv = kv
        self.context = kv.context
        self._config = model.config
        self._ids: list[int] = []  # the tokens whose rows are in the cache
        self._lock = threading.RLock()  # held during forward passes
        self._in_pass = False
        self._is_closed = False

    def logits(self, ids: np.ndarray, turn: Turn, kv_type: KVType) -> np.ndarray:
        """Logits (T, V) of all tokens of a sequence of its own, with a cache of its own."""
        kv = KVCache(self._config, len(ids), kv_type)
        parts = []
        for part in np.split(ids, range(PREFILL_TOKENS, len(ids), PREFILL_TOKENS)):
            with self._lock:
                turn.enter()
                parts.append(self._pass(part, kv, turn.check, all_logits=True))
        return np.concatenate(parts)

    def prefill(
        self, prompt: np.ndarray, turn: Turn, stats: RunStats, report: Report | None
    ) -> np.ndarray:
        """Logits (V,) of the prompt's last token; computes what the cache does not hold."""
        with self._lock:
            turn.enter()
            known = np.array(self._ids[: self.kv.length])
            n = min(len(known), len(prompt) - 1)
            differs = np.flatnonzero(known[:n] != prompt[:n])
            keep = int(differs[0]) if differs.size else n
            self.kv.truncate(keep)
            stats.reused_tokens = keep
        reading = Reading(turn, report, len(prompt) - keep, self._config.num_layers)
        logits = np.empty((0, 0), np.float32)
        for i in range(keep, len(prompt), PREFILL_TOKENS):
            part = prompt[i : i + PREFILL_TOKENS]
            reading.begin(i - keep, len(part))
            with self._lock:
                turn.enter()
                logits = self._append(part, reading.check)
        reading.end()
        last: np.ndarray = logits[-1]
        return last

    def next(self, token_id: int, turn: Turn, stats: RunStats) -> np.ndarray:
        """Logits (V,) after one more token."""
        with self._lock:
            turn.enter()
            before = self.model.ops.bytes_read
            logits: np.ndarray = self._append(np.array([token_id]), turn.check)[-1]
            stats.decode_bytes += self.model.ops.bytes_read - before
        return logits

    def check_weights(self) -> None:
        """Raise GGUFError if they were changed meanwhile; at the end of an answer."""
        with self._lock:
            if not self._is_closed:
                self.model.check_files()

    def close(self) -> None:
        """Free everything, once no pass runs: at the end of this thread's own one, if there is."""
        with self._lock:
            self._is_closed = True
            if not self._in_pass and hasattr(self, "model"):
                self.model.ops.close()
                del self.model, self.kv

    def _append(self, ids: np.ndarray, check: Callable[[], None]) -> np.ndarray:
        """Append ids to the cache -> logits (1, V) of the last. With the lock held."""
        del self._ids[self.kv.length :]
        logits = self._pass(ids, self.kv, check)
        self._ids += ids.tolist()
        return logits

    def _pass(
        self, ids: np.ndarray, kv: KVCache, check: Callable[[], None], *, all_logits: bool = False
    ) -> np.ndarray:
        """One forward pass, with the lock held."""
        self._in_pass = True
        try:
            return self.model.forward(ids, kv, all_logits=all_logits, check=check)
        finally:
            self._in_pass = False
            if self._is_closed:  # by a function that this pass called
                self.close()


class Reading:
    """Tells how far a prompt is, in tokens: at the start, before each layer, at the end."""

    def __init__(self, turn: Turn, report: Report | None, total: int, layers: int) -> None:
        self._turn = turn
        self._report = report
        self._total = total
        self._layers = layers
        self._first, self._n, self._layer = 0, 0, 0

    def begin(self, first: int, n: int) -> None:
        """Tokens first .. first + n - 1 come next."""
        self._first, self._n, self._layer = first, n, 0

    def check(self) -> None:
        """Before each layer: `Turn.check`, and the word."""
        self._turn.check()
        if self._report is not None:
            self._tell(self._first + self._n * self._layer // (self._layers + 1))
            self._layer = min(self._layer + 1, self._layers)

    def end(self) -> None:
        """All of it has been read."""
        if self._report is not None:
            self._tell(self._total)

    def _tell(self, done: int) -> None:
        assert self._report is not None
        self._report(LoadProgress(phase="prompt", done_bytes=done, total_bytes=self._total))
