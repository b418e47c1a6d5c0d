"""Model shapes without a file, the types of their tensors, and the words that choose them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from offload.config import ModelConfig, RopeConfig
from offload.errors import UnsupportedError
from offload.models import expected_tensors
from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.registry import QUANT_TYPES

KIMI_K25 = ModelConfig(
    architecture="deepseek2",
    name="kimi-k2.5",
    num_layers=61,
    first_k_dense=1,
    hidden_size=7168,
    num_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=384,
    num_experts_per_tok=8,
    n_shared_experts=1,
    moe_intermediate_size=2048,
    intermediate_size=18_432,
    routed_scaling_factor=2.827,
    norm_topk_prob=True,
    scoring_func="sigmoid",
    n_group=1,
    topk_group=1,
    rms_norm_eps=1e-5,
    rope=RopeConfig(
        theta=50_000.0,
        dim=64,
        scaling="yarn",
        factor=64.0,
        original_context_length=4096,
        log_multiplier=0.1,
        attn_factor=1.0,
        beta_fast=32.0,
        beta_slow=1.0,
        ext_factor=1.0,
    ),
    vocab_size=163_840,
    context_length=262_144,
    tie_word_embeddings=False,
    num_mtp_layers=0,
)
MOONLIGHT = replace(
    KIMI_K25,
    name="moonlight-16b-a3b",
    num_layers=27,
    hidden_size=2048,
    num_heads=16,
    q_lora_rank=None,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    moe_intermediate_size=1408,
    intermediate_size=11_264,
    routed_scaling_factor=2.446,
    rope=replace(KIMI_K25.rope, scaling="none", factor=1.0, log_multiplier=None, ext_factor=0.0),
    context_length=8192,
)
DEEPSEEK_V3 = replace(
    KIMI_K25,
    name="deepseek-v3",
    first_k_dense=3,
    num_heads=128,
    n_routed_experts=256,
    routed_scaling_factor=2.5,
    n_group=8,
    topk_group=4,
    rms_norm_eps=1e-6,
    rope=replace(KIMI_K25.rope, theta=10_000.0, factor=40.0),
    vocab_size=129_280,
    context_length=163_840,
)
SHAPES: dict[str, ModelConfig] = {c.name: c for c in (KIMI_K25, MOONLIGHT, DEEPSEEK_V3)}

# What a 256-wide type becomes where a row is no multiple of 256, as llama.cpp's quantiser does it.
NARROW: dict[GGMLType, GGMLType] = {
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
    GGMLType.TQ1_0: GGMLType.Q4_0,
    GGMLType.TQ2_0: GGMLType.Q4_0,
}  # all others: IQ4_NL


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeChoice:
    """Types of the matrices. k_b and v_b are Q8_0 (their rows are too short for more)."""

    gate_up: GGMLType
    down: GGMLType
    attention: GGMLType = GGMLType.Q4_K
    shared: GGMLType = GGMLType.Q4_K
    embedding: GGMLType = GGMLType.Q4_K
    head: GGMLType = GGMLType.Q6_K

    def of(self, name: str, n_cols: int) -> GGMLType:
        """The type of a tensor whose rows have `n_cols` weights."""
        wanted = self._wanted(name)
        if n_cols % BLOCK[wanted].size == 0:
            return wanted
        narrow = NARROW.get(wanted, GGMLType.IQ4_NL)
        return narrow if n_cols % BLOCK[narrow].size == 0 else GGMLType.F32

    def _wanted(self, name: str) -> GGMLType:
        if "norm" in name or "ffn_gate_inp" in name or name.endswith(".bias"):
            return GGMLType.F32
        if "_exps" in name:
            return self.down if "down" in name else self.gate_up
        if "_shexp" in name or "ffn_" in name:
            return self.shared
        if "attn_k_b" in name or "attn_v_b" in name:
            return GGMLType.Q8_0
        if name.startswith("output."):
            return self.head
        return self.embedding if name.startswith("token_embd") else self.attention


class TensorSpec(NamedTuple):
    """A tensor that does not exist yet: numpy shape and type."""

    shape: tuple[int, ...]
    ggml_type: GGMLType

    @property
    def n_bytes(self) -> int:
        """Storage of the whole tensor."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows * row_bytes(self.ggml_type, self.shape[-1])


def shape_named(name: str) -> ModelConfig:
    """The configuration behind --shape; UnsupportedError lists the known ones."""
    try:
        return SHAPES[name]
    except KeyError:
        known = ", ".join(SHAPES)
        raise UnsupportedError(f"unknown shape {name!r}; known shapes: {known}") from None


def type_named(name: str) -> GGMLType:
    """A type by name, any case; UnsupportedError lists those with kernels."""
    by_name = {t.name: t for t in QUANT_TYPES}
    try:
        return by_name[name.strip().upper()]
    except KeyError:
        known = ", ".join(by_name)
        raise UnsupportedError(f"unknown type {name!r}; types with kernels: {known}") from None


def types_named(experts: str, attention: str, shared: str) -> TypeChoice:
    """From --experts 'TYPE' or 'GATE_UP:DOWN', --attention and --shared."""
    gate_up, colon, down = experts.partition(":")
    if ":" in down:
        raise UnsupportedError(
            f"--experts {experts!r}: give one type, or gate/up and down apart, as IQ1_S:IQ2_XXS"
        )
    return TypeChoice(
        gate_up=type_named(gate_up),
        down=type_named(down if colon else gate_up),
        attention=type_named(attention),
        shared=type_named(shared),
    )


def tensor_specs(config: ModelConfig, types: TypeChoice, experts: int) -> dict[str, TensorSpec]:
    """Every tensor of a model of this configuration, `experts` of its routed experts stored.

    The router keeps the rows that the configuration says.
    """
    biases = {f"blk.{i}.exp_probs_b.bias" for i in range(config.num_layers)}
    specs = {}
    for name, shape in expected_tensors(config, biases).items():
        stored = (experts, *shape[1:]) if "_exps." in name else shape
        specs[name] = TensorSpec(stored, types.of(name, shape[-1]))
    return specs
