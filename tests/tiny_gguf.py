"""Writes small random models of the deepseek2 family as real GGUF files.

Weights are quantised by libggml itself; the vocabulary is a minimal kimi-k2 one (256 bytes and the
special tokens), so that llama.cpp and this program can both load the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import libggml
import numpy as np

from quant.ggml import BLOCK, GGMLType

SPECIALS = (
    "[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "[EOT]", "<|im_system|>",
    "<|im_middle|>", "<think>", "</think>", "[PAD]", "[UNK]",
)  # fmt: skip
QUANTISED_ROWS = 512  # of a tensor at most, by libggml


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """Shape of a random model; `types` maps a tensor name's part to a type, first match wins."""

    layers: int = 3
    dense: int = 1
    hidden: int = 256
    heads: int = 4
    q_lora: int | None = 128
    kv_lora: int = 64
    nope: int = 32
    rope: int = 16
    v: int = 32
    experts: int = 16
    top_k: int = 4
    shared: int = 1
    width: int = 256
    dense_width: int = 512
    sigmoid: bool = True
    gating_key: bool = True  # False: the reader must know what the model does
    bias: bool = True
    groups: tuple[int, int] = (1, 1)
    normalise: bool = True
    scale: float = 2.5
    yarn: tuple[float, int, float | None] | None = None  # factor, original context, multiplier
    legacy_kv_b: bool = False
    fused_gate_up: bool = False
    tied: bool = False
    mtp: int = 0
    context: int = 8192
    alignment: int = 32
    fillers: int = 0  # unused tokens at the end
    eps: float = 1e-5
    theta: float = 50_000.0
    seed: int = 0
    types: Mapping[str, GGMLType] = field(default_factory=dict)

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return 256 + len(SPECIALS) + self.fillers


