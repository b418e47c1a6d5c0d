"""Writes models as GGUF files: laid-out ones with random weights, or any tensors with holes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol

import numpy as np

from offload.bench.shapes import TensorSpec
from offload.bench.synthetic import RandomSource
from offload.config import ModelConfig

ALIGNMENT = 32
Value = int | float | bool | str | list[str] | np.ndarray  # an array: of int32
NOTHING: Mapping[str, Value] = MappingProxyType({})


class Written(Protocol):
    """What a file is made of."""

    @property
    def model(self) -> ModelConfig:
        """Its configuration."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Its tensors."""

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""


def metadata(config: ModelConfig) -> dict[str, Value]:
    """The keys of a deepseek2 file without a vocabulary."""
    rope = config.rope
    keys: dict[str, Value] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        # 0 for none: llama.cpp wants the key unless the number of layers is that of a known model
        "attention.q_lora_rank": config.q_lora_rank or 0,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.latent_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rope.dim,
        "rope.freq_base": rope.theta,
        "leading_dense_block_count": config.first_k_dense,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": 2 if config.scoring_func == "sigmoid" else 1,
        "vocab_size": config.vocab_size,
    }
    if rope.scaling == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope.factor,
            "rope.scaling.original_context_length": rope.original_context_length,
        }
        if rope.log_multiplier is not None:
            keys["rope.scaling.yarn_log_multiplier"] = rope.log_multiplier
    general: dict[str, Value] = {
        "general.architecture": config.architecture,
        "general.name": config.name,
        "tokenizer.ggml.model": "no_vocab",
    }
    return general | {f"{config.architecture}.{key}": value for key, value in keys.items()}


def write_model(
    path: Path,
    layout: Written,
    report: Callable[[int, int], None],
    source: RandomSource,
    keys: Mapping[str, Value] = NOTHING,
) -> None:
    """Write the tensors of a layout with bytes from the source; report(done, total).

    keys: those that the file has beside `metadata`'s, or instead: a vocabulary's, say.
    """
    with path.open("wb") as f:
        write_header(f, metadata(layout.model) | dict(keys), layout.specs)
        done = 0
        for name, spec in layout.specs.items():
            for piece in source.tensor(name, spec):
                f.write(piece.data)
                done += len(piece)
                report(done, layout.n_bytes)
            _align(f)


def write_header(
    f: BinaryIO, keys: Mapping[str, Value], specs: Mapping[str, TensorSpec]
) -> dict[str, int]:
    """All that comes before the weights; where each tensor starts in the file."""
    f.write(b"GGUF" + struct.pack("<IQQ", 3, len(specs), len(keys)))
    for key, value in keys.items():
        f.write(_string(key) + _typed(value))
    starts, offset = {}, 0
    for name, spec in specs.items():
        dims = spec.shape[::-1]
        f.write(_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        f.write(struct.pack("<IQ", int(spec.ggml_type), offset))
        starts[name] = offset
        offset += -(-spec.n_bytes // ALIGNMENT) * ALIGNMENT
    _align(f)
    return {name: f.tell() + start for name, start in starts.items()}


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    """Type code and value; ints as u32, floats as f32."""
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, 5, len(value)) + value.astype("<i4").tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _string(value)


def _align(f: BinaryIO) -> None:
    f.write(b"\0" * (-f.tell() % ALIGNMENT))
