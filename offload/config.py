"""ModelConfig: what a GGUF's metadata says about the model, in the papers' names.

The table from GGUF keys to field names is `offload.config_keys.KEYS`; here are the rules that a
table cannot hold (latent or plain head sizes, which tensors are there, gating defaults), each with
its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from offload.arguments import check_type
from offload.config_keys import KEYS, Reader, check_keys, supported_architecture
from offload.errors import GGUFError, UnsupportedError, shown
from offload.gguf import GGUFFile
from offload.gguf_tensors import TensorInfo, refuse_foreign
from offload.metadata import described, strings, text
from quant.ggml import GGMLType


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding on pairs of adjacent elements.

    dim: elements of a head that are rotated. factor: context stretch, 1.0 for "none".
    log_multiplier: as stored, 0.1 x mscale_all_dim; None if absent or 0, which llama.cpp equates.
    ext_factor: share of the YaRN ramp in use, 1.0 for "yarn" and 0.0 otherwise unless stored.
    """

    theta: float
    dim: int
    scaling: Literal["none", "linear", "yarn"]
    factor: float
    original_context_length: int
    log_multiplier: float | None
    attn_factor: float
    beta_fast: float
    beta_slow: float
    ext_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and rules of one model; layers of the multi-token-prediction tail are not counted.

    num_layers: layers of the trunk; num_mtp_layers more may follow in the file.
    q_lora_rank: None if queries are projected in one step (attn_q).
    n_routed_experts, num_experts_per_tok, moe_intermediate_size: 0 for a model without experts.
    n_group, topk_group: 1, 1 if all experts compete with each other.
    intermediate_size: width of the dense layers. context_length: the trained maximum, in tokens.
    """

    architecture: str
    name: str
    num_layers: int
    first_k_dense: int
    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    intermediate_size: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    scoring_func: Literal["softmax", "sigmoid"]
    n_group: int
    topk_group: int
    rms_norm_eps: float
    rope: RopeConfig
    vocab_size: int
    context_length: int
    tie_word_embeddings: bool
    num_mtp_layers: int

    @property
    def qk_head_dim(self) -> int:
        """Elements of one query head: the part without and the part with rotation."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values that the KV cache holds per token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.num_layers - self.first_k_dense

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer of the trunk has routed experts."""
        return layer >= self.first_k_dense

    @classmethod
    def from_gguf(cls, f: GGUFFile) -> ModelConfig:
        """Read the metadata, apply the family's rules and check every tensor's shape against them.

        Raises UnsupportedError for another architecture, a tensor type or a variant that this
        version cannot run,
        GGUFError for missing keys, impossible values, missing or misshapen tensors.
        """
        # Here, not at the top: the models package may itself import this module.
        from offload.models import architecture as module_of
        from offload.rope import check_rope

        check_type("the file", f, GGUFFile)
        architecture = supported_architecture(f.metadata)
        refuse_foreign(f.foreign.values(), shown(f.paths[0], 1_000))
        if not f.tensors:
            raise UnsupportedError(
                f"{shown(f.paths[0].name)} holds no tensors (a vocabulary or a header only); give "
                "the model's file"
            )
        config = _read_config(Reader(f.metadata, architecture), f.tensors, f.paths[0])
        module_of(architecture).check_tensors(config, f.tensors)
        check_rope(config)
        return config

    @classmethod
    def from_parts(cls, f: GGUFFile, tensors: Mapping[str, TensorInfo]) -> ModelConfig:
        """The same of the first part `f` of a model of which only `tensors` are here.

        What the tensors of other parts would decide is guessed: queries are projected in two steps
        if the metadata has their rank, and the head is a matrix of its own.
        """
        from offload.rope import check_rope

        architecture = supported_architecture(f.metadata)
        refuse_foreign(f.foreign.values(), shown(f.paths[0], 1_000))
        read = Reader(f.metadata, architecture)
        guessed = {"output.weight": (1, 1)}
        if rank := read.integer("q_lora_rank") * ("blk.0.attn_q.weight" not in tensors):
            guessed["blk.0.attn_q_a.weight"] = (rank, 1)
        others = {name: _elsewhere(name, shape) for name, shape in guessed.items()}
        config = _read_config(read, {**others, **tensors}, f.paths[0])
        check_rope(config)
        return config


def _elsewhere(name: str, shape: tuple[int, ...]) -> TensorInfo:
    """A tensor that another part is thought to hold."""
    return TensorInfo(name=name, ggml_type=GGMLType.F32, shape=shape, n_bytes=0, part=0, offset=0)


def _read_config(read: Reader, tensors: Mapping[str, TensorInfo], path: Path) -> ModelConfig:
    check_keys(read)
    mtp = read.integer("num_mtp_layers")
    layers = read.integer("num_layers") - mtp
    if layers < 1:
        raise GGUFError(
            f"block_count counts {layers + mtp} layers, but {mtp} of them are MTP layers"
        )
    dense = min(read.integer("first_k_dense"), layers)
    vocab_size = _vocab_size(read, tensors)
    rope = _read_rope(read)
    heads = read.integer("num_heads", slice(layers))
    qk_head_dim, v_head_dim = _head_sizes(read, rope.dim)
    _check_query_rows(read, heads * qk_head_dim, rope.dim, tensors)
    experts, top_k, n_group, topk_group = _expert_counts(read, layers > dense)
    return ModelConfig(
        architecture=read.prefix[:-1],
        name=_model_name(read.metadata, path),
        num_layers=layers,
        first_k_dense=dense,
        hidden_size=read.integer("hidden_size"),
        num_heads=heads,
        q_lora_rank=_q_lora_rank(read, tensors),
        kv_lora_rank=read.integer("kv_lora_rank"),
        qk_nope_head_dim=qk_head_dim - rope.dim,
        qk_rope_head_dim=rope.dim,
        v_head_dim=v_head_dim,
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        n_shared_experts=read.integer("n_shared_experts"),
        moe_intermediate_size=_width(read, "moe_intermediate_size", slice(dense, layers)),
        intermediate_size=_width(read, "intermediate_size", slice(dense)),
        routed_scaling_factor=read.real("routed_scaling_factor") or 1.0,
        norm_topk_prob=read.flag("norm_topk_prob"),
        scoring_func=_scoring_func(read, layers, vocab_size),
        n_group=n_group,
        topk_group=topk_group,
        rms_norm_eps=read.real("rms_norm_eps"),
        rope=rope,
        vocab_size=vocab_size,
        context_length=read.integer("context_length"),
        tie_word_embeddings="output.weight" not in tensors,
        num_mtp_layers=mtp,
    )


def _model_name(metadata: Mapping[str, Any], path: Path) -> str:
    for key in ("general.name", "general.basename"):
        name = text(metadata, key)
        if name and name.strip():
            return shown(name.strip())
    return shown(path.stem)


def _vocab_size(read: Reader, tensors: Mapping[str, TensorInfo]) -> int:
    """The key if present, else the token list, else the embedding's rows; they must agree."""
    listed = len(strings(read.metadata, "tokenizer.ggml.tokens") or ())
    stated = read.integer("vocab_size")
    if stated and listed and stated != listed:
        raise GGUFError(
            f"vocab_size is {stated:,}, but the file lists {listed:,} tokens; it was converted "
            "incompletely"
        )
    embedding = tensors.get("token_embd.weight")
    return stated or listed or (embedding.shape[0] if embedding else 0)


