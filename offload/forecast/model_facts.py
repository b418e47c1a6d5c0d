"""What a model is, as far as planning needs it: bytes and weights by block, layer and type.

From a whole file, or from a shape without any (`facts_of_shape`); from the first part of a file in
first_part.py, from a published mix in presets.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from offload.bench.shapes import TensorSpec, TypeChoice, tensor_specs
from offload.config import ModelConfig
from offload.gguf import GGUFFile, TensorInfo
from offload.kv_cache import cache_bytes
from offload.models import expected_tensors
from offload.plan import BlockName, KVType
from offload.tensor_census import FamilyName, block_of, family_of
from quant.ggml import GGMLType

Key = tuple[BlockName, int | None, GGMLType, FamilyName]


class Part(NamedTuple):
    """Tensors of one block, layer (None: outside of layers), type and family; stored bytes."""

    block: BlockName
    layer: int | None
    ggml_type: GGMLType
    n_bytes: int
    n_weights: int
    family: FamilyName


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model. n_bytes: of the tensors that the forward pass reads. remarks: what is guessed."""

    name: str
    config: ModelConfig
    parts: tuple[Part, ...]
    remarks: tuple[str, ...] = ()

    def block_bytes(self, block: BlockName) -> int:
        """Bytes of one block, all layers."""
        return sum(part.n_bytes for part in self.parts if part.block == block)

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def n_experts(self) -> int:
        """Routed experts of all layers."""
        return self.config.n_routed_experts * self.config.num_moe_layers

    @property
    def expert_bytes(self) -> float:
        """Bytes of a routed expert, the mean of all layers; 0.0 without experts."""
        return self.block_bytes("routed") / self.n_experts if self.n_experts else 0.0

    @property
    def bits_per_expert_weight(self) -> float:
        """Average storage of routed weights; 0.0 without experts."""
        weights = sum(part.n_weights for part in self.parts if part.block == "routed")
        return 8 * self.block_bytes("routed") / weights if weights else 0.0

    def share_read(self, block: BlockName) -> float:
        """Of a block's bytes, the share that one decoded token reads."""
        config = self.config
        if block == "routed":
            return config.num_experts_per_tok / config.n_routed_experts
        if block == "embedding" and not config.tie_word_embeddings:
            return 1 / config.vocab_size
        return 1.0

    def bytes_read(self, *blocks: BlockName) -> float:
        """Bytes that one decoded token reads of these blocks; of all, without any named."""
        return sum(
            part.n_bytes * self.share_read(part.block)
            for part in self.parts
            if not blocks or part.block in blocks
        )

    @property
    def weights_read(self) -> float:
        """Weights that one token is multiplied by."""
        return sum(part.n_weights * self.share_read(part.block) for part in self.parts)

    def kv_bytes(self, kv_type: KVType) -> int:
        """Bytes of the KV cache per token, all layers."""
        return cache_bytes(self.config, 1, kv_type)


def facts_of_file(file: GGUFFile, config: ModelConfig | None = None) -> ModelFacts:
    """Of a file with all its parts. Raises as ModelConfig.from_gguf does."""
    config = config or ModelConfig.from_gguf(file)
    names = expected_tensors(config, file.tensors.keys())
    tensors = {name: file.tensors[name] for name in names}
    return ModelFacts(name=config.name, config=config, parts=parts_of(config, tensors))


def facts_of_shape(config: ModelConfig, types: TypeChoice) -> ModelFacts:
    """Of a shape (bench/shapes.py) with the types that are asked for."""
    specs = tensor_specs(config, types, config.n_routed_experts)
    experts = dict.fromkeys((types.gate_up.name, types.down.name))
    name = f"{config.name}, {':'.join(experts)} experts"
    return ModelFacts(name=name, config=config, parts=parts_of(config, specs))


def parts_of(
    config: ModelConfig, tensors: Mapping[str, TensorInfo] | Mapping[str, TensorSpec]
) -> tuple[Part, ...]:
    """The tensors that the forward pass reads, added up."""
    n_bytes: Counter[Key] = Counter()
    n_weights: Counter[Key] = Counter()
    for name, info in tensors.items():
        key = (*block_of(name, config), info.ggml_type, family_of(name))
        n_bytes[key] += info.n_bytes
        n_weights[key] += prod(info.shape)
    return tuple(
        Part(block, layer, t, n_bytes[key], n_weights[key], family)
        for key in n_bytes
        for block, layer, t, family in (key,)
    )
