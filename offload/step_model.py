"""What steps need of a model, and what is left of one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from offload.batch import Batch
from offload.config import ModelConfig
from offload.errors import DeviceError
from offload.expert_stats import ExpertStats
from offload.kv_slots import KVRows, KVSlots

Array = np.ndarray
Check = Callable[[], None]


class Model(Protocol):
    """What a step needs of a model."""

    on_routing: Callable[[int, Array], None] | None  # layer, expert_ids (T, K)

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that went through kernels so far."""

    def block_seconds(self) -> list[float]:
        """Of blocks so far, in the order of KINDS (devices/block_times.py); zeros: not told."""

    @property
    def expert_stats(self) -> ExpertStats:
        """What the routed experts did so far."""

    @property
    def kv(self) -> KVRows:
        """The rows of all layers."""

    def forward(self, batch: Batch, check: Check = ...) -> Array:
        """Logits (len(wanted), V) float32, a new array; the spans' rows are written to their slots.

        `check` is called before each layer, or every few, and may raise.
        """

    def check_logits(self, logits: Array) -> object:
        """GGUFError if logits of one sequence may not be given away."""

    def check_files(self) -> None:
        """GGUFError if weights have changed under their map."""

    def close(self) -> None:
        """Give threads and memory back."""


# after a device has failed: the model opened again, with its slots; OffloadError
Reopen = Callable[[DeviceError], tuple[Model, KVSlots]]


class Gone:
    """What is left of a model that has failed, until it is opened again."""

    def __init__(self, model: Model) -> None:
        self.config, self.expert_stats = model.config, model.expert_stats
        self.on_routing = model.on_routing
