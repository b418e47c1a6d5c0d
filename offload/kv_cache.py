"""What a row of the latent cache is, and what a cache costs.

A row is [ c: kv_lora_rank | k_rope: qk_rope_head_dim ], each padded with zeros to a multiple of 16
elements so that kernels may load whole vectors: 576 values per token and layer for Kimi K2.5. How
they are stored is quant/run/cache_rows.py's matter: 2,304 bytes in f32, 1,152 in f16, 612 in q8_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offload.config import ModelConfig
from offload.plan import KVType
from quant.run.cache_rows import RowKind, encode, row_bytes


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
    def kind(self) -> RowKind:
        """The same for kernels."""
        return RowKind[self.kv_type.upper()]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.kind, self.latent, self.rope)

    def store(self, rows: np.ndarray, c: np.ndarray, k_rope: np.ndarray) -> None:
        """Write c (T, rank) and k_rope (T, rope) float32 to rows (T, row_bytes) uint8."""
        wide = np.zeros((len(c), self.width), np.float32)
        wide[:, : c.shape[1]] = c
        wide[:, self.latent : self.latent + k_rope.shape[1]] = k_rope
        rows[:] = encode(self.kind, wide, self.latent)


def cache_shape(config: ModelConfig, kv_type: KVType) -> CacheShape:
    """The rows of a model's cache."""
    return CacheShape(_pad(config.kv_lora_rank), _pad(config.qk_rope_head_dim), kv_type)


def cache_bytes(config: ModelConfig, context: int, kv_type: KVType) -> int:
    """Bytes of a cache of `context` tokens."""
    return config.num_layers * context * cache_shape(config, kv_type).row_bytes
