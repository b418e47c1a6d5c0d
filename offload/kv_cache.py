"""KVCache: the MLA latent of every token and layer, and nothing else.

A row is [ c: kv_lora_rank | k_rope: qk_rope_head_dim ], each padded with zeros to a multiple of 16
elements so that kernels may load whole vectors: 576 values per token and layer for Kimi K2.5.
"""

from __future__ import annotations

import numpy as np

from offload.config import ModelConfig
from offload.errors import PlanError
from offload.plan import KVType


def _pad(n: int) -> int:
    return -(-n // 16) * 16


def row_layout(config: ModelConfig) -> tuple[int, int]:
    """Elements of a row that c and k_rope take, with their zeros."""
    return _pad(config.kv_lora_rank), _pad(config.qk_rope_head_dim)


class KVCache:
    """Owner of the latent rows (num_layers, context, width); rows beyond `length` are free.

    Memory is reserved at once and touched as tokens come (the operating system maps it lazily).
    """

    def __init__(self, config: ModelConfig, context: int, kv_type: KVType) -> None:
        self.context = context
        self.kv_type: KVType = kv_type
        self.latent, self.rope = row_layout(config)
        self.length = 0
        dtype = np.float16 if kv_type == "f16" else np.float32
        try:
            self.rows = np.zeros((config.num_layers, context, self.width), dtype)
        except (MemoryError, ValueError) as exc:
            size = cache_bytes(config, context, kv_type)
            raise PlanError(
                f"a KV cache of {context:,} tokens needs {size / 2**30:.1f} GiB, which the system "
                "refuses; ask for a smaller --context"
            ) from exc

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.latent + self.rope

    @property
    def is_half(self) -> bool:
        """Whether rows are float16."""
        return self.kv_type == "f16"

    @property
    def row_bytes(self) -> int:
        """Bytes from token to token of a layer."""
        return self.width * self.rows.itemsize

    def write(self, layer: int, first: int, latent: np.ndarray, rope: np.ndarray) -> None:
        """Store c (T, kv_lora_rank) and k_rope (T, rope) of tokens first .. first + T - 1."""
        rows = self.rows[layer, first : first + len(latent)]
        rows[:, : latent.shape[1]] = latent
        rows[:, self.latent : self.latent + rope.shape[1]] = rope

    def address(self, layer: int) -> int:
        """Address of position 0 of a layer."""
        return int(self.rows[layer].ctypes.data)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)


def cache_bytes(config: ModelConfig, context: int, kv_type: KVType) -> int:
    """Bytes of a cache of `context` tokens."""
    width = sum(row_layout(config))
    return config.num_layers * context * width * (2 if kv_type == "f16" else 4)
