"""What a model takes in a GPU's memory beside its weights (plane_sizes.py), and what is left alone.

Pure: nothing of CUDA is imported. The KV cache lies in pages of PAGE positions of all layers that
attend there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from offload.batch import EXACT_CONTEXT
from offload.config import ModelConfig
from offload.kv_cache import cache_shape
from offload.plan import KVType
from offload.plane_sizes import aligned
from offload.stream_sizes import stream_bytes

PAGE: Final = 256  # positions of a page of the KV cache
SEQUENCES: Final = 64  # that give a token each to a step, beside its prompt tokens
FEW: Final = 8  # rows that have buffers of their own, for prepared launches
LOGITS: Final = 64  # rows of many whose logits are made at a time
SCRATCH: Final = 64 << 20  # bytes in which attention works, if one row or head does with less
STAGE: Final = 33 << 20  # through which weights come
SPLIT: Final = 128  # positions of attention's strands, of which there are
STRANDS: Final = 64  # at most
MOST_EXPERTS: Final = 1024
MOST_CHOSEN: Final = 16
RING_EXPERTS: Final = 16  # of a ring: one half is computed while the other comes


class Parts(NamedTuple):
    """What of a model is computed on a GPU. attention: in so many layers.

    experts: routers, shared experts, and routed ones of few rows; routed: of many rows, too;
    ring_experts: of many rows, through a ring of so many; has_slots: experts have slots.
    """

    attention: int
    dense: bool
    experts: bool
    routed: bool
    head: bool
    ring_experts: int = 0
    has_slots: bool = False


def whole(config: ModelConfig) -> Parts:
    """All of it."""
    has_experts = bool(config.n_routed_experts)
    return Parts(config.num_layers, True, has_experts, has_experts, True)


def kv_pages(tokens: int) -> int:
    """Pages of so many tokens."""
    return -(-tokens // PAGE)


def page_bytes(config: ModelConfig, kv_type: KVType, layers: int) -> int:
    """Of a page of so many layers."""
    return layers * PAGE * cache_shape(config, kv_type).row_bytes


def reserve_bytes(total: int) -> int:
    """Left to the display, the driver and kernels, in a memory of `total` bytes."""
    return max(300 << 20, total // 25)


def step_rows(chunk: int) -> int:
    """Tokens of a step at most: prompts' and one of each running answer."""
    return chunk + SEQUENCES


def kv_bytes(config: ModelConfig, kv_type: KVType, context: int, tokens: int, layers: int) -> int:
    """Of the KV cache of so many layers: pages, and tables of them."""
    return kv_pages(tokens) * page_bytes(config, kv_type, layers) + table_bytes(context)


def table_bytes(context: int) -> int:
    """Of each slot's table of pages, should all slots be open twice."""
    return 2 * SEQUENCES * aligned(8 * kv_pages(context))


def workspace_bytes(config: ModelConfig, context: int, chunk: int, parts: Parts) -> int:
    """What a device has beside weights and KV: buffers of few rows, of a step's, of some logits."""
    c, rows = config, step_rows(chunk)
    head = (4 * c.hidden_size + _forms(c.hidden_size) + 4 * c.vocab_size) * parts.head
    tables = 3 * aligned(8 * c.n_routed_experts) * c.num_layers * (1 + parts.has_slots)
    tables += aligned(8 * c.intermediate_size)
    many = _pass_bytes(c, context, rows, parts)
    if parts.attention:
        many += _expanded_bytes(c, context)
    if parts.ring_experts:
        many += stream_bytes(c, rows, parts.ring_experts, layouts=c.num_layers)
    few = _pass_bytes(c, context, FEW, parts._replace(routed=parts.experts)) + FEW * head
    of_head = LOGITS * (head + _small(c)) * parts.head
    return aligned(STAGE + tables + few + many + of_head)


def _pass_bytes(config: ModelConfig, context: int, rows: int, parts: Parts) -> int:
    """Buffers for so many rows; layers share them (offload/devices/cuda_*.py)."""
    c, shape = config, cache_shape(config, "f32")
    hidden, heads, top_k = c.hidden_size, c.num_heads, c.num_experts_per_tok
    low, query = c.q_lora_rank or 0, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    values, width = heads * c.v_head_dim, c.moe_intermediate_size
    shared = c.n_shared_experts * width
    row, partial = 4 * hidden + _small(c), 0
    if parts.attention:
        row += (
            _forms(hidden) + 4 * (low + query + c.kv_lora_rank + c.qk_rope_head_dim)
            + _forms(low) + 4 * heads * (shape.width + shape.latent) + _forms(values) + 4 * values
        )  # fmt: skip
        strands = min(STRANDS, -(-context // SPLIT))
        partial = 4 * heads * strands * (shape.latent + 4)
    if parts.dense:
        row += _forms(hidden) + 8 * c.intermediate_size + _forms(c.intermediate_size)
    if parts.experts and top_k:
        row += (
            4 * hidden + _record(hidden, 1) + _record(hidden, 2) + 4 * c.n_routed_experts
            + 8 * shared + _forms(shared) + 4 * hidden
        )  # fmt: skip
    if parts.routed and top_k:
        row += top_k * (8 * width + _forms(width) + 4 * hidden)
    return rows * row + max(partial, min(rows * partial, SCRATCH)) + (1 << 20)


def _small(config: ModelConfig) -> int:
    """Of a row: ids, position, rotation, its experts in all layers."""
    top_k = config.num_experts_per_tok
    return 64 + 4 * config.rope.dim + 8 * top_k * (config.num_layers + 2)


def _expanded_bytes(config: ModelConfig, context: int) -> int:
    """Keys and values of the heads of a long prompt, and the matrices that make them."""
    c = config
    if context <= EXACT_CONTEXT:
        return 0
    sizes = (-(-n // 16) * 16 for n in (c.qk_nope_head_dim, c.v_head_dim, c.qk_rope_head_dim))
    a_head = 2 * (-(-context // PAGE) * PAGE) * sum(sizes)
    dense = 4 * c.num_heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    return max(a_head, min(c.num_heads * a_head, SCRATCH)) + dense + (1 << 20)


def _forms(n_cols: int) -> int:
    """Of a row of activations, as what reads it wants it: float32, or a record."""
    return max(4 * n_cols, _record(n_cols, 2))


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
