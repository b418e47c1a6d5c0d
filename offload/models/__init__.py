"""ARCHITECTURES: one file per GGUF `general.architecture`; an alias is one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offload.config import ModelConfig
    from offload.devices.base import Ops
    from offload.models.deepseek2 import DeepSeek2
    from offload.weights import WeightStore


def _deepseek2(config: ModelConfig, weights: WeightStore, ops: Ops) -> DeepSeek2:
    from offload.models.deepseek2 import DeepSeek2

    return DeepSeek2(config, weights, ops)


ARCHITECTURES: dict[str, Callable[[ModelConfig, WeightStore, Ops], DeepSeek2]] = {
    "deepseek2": _deepseek2,
}