def _width(read: Reader, field: str, users: slice) -> int:
    """A feed-forward width; 0 only where no layer uses it."""
    width = read.integer(field, users)
    if width == 0 and users.stop > (users.start or 0):
        raise GGUFError(f"the metadata key {read.prefix}{KEYS[field].key} is missing or 0")
    return width


def _head_sizes(read: Reader, rope_dim: int) -> tuple[int, int]:
    """(query head, value head) sizes.

    Files in latent form store kv_lora + rope and kv_lora as key and value length and the true sizes
    under *_mla; older files store the true sizes as key and value length.
    """
    latent_form = read.integer("key_length_mla") or read.integer("value_length_mla")
    suffix = "_mla" if latent_form else ""
    qk, v = read.integer(f"key_length{suffix}"), read.integer(f"value_length{suffix}")
    if not qk or not v:
        raise GGUFError(
            f"the metadata keys {read.prefix}attention.key_length{suffix} and value_length{suffix} "
            f"are both needed; they are {qk or 'missing'} and {v or 'missing'}"
        )
    if qk <= rope_dim:
        raise GGUFError(
            f"query heads have {qk} elements, but rope.dimension_count is {rope_dim}; some must "
            "stay unrotated"
        )
    return qk, v


def _check_query_rows(
    read: Reader, rows: int, rope_dim: int, tensors: Mapping[str, TensorInfo]
) -> None:
    """Tell a head size from the cached latent's in a file without *_mla.

    The two may be equal; then the rows of the first layer's queries decide.
    """
    length = read.integer("key_length")
    if read.integer("key_length_mla") or length != read.integer("kv_lora_rank") + rope_dim:
        return
    queries = [tensors.get(f"blk.0.{name}.weight") for name in ("attn_q_b", "attn_q")]
    if not any(t is not None and t.shape[0] == rows for t in queries):
        raise GGUFError(
            f"{read.prefix}attention.key_length {length} is the size of the cached latent, and "
            "attention.key_length_mla with the head's size is missing"
        )


