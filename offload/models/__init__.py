"""ARCHITECTURES: one file per GGUF `general.architecture`; an alias is one line here.

A file gives three functions:

    blocks(config, weights, on)           its blocks in order, each made by on(block, layer)
    expected_tensors(config, present)     names and shapes of the tensors that they read
    check_tensors(config, tensors)        raises GGUFError or UnsupportedError unless they are there
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from offload.config import ModelConfig
    from offload.devices.base import Block, Maker
    from offload.gguf import TensorInfo
    from offload.plan import BlockName
    from offload.weights import WeightStore

Place = Callable[["BlockName", int], "Maker"]  # who makes a block of a layer

ARCHITECTURES = {
    "deepseek2": "deepseek2",
}


class Architecture(Protocol):
    """What a file of this package gives."""

    def blocks(self, config: ModelConfig, weights: WeightStore, on: Place) -> Iterator[Block]:
        """All blocks, from the embedding to the head."""

    def expected_tensors(
        self, config: ModelConfig, present: Collection[str]
    ) -> dict[str, tuple[int, ...]]:
        """Every tensor that the blocks read, with its shape."""

    def check_tensors(self, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Refuse a file whose tensors are not these."""


def architecture(name: str) -> Architecture:
    """The module of a supported architecture."""
    return cast("Architecture", import_module(f"{__name__}.{ARCHITECTURES[name]}"))


def expected_tensors(config: ModelConfig, present: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Every tensor that the forward pass reads, with its shape; present: the file's names."""
    return architecture(config.architecture).expected_tensors(config, present)
