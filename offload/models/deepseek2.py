"""The deepseek2 family: MLA attention, leading dense layers, then routed and shared experts.

DeepSeek V2, V3, R1, Moonlight, GLM-4.7-Flash, Kimi K2, K2-Thinking, K2.5 to K2.7. What a block
computes is in devices/base.py, which device makes it is the plan's choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload import rope
from offload.config import ModelConfig
from offload.devices.base import Block, GatedMLP, LatentAttention, Router
from offload.models import Place
from offload.models.deepseek2_tensors import check_tensors, expected_tensors
from offload.weights import WeightStore

__all__ = ["blocks", "check_tensors", "expected_tensors"]


def blocks(config: ModelConfig, weights: WeightStore, on: Place) -> Iterator[Block]:
    """From token to logits: every block, on the device of its family and layer."""
    yield on("embedding", -1).embedding(weights.matrix("token_embd.weight"))
    for i in range(config.num_layers):
        p = f"blk.{i}."
        yield on("attention", i).attention(i, attention(config, weights, p))
        norm = weights.vector(f"{p}ffn_norm.weight")
        if not config.is_moe_layer(i):
            yield on("dense", i).mlp(i, norm, gated_mlp(weights, p, ""))
            continue
        yield on("router", i).router(i, router(config, weights, p, norm))
        routed = gated_mlp(weights, p, "_exps")
        if not config.n_shared_experts:
            yield on("routed", i).experts(i, routed, None)
        elif on("shared", i) is on("routed", i):
            yield on("routed", i).experts(i, routed, gated_mlp(weights, p, "_shexp"))
        else:
            yield on("routed", i).experts(i, routed, None)
            yield on("shared", i).experts(i, None, gated_mlp(weights, p, "_shexp"))
    head = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    yield on("head", -1).head(weights.vector("output_norm.weight"), weights.matrix(head))


def attention(config: ModelConfig, weights: WeightStore, p: str) -> LatentAttention:
    """Latent attention of the layer with prefix p ('blk.3.')."""
    low_rank = config.q_lora_rank is not None
    k_b, v_b = weights.key_value_b(p)
    return LatentAttention(
        norm=weights.vector(f"{p}attn_norm.weight"),
        query=weights.matrix(f"{p}attn_q_a.weight" if low_rank else f"{p}attn_q.weight"),
        latent=weights.matrix(f"{p}attn_kv_a_mqa.weight"),
        q_norm=weights.vector(f"{p}attn_q_a_norm.weight") if low_rank else None,
        q_b=weights.matrix(f"{p}attn_q_b.weight") if low_rank else None,
        latent_norm=weights.vector(f"{p}attn_kv_a_norm.weight"),
        k_b=k_b,
        v_b=v_b,
        output=weights.matrix(f"{p}attn_output.weight"),
        rank=config.kv_lora_rank,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        scale=rope.magnitudes(config)[1],
    )


def router(config: ModelConfig, weights: WeightStore, p: str, norm: np.ndarray) -> Router:
    """How a layer chooses its experts."""
    has_bias = f"{p}exp_probs_b.bias" in weights
    return Router(
        norm=norm,
        gate=weights.matrix(f"{p}ffn_gate_inp.weight"),
        bias=weights.vector(f"{p}exp_probs_b.bias") if has_bias else np.zeros(0, np.float32),
        top_k=config.num_experts_per_tok,
        sigmoid=config.scoring_func == "sigmoid",
        groups=(config.n_group, config.topk_group),
        normalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )


def gated_mlp(weights: WeightStore, p: str, suffix: str) -> GatedMLP:
    """gate, up and down of one MLP or of all routed experts."""
    return GatedMLP(
        gate=weights.matrix(f"{p}ffn_gate{suffix}.weight"),
        up=weights.matrix(f"{p}ffn_up{suffix}.weight"),
        down=weights.matrix(f"{p}ffn_down{suffix}.weight"),
    )
