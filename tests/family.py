"""Metadata and tensor tables of deepseek2 models, written from the papers' sizes.

The shapes are spelled out here a second time, on purpose: they are what offload.config is held to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Tensors = dict[str, tuple[tuple[int, ...], int]]
F32, Q8_0, Q2_K, Q4_K, IQ1_S = 0, 8, 10, 12, 19


@dataclass
class Sizes:
    layers: int = 3
    dense: int = 1
    H: int = 256
    V: int = 320
    A: int = 4
    q_lora: int | None = 64
    latent: int = 128
    nope: int = 32
    rope: int = 16
    v: int = 32
    F_dense: int = 512
    E: int = 8
    k: int = 2
    F: int = 256
    shared: int = 1


K25 = Sizes(
    layers=61, dense=1, H=7168, V=163_840, A=64, q_lora=1536, latent=512, nope=128, rope=64, v=128,
    F_dense=18_432, E=384, k=8, F=2048, shared=1,
)  # fmt: skip
LITE = Sizes(
    layers=27, dense=1, H=2048, V=102_400, A=16, q_lora=None, latent=512, nope=128, rope=64, v=128,
    F_dense=10_944, E=64, k=6, F=1408, shared=2,
)  # fmt: skip


def metadata(s: Sizes, *, legacy: bool = False, **changes: Any) -> dict[str, Any]:
    """Keys of a converted model. `changes`: dots as double underscores; None removes a key."""
    keys: dict[str, Any] = {
        "block_count": s.layers,
        "context_length": 4096,
        "embedding_length": s.H,
        "feed_forward_length": s.F_dense,
        "attention.head_count": s.A,
        "attention.head_count_kv": s.A if legacy else 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.kv_lora_rank": s.latent,
        "rope.dimension_count": s.rope,
        "rope.freq_base": 50_000.0,
        "leading_dense_block_count": s.dense,
        "expert_count": s.E,
        "expert_used_count": s.k,
        "expert_shared_count": s.shared,
        "expert_feed_forward_length": s.F,
        "expert_weights_scale": 2.827,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "vocab_size": s.V,
    }
    if legacy:
        keys |= {"attention.key_length": s.nope + s.rope, "attention.value_length": s.v}
    else:
        keys |= {
            "attention.key_length": s.latent + s.rope,
            "attention.value_length": s.latent,
            "attention.key_length_mla": s.nope + s.rope,
            "attention.value_length_mla": s.v,
        }
    if s.q_lora:
        keys["attention.q_lora_rank"] = s.q_lora
    keys |= {name.replace("__", "."): value for name, value in changes.items()}
    known = {f"deepseek2.{k}": v for k, v in keys.items() if v is not None}
    return {"general.architecture": "deepseek2", "general.name": "toy"} | known


def tensors(
    s: Sizes,
    *,
    legacy: bool = False,
    fused: bool = False,
    tied: bool = False,
    bias: bool = True,
    weight: int = F32,
    experts: int = F32,
) -> Tensors:
    """Every tensor of the model with (numpy shape, type code)."""
    out: Tensors = {
        "token_embd.weight": ((s.V, s.H), weight),
        "output_norm.weight": ((s.H,), F32),
    }
    if not tied:
        out["output.weight"] = ((s.V, s.H), weight)
    for n in range(s.layers):
        out |= {
            f"blk.{n}.{name}": value for name, value in layer(s, n, legacy, fused, bias).items()
        }
    for name, (shape, kind) in out.items():
        if name.endswith("_exps.weight"):
            out[name] = (shape, experts)
        elif kind == F32 and len(shape) > 1 and "gate_inp" not in name:
            # rows of nope elements are too short for 256-wide blocks
            out[name] = (shape, Q8_0 if weight != F32 and "k_b" in name else weight)
    return out


def layer(s: Sizes, n: int, legacy: bool, fused: bool, bias: bool) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (s.H,), "ffn_norm": (s.H,)}
    if s.q_lora:
        shapes |= {
            "attn_q_a": (s.q_lora, s.H),
            "attn_q_a_norm": (s.q_lora,),
            "attn_q_b": (s.A * (s.nope + s.rope), s.q_lora),
        }
    else:
        shapes["attn_q"] = (s.A * (s.nope + s.rope), s.H)
    shapes |= {"attn_kv_a_mqa": (s.latent + s.rope, s.H), "attn_kv_a_norm": (s.latent,)}
    if legacy:
        shapes["attn_kv_b"] = (s.A * (s.nope + s.v), s.latent)
    else:
        shapes |= {"attn_k_b": (s.A, s.latent, s.nope), "attn_v_b": (s.A, s.v, s.latent)}
    shapes["attn_output"] = (s.H, s.A * s.v)
    if n < s.dense:
        wide = {"ffn_gate": (s.F_dense, s.H), "ffn_up": (s.F_dense, s.H)}
        shapes |= wide | {"ffn_down": (s.H, s.F_dense)}
    else:
        shapes["ffn_gate_inp"] = (s.E, s.H)
        if fused:
            shapes["ffn_gate_up_exps"] = (s.E, 2 * s.F, s.H)
        else:
            shapes |= {"ffn_gate_exps": (s.E, s.F, s.H), "ffn_up_exps": (s.E, s.F, s.H)}
        shapes["ffn_down_exps"] = (s.E, s.H, s.F)
        if s.shared:
            F = s.F * s.shared
            shapes |= {"ffn_gate_shexp": (F, s.H), "ffn_up_shexp": (F, s.H)}
            shapes["ffn_down_shexp"] = (s.H, F)
    out: Tensors = {f"{name}.weight": (shape, F32) for name, shape in shapes.items()}
    if n >= s.dense and bias:
        out["exp_probs_b.bias"] = ((s.E,), F32)
    return out
