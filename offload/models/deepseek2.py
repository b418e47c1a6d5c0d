"""The deepseek2 family: MLA attention, leading dense layers, then routed and shared experts.

DeepSeek V2, V3, R1, Moonlight, Kimi K2, K2-Thinking, K2.5. T tokens, H hidden, A heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from offload.config import ModelConfig
from offload.devices.base import Decoder, FeedForward, GatedMLP, Layer, Ops, Stack
from offload.kv_cache import KVCache
from offload.models import rope
from offload.weights import WeightStore

Array = np.ndarray


class DeepSeek2:
    """The model on one device. `forward` may be called by one thread at a time."""

    def __init__(self, config: ModelConfig, weights: WeightStore, ops: Ops) -> None:
        self.config = config
        self.ops = ops
        self._weights = weights
        self._rope = rope.Tables(config)
        self._embedding = weights.matrix("token_embd.weight")
        head = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
        self._head = ops.linear(weights.matrix(head))
        self._output_norm = weights.vector("output_norm.weight")
        self._layers = [load_layer(config, weights, ops, i) for i in range(config.num_layers)]
        self._scale = rope.magnitudes(config)[1]
        self.on_routing: Callable[[int, Array], None] | None = None  # layer, expert_ids (T, K)

    def forward(
        self,
        ids: Array,
        kv: KVCache,
        *,
        all_logits: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Array:
        """Run tokens ids (T,) int64 at positions kv.length .. -> logits (1, V) of the last, or all.

        Appends T rows to the cache. `check` is called every few layers and before the head, and may
        raise; the cache then still ends where it did. GGUFError if the logits are not finite.
        """
        config, ops = self.config, self.ops
        first = kv.length
        cos, sin = self._rope.rows(first, len(ids))
        if len(ids) == 1 and self.on_routing is None and self.decoder is not None:
            return self._weights.check_logits(self.decoder(int(ids[0]), kv, cos, sin, check))
        x = ops.embed(self._embedding, ids)
        for i, layer in enumerate(self._layers):
            check()
            h = ops.rms_norm(x, layer.attn_norm, config.rms_norm_eps)
            x += self._attention(layer, h, kv, i, first, cos, sin)
            h = ops.rms_norm(x, layer.ffn_norm, config.rms_norm_eps)
            if layer.router is None:
                layer.ffn(h, x)
                continue
            (logits,) = layer.router(h)
            routing = ops.route(
                logits,
                layer.bias,
                config.num_experts_per_tok,
                sigmoid=config.scoring_func == "sigmoid",
                groups=(config.n_group, config.topk_group),
                normalise=config.norm_topk_prob,
                scale=config.routed_scaling_factor,
            )
            if self.on_routing is not None:
                self.on_routing(i, routing.expert_ids)
            layer.ffn(h, x, routing)
        if not all_logits:
            x = x[-1:]
        check()
        (logits,) = self._head(ops.rms_norm(x, self._output_norm, config.rms_norm_eps))
        kv.length = first + len(ids)
        return self._weights.check_logits(logits)

    def check_files(self) -> None:
        """Raise GGUFError if weights have changed under their map since they were loaded."""
        self._weights.check_files()

    @cached_property
    def decoder(self) -> Decoder | None:
        """What runs single tokens, where the device has more than its operations for them."""
        return self.ops.decoder(self.stack)

    @property
    def stack(self) -> Stack:
        """The model as a device's decoder takes it."""
        return Stack(
            config=self.config,
            embedding=self._embedding,
            layers=self._layers,
            output_norm=self._output_norm,
            head=self._head,
            scale=self._scale,
        )

    def _attention(
        self, layer: Layer, h: Array, kv: KVCache, i: int, first: int, cos: Array, sin: Array
    ) -> Array:
        """Latent attention of one layer: h (T, H) -> (T, H)."""
        config, ops = self.config, self.ops
        q, latent = layer.first(h)
        if layer.q_b is not None and layer.q_a_norm is not None:
            (q,) = layer.q_b(ops.rms_norm(q, layer.q_a_norm, config.rms_norm_eps))
        q = q.reshape(len(h), config.num_heads, config.qk_head_dim)
        rank = config.kv_lora_rank
        c = ops.rms_norm(
            np.ascontiguousarray(latent[:, :rank]), layer.kv_a_norm, config.rms_norm_eps
        )
        k_rope = np.ascontiguousarray(latent[:, None, rank:])
        ops.rope(q[:, :, config.qk_nope_head_dim :], cos, sin)
        ops.rope(k_rope, cos, sin)
        kv.write(i, first, c, k_rope[:, 0])
        heads = ops.attend(q, layer.k_b, layer.v_b, kv, i, first, self._scale)
        (out,) = layer.output(heads)
        return out


def load_layer(config: ModelConfig, weights: WeightStore, ops: Ops, index: int) -> Layer:
    """Prepare layer `index` on the device behind `ops`."""
    p = f"blk.{index}."
    low_rank = config.q_lora_rank is not None
    query = weights.matrix(f"{p}attn_q_a.weight" if low_rank else f"{p}attn_q.weight")
    k_b, v_b = weights.key_value_b(p)
    is_moe = config.is_moe_layer(index)
    has_bias = f"{p}exp_probs_b.bias" in weights
    return Layer(
        attn_norm=weights.vector(f"{p}attn_norm.weight"),
        first=ops.linear(query, weights.matrix(f"{p}attn_kv_a_mqa.weight")),
        q_a_norm=weights.vector(f"{p}attn_q_a_norm.weight") if low_rank else None,
        q_b=ops.linear(weights.matrix(f"{p}attn_q_b.weight")) if low_rank else None,
        kv_a_norm=weights.vector(f"{p}attn_kv_a_norm.weight"),
        k_b=ops.per_head(k_b),
        v_b=ops.per_head(v_b),
        output=ops.linear(weights.matrix(f"{p}attn_output.weight")),
        ffn_norm=weights.vector(f"{p}ffn_norm.weight"),
        router=ops.linear(weights.matrix(f"{p}ffn_gate_inp.weight")) if is_moe else None,
        bias=weights.vector(f"{p}exp_probs_b.bias") if has_bias else np.zeros(0, np.float32),
        ffn=load_feed_forward(config, weights, ops, p, is_moe),
    )


def load_feed_forward(
    config: ModelConfig, weights: WeightStore, ops: Ops, p: str, is_moe: bool
) -> FeedForward:
    """The dense MLP or the experts of the layer with prefix p ('blk.3.')."""
    if not is_moe:
        return ops.feed_forward(None, gated_mlp(weights, p, ""))
    shared = gated_mlp(weights, p, "_shexp") if config.n_shared_experts else None
    return ops.feed_forward(gated_mlp(weights, p, "_exps"), shared)


def gated_mlp(weights: WeightStore, p: str, suffix: str) -> GatedMLP:
    """gate, up and down of one MLP or of all routed experts."""
    return GatedMLP(
        gate=weights.matrix(f"{p}ffn_gate{suffix}.weight"),
        up=weights.matrix(f"{p}ffn_up{suffix}.weight"),
        down=weights.matrix(f"{p}ffn_down{suffix}.weight"),
    )
