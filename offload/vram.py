"""What a model takes in a GPU's memory beside its weights (plane_sizes.py), and what is left alone.

Pure: nothing of CUDA is imported. The KV cache lies in pages of PAGE positions of all layers.
"""

from __future__ import annotations

from typing import Final

from offload.config import ModelConfig
from offload.kv_cache import cache_bytes, cache_shape
from offload.plan import KVType
from offload.plane_sizes import aligned

PAGE: Final = 256  # positions of a page of the KV cache
SEQUENCES: Final = 64  # that give a token each to a step, beside its prompt tokens
LOGITS: Final = 64  # rows whose logits are made at a time
STRANDS: Final = 128 << 20  # bytes of attention's partial sums; rows that need more take turns
MOST_EXPERTS: Final = 1024
MOST_CHOSEN: Final = 16


def kv_pages(tokens: int) -> int:
    """Pages of so many tokens."""
    return -(-tokens // PAGE)


def page_bytes(config: ModelConfig, kv_type: KVType) -> int:
    """Of a page, all layers."""
    return cache_bytes(config, PAGE, kv_type)


def reserve_bytes(total: int) -> int:
    """Left to the display, the driver and kernels, in a memory of `total` bytes."""
    return max(300 << 20, total // 25)


def step_rows(chunk: int) -> int:
    """Tokens of a step at most: prompts' and one of each running answer."""
    return chunk + SEQUENCES


def workspace_bytes(config: ModelConfig, chunk: int) -> int:
    """Activations of a step: float32 rows, and records of 8 or 16 bits (quant/cuda/records.py)."""
    c, shape = config, cache_shape(config, "f32")
    hidden, heads = c.hidden_size, c.num_heads
    attention = 4 * (
        heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)  # q
        + (c.q_lora_rank or 0) + c.kv_lora_rank + c.qk_rope_head_dim
        + heads * (shape.width + shape.latent)  # absorbed queries, sums of latents
        + heads * c.v_head_dim
    ) + _record(c.q_lora_rank or 0, 2) + _record(heads * c.v_head_dim, 2)  # fmt: skip
    dense = 2 * 4 * c.intermediate_size + _record(c.intermediate_size, 2)
    shared = c.n_shared_experts * c.moe_intermediate_size
    experts = (
        4 * c.n_routed_experts
        + c.num_experts_per_tok * (12 + 4 * hidden + _record(c.moe_intermediate_size, 1))
        + 2 * 4 * shared + _record(shared, 2) + 4 * hidden
    )  # fmt: skip
    row = 3 * 4 * hidden + _record(hidden, 1) + _record(hidden, 2) + attention
    row += max(dense, experts)
    return aligned(step_rows(chunk) * row + LOGITS * 4 * c.vocab_size + STRANDS)


def obstacle(config: ModelConfig) -> str | None:
    """Why this model cannot run on a GPU; None if it can."""
    if config.n_routed_experts > MOST_EXPERTS or config.num_experts_per_tok > MOST_CHOSEN:
        return (
            f"the GPU's router chooses up to {MOST_CHOSEN} of {MOST_EXPERTS:,} experts, this model "
            f"wants {config.num_experts_per_tok} of {config.n_routed_experts:,}"
        )
    return None


def _record(n_cols: int, planes: int) -> int:
    n = -(-n_cols // 1024) * 1024
    return planes * n + n // 8 * 7