def _q_lora_rank(read: Reader, tensors: Mapping[str, TensorInfo]) -> int | None:
    """Decided by the tensors: converters write the key for models without the tensor, too."""
    down = tensors.get("blk.0.attn_q_a.weight")
    if down is None:
        return None
    return read.integer("q_lora_rank") or down.shape[0]


def _expert_counts(read: Reader, has_moe: bool) -> tuple[int, int, int, int]:
    """(experts, chosen per token, groups, chosen groups)."""
    experts, top_k = read.integer("n_routed_experts"), read.integer("num_experts_per_tok")
    if not has_moe:
        return 0, 0, 1, 1
    if not 1 <= top_k <= experts:
        raise GGUFError(
            f"expert_used_count is {top_k} of expert_count {experts}; 1 to {experts} is allowed"
        )
    groups = max(1, read.integer("n_group"))
    chosen = read.integer("topk_group") or groups
    if groups == 1:
        return experts, top_k, 1, 1
    if experts % groups or experts // groups < 2:
        raise GGUFError(
            f"expert_group_count {groups} does not divide {experts} experts into groups of at "
            "least 2"
        )
    if not (chosen <= groups and top_k <= chosen * (experts // groups)):
        raise GGUFError(
            f"{top_k} experts cannot be chosen from {chosen} of {groups} groups of "
            f"{experts // groups}"
        )
    return experts, top_k, groups, chosen


def _scoring_func(read: Reader, layers: int, vocab_size: int) -> Literal["softmax", "sigmoid"]:
    code = read.integer("gating")
    if code not in (0, 1, 2):
        raise UnsupportedError(
            f"{read.prefix}expert_gating_func is {code}; 1 (softmax) and 2 (sigmoid) can be run"
        )
    if code == 0:  # files older than the key: V2 is softmax, GLM-4.7-Flash is not
        return "sigmoid" if vocab_size == 154_880 and layers in (47, 48) else "softmax"
    return "sigmoid" if code == 2 else "softmax"


_SCALINGS: Final[dict[str, Literal["none", "linear", "yarn"]]] = {
    "none": "none",
    "linear": "linear",
    "yarn": "yarn",
}


def _read_rope(read: Reader) -> RopeConfig:
    dim = read.integer("qk_rope_head_dim")
    if dim % 2:
        raise GGUFError(f"rope.dimension_count is {dim}; pairs of elements are rotated")
    stored = text(read.metadata, f"{read.prefix}rope.scaling.type")
    stored = "linear" if stored is None else stored
    if stored not in _SCALINGS:
        raise UnsupportedError(
            f"{read.prefix}rope.scaling.type is {described(stored)}; none, linear and yarn can be "
            "run"
        )
    scaling = _SCALINGS[stored]
    factor = read.real("factor") or read.real("factor_old") or 1.0
    if scaling == "none" or (scaling == "linear" and factor == 1.0):
        scaling, factor = "none", 1.0
    ext_factor = read.real("ext_factor")
    return RopeConfig(
        theta=read.real("theta"),
        dim=dim,
        scaling=scaling,
        factor=factor,
        original_context_length=read.integer("original_context_length")
        or read.integer("context_length"),
        log_multiplier=read.real("log_multiplier") or None,
        attn_factor=read.real("attn_factor"),
        beta_fast=read.real("beta_fast"),
        beta_slow=read.real("beta_slow"),
        ext_factor=ext_factor if ext_factor >= 0.0 else float(scaling == "yarn"),
    )