def byte_tokens() -> list[str]:
    """The 256 single bytes in GPT-2's alphabet and order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letters[b] for b in [*plain, *others]]


def tensors(m: TinyModel) -> dict[str, np.ndarray]:
    """Random float32 tensors in GGUF names and numpy shapes."""
    rng = np.random.default_rng(m.seed)

    def w(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    def norm(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.normal(size=n)).astype(np.float32)

    t = {"token_embd.weight": w(m.vocab, m.hidden) * 8, "output_norm.weight": norm(m.hidden)}
    if not m.tied:
        t["output.weight"] = w(m.vocab, m.hidden)
    for i in range(m.layers + m.mtp):
        p = f"blk.{i}."
        t[p + "attn_norm.weight"] = norm(m.hidden)
        if m.q_lora:
            t[p + "attn_q_a.weight"] = w(m.q_lora, m.hidden)
            t[p + "attn_q_a_norm.weight"] = norm(m.q_lora)
            t[p + "attn_q_b.weight"] = w(m.heads * (m.nope + m.rope), m.q_lora) * 2
        else:
            t[p + "attn_q.weight"] = w(m.heads * (m.nope + m.rope), m.hidden) * 2
        t[p + "attn_kv_a_mqa.weight"] = w(m.kv_lora + m.rope, m.hidden)
        t[p + "attn_kv_a_norm.weight"] = norm(m.kv_lora)
        k_b, v_b = w(m.heads, m.nope, m.kv_lora), w(m.heads, m.v, m.kv_lora)
        if m.legacy_kv_b:
            t[p + "attn_kv_b.weight"] = np.concatenate((k_b, v_b), 1).reshape(-1, m.kv_lora)
        else:
            t[p + "attn_k_b.weight"] = np.ascontiguousarray(k_b.transpose(0, 2, 1))
            t[p + "attn_v_b.weight"] = v_b
        t[p + "attn_output.weight"] = w(m.hidden, m.heads * m.v)
        t[p + "ffn_norm.weight"] = norm(m.hidden)
        if i < m.dense:
            t[p + "ffn_gate.weight"] = w(m.dense_width, m.hidden)
            t[p + "ffn_up.weight"] = w(m.dense_width, m.hidden)
            t[p + "ffn_down.weight"] = w(m.hidden, m.dense_width)
            continue
        t[p + "ffn_gate_inp.weight"] = w(m.experts, m.hidden)
        if m.bias:
            t[p + "exp_probs_b.bias"] = (0.1 * rng.normal(size=m.experts)).astype(np.float32)
        gate, up = w(m.experts, m.width, m.hidden), w(m.experts, m.width, m.hidden)
        if m.fused_gate_up:
            t[p + "ffn_gate_up_exps.weight"] = np.concatenate((gate, up), 1)
        else:
            t[p + "ffn_gate_exps.weight"], t[p + "ffn_up_exps.weight"] = gate, up
        t[p + "ffn_down_exps.weight"] = w(m.experts, m.hidden, m.width)
        if m.shared:
            t[p + "ffn_gate_shexp.weight"] = w(m.width * m.shared, m.hidden)
            t[p + "ffn_up_shexp.weight"] = w(m.width * m.shared, m.hidden)
            t[p + "ffn_down_shexp.weight"] = w(m.hidden, m.width * m.shared)
    for i in range(m.layers, m.layers + m.mtp):
        p = f"blk.{i}.nextn."
        t[p + "eh_proj.weight"] = w(m.hidden, 2 * m.hidden)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            t[p + name + ".weight"] = norm(m.hidden)
        for name in ("embed_tokens", "shared_head_head"):
            t[p + name + ".weight"] = w(m.vocab, m.hidden)
    return t


def type_of(m: TinyModel, name: str, x: np.ndarray) -> GGMLType:
    """The type a tensor is stored in; norms, biases and routers stay F32."""
    if x.ndim == 1 or "ffn_gate_inp" in name:
        return GGMLType.F32
    for part, wanted in m.types.items():
        if part in name:
            return wanted if x.shape[-1] % BLOCK[wanted].size == 0 else GGMLType.Q8_0
    return GGMLType.F32


def quantized(kind: GGMLType, x: np.ndarray) -> np.ndarray:
    """Random float32 (..., n) -> (..., row bytes) uint8.

    Large tensors are made of the blocks of their first rows, shuffled: quantising all would take
    minutes, and the values are random anyway.
    """
    rows = x.reshape(-1, x.shape[-1])
    data = libggml.quantize(kind, rows[:QUANTISED_ROWS])
    if len(rows) > QUANTISED_ROWS:
        blocks = data.reshape(-1, BLOCK[kind].n_bytes)
        shape = len(rows), x.shape[-1] // BLOCK[kind].size
        chosen = np.random.default_rng(len(rows)).integers(len(blocks), size=shape)
        data = blocks[chosen]
    return data.reshape(*x.shape[:-1], -1)


def stored_values(m: TinyModel) -> dict[str, np.ndarray]:
    """The float32 weights that a file of this model stands for."""
    values = tensors(m)
    for name, x in values.items():
        kind = type_of(m, name, x)
        if kind != GGMLType.F32:
            data = quantized(kind, x)
            rows = libggml.dequantize(kind, data.reshape(-1, data.shape[-1]), x.shape[-1])
            values[name] = rows.reshape(x.shape)
    return values


def write(path: Path, m: TinyModel, *, dequantized: bool = False) -> Path:
    """Write the model; dequantized: the quantised weights as F32, the exact twin."""
    g = gguf.GGUFWriter(path, "deepseek2")
    g.add_custom_alignment(m.alignment)
    g.add_name("tiny")
    g.add_block_count(m.layers + m.mtp)
    if m.mtp:
        g.add_uint32("deepseek2.nextn_predict_layers", m.mtp)
    g.add_context_length(m.context)
    g.add_embedding_length(m.hidden)
    g.add_feed_forward_length(m.dense_width)
    g.add_head_count(m.heads)
    g.add_layer_norm_rms_eps(m.eps)
    if m.q_lora:
        g.add_q_lora_rank(m.q_lora)
    g.add_kv_lora_rank(m.kv_lora)
    if m.legacy_kv_b:
        g.add_head_count_kv(m.heads)
        g.add_key_length(m.nope + m.rope)
        g.add_value_length(m.v)
    else:
        g.add_head_count_kv(1)
        g.add_key_length(m.kv_lora + m.rope)
        g.add_value_length(m.kv_lora)
        g.add_key_length_mla(m.nope + m.rope)
        g.add_value_length_mla(m.v)
    g.add_rope_dimension_count(m.rope)
    g.add_rope_freq_base(m.theta)
    if m.yarn:
        factor, original, multiplier = m.yarn
        g.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        g.add_rope_scaling_factor(factor)
        g.add_rope_scaling_orig_ctx_len(original)
        if multiplier is not None:
            g.add_rope_scaling_yarn_log_mul(multiplier)
    g.add_leading_dense_block_count(m.dense)
    if m.experts:
        g.add_expert_count(m.experts)
        g.add_expert_used_count(m.top_k)
    g.add_expert_shared_count(m.shared)
    g.add_expert_feed_forward_length(m.width)
    g.add_expert_weights_scale(m.scale)
    g.add_expert_weights_norm(m.normalise)
    if m.gating_key:
        g.add_expert_gating_func(
            gguf.ExpertGatingFuncType.SIGMOID if m.sigmoid else gguf.ExpertGatingFuncType.SOFTMAX
        )
    if m.groups[0] > 1:
        g.add_expert_group_count(m.groups[0])
        g.add_expert_group_used_count(m.groups[1])
    g.add_vocab_size(m.vocab)
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("kimi-k2")
    g.add_token_list([*byte_tokens(), *SPECIALS, *(f"[PAD{i}]" for i in range(m.fillers))])
    g.add_token_types([1] * 256 + [3] * len(SPECIALS) + [5] * m.fillers)
    g.add_token_merges([])
    g.add_eos_token_id(256 + SPECIALS.index("<|im_end|>"))
    plain = stored_values(m) if dequantized else tensors(m)
    for name, x in plain.items():
        kind = type_of(m, name, x)
        if kind == GGMLType.F32 or dequantized:
            g.add_tensor(name, x)
        else:
            g.add_tensor(name, quantized(kind, x), raw_dtype=gguf.GGMLQuantizationType(int(kind)))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    return path
