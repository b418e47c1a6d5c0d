"""What a row of the latent cache is, and what a cache costs.

A row is [ c: kv_lora_rank | k_rope: qk_rope_head_dim ], each padded with zeros to a multiple of 16
elements so that kernels may load whole vectors: 576 values per token and layer for Kimi K2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offload.config import ModelConfig
from offload.plan import KVType


def _pad(n: int) -> int:
    return -(-n // 16) * 16


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Elements of a row that c and k_rope take, with their zeros, and how they are stored."""

    latent: int
    rope: int
    kv_type: KVType

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.latent + self.rope

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * (2 if self.kv_type == "f16" else 4)

    def store(self, rows: np.ndarray, c: np.ndarray, k_rope: np.ndarray) -> None:
        """Write c (T, rank) and k_rope (T, rope) float32 to rows (T, row_bytes) uint8."""
        typed = rows.view(np.float16 if self.kv_type == "f16" else np.float32)
        typed[:, : c.shape[1]] = c
        typed[:, self.latent : self.latent + k_rope.shape[1]] = k_rope


def cache_shape(config: ModelConfig, kv_type: KVType) -> CacheShape:
    """The rows of a model's cache."""
    return CacheShape(_pad(config.kv_lora_rank), _pad(config.qk_rope_head_dim), kv_type)


def cache_bytes(config: ModelConfig, context: int, kv_type: KVType) -> int:
    """Bytes of a cache of `context` tokens."""
    return config.num_layers * context * cache_shape(config, kv_type).row_bytes
