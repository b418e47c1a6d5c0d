"""KVCache: the MLA latent of every token and layer, and nothing else.

A row is [ c: kv_lora_rank | k_rope: qk_rope_head_dim ], each padded with zeros to a multiple of 16
elements so that kernels may load whole vectors: 576 values per token and layer for Kimi K2.5. How
they are stored is cache_rows' matter: 2,304 bytes in f32, 1,152 in f16, 612 in q8_0.
"""

from __future__ import annotations

import numpy as np

from offload.config import ModelConfig
from offload.errors import PlanError
from offload.plan import KVType
from quant.run.cache_rows import RowKind, encode, row_bytes


def _pad(n: int) -> int:
    return -(-n // 16) * 16


def row_layout(config: ModelConfig) -> tuple[int, int]:
    """Elements of a row that c and k_rope take, with their zeros."""
    return _pad(config.kv_lora_rank), _pad(config.qk_rope_head_dim)


class KVCache:
    """Owner of the rows (num_layers, context, row_bytes) uint8; those beyond `length` are free.

    Memory is reserved at once and touched as tokens come (the operating system maps it lazily).
    """

    def __init__(self, config: ModelConfig, context: int, kv_type: KVType) -> None:
        self.context = context
        self.kind = _kind(kv_type)
        self.latent, self.rope = row_layout(config)
        self.row_bytes = row_bytes(self.kind, self.latent, self.rope)
        self.length = 0
        try:
            self.rows = np.zeros((config.num_layers, context, self.row_bytes), np.uint8)
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

    def write(self, layer: int, first: int, latent: np.ndarray, rope: np.ndarray) -> None:
        """Store c (T, kv_lora_rank) and k_rope (T, rope) of tokens first .. first + T - 1."""
        rows = np.zeros((len(latent), self.width), np.float32)
        rows[:, : latent.shape[1]] = latent
        rows[:, self.latent : self.latent + rope.shape[1]] = rope
        self.rows[layer, first : first + len(rows)] = encode(self.kind, rows, self.latent)

    def address(self, layer: int) -> int:
        """Address of position 0 of a layer."""
        return int(self.rows[layer].ctypes.data)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)


def _kind(kv_type: KVType) -> RowKind:
    return RowKind[kv_type.upper()]


def cache_bytes(config: ModelConfig, context: int, kv_type: KVType) -> int:
    """Bytes of a cache of `context` tokens."""
    return config.num_layers * context * row_bytes(_kind(kv_type), *row_layout(config))
