"""The model's interface of steps.Model over a DeepSeek2 that runs one sequence at a time.

For the time until offload/models has it itself; offload/loading.py then returns that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from offload.batch import Batch
from offload.kv_cache import KVCache

Array = np.ndarray


class ShimKV:
    """One KVCache a slot."""

    def __init__(self, config: Any, context: int, kind: Any) -> None:
        self.context, self.kind = context, kind
        self.caches: dict[int, KVCache] = {}
        self._config = config
        self.token_bytes = KVCache(config, 1, kind).rows.nbytes

    def open(self, slot: int, kind: Any = None) -> None:
        assert slot not in self.caches
        self.caches[slot] = KVCache(self._config, self.context, kind or self.kind)

    def close(self, slot: int) -> None:
        self.caches.pop(slot, None)

    def copy(self, source: int, target: int, count: int) -> None:
        self.caches[target].rows[:, :count] = self.caches[source].rows[:, :count]

    def read(self, slot: int, count: int) -> list[Array]:
        return [rows[:count].view(np.uint8) for rows in self.caches[slot].rows]

    write = read


class ShimModel:
    """Runs the spans of a batch one after the other."""

    def __init__(self, model: Any, context: int, kind: Any) -> None:
        self.model = model
        self.config = model.config
        self.kv = ShimKV(model.config, context, kind)
        self.check_logits = model._weights.check_logits
        self.check_files = model.check_files
        model._weights.check_logits = lambda logits: logits
        self.close = model.ops.close

    @property
    def bytes_read(self) -> Any:
        return self.model.ops.bytes_read

    @property
    def on_routing(self) -> Any:
        return self.model.on_routing

    @on_routing.setter
    def on_routing(self, callback: Callable[[int, Array], None] | None) -> None:
        self.model.on_routing = callback

    def forward(self, batch: Batch, check: Callable[[], None] = lambda: None) -> Array:
        assert batch.ids is not None
        logits, at = [], 0
        for span in batch.spans:
            cache = self.kv.caches[span.slot]
            cache.length = span.first
            wanted = batch.wanted[(batch.wanted >= at) & (batch.wanted < at + span.count)] - at
            many = len(wanted) > 1 or (len(wanted) == 1 and wanted[0] != span.count - 1)
            ids = batch.ids[at : at + span.count]
            got = self.model.forward(ids, cache, all_logits=many, check=check)
            if len(wanted):
                logits.append(got[wanted] if many else got)
            at += span.count
        vocabulary = self.config.vocab_size
        return np.concatenate(logits) if logits else np.empty((0, vocabulary), np.float32)
