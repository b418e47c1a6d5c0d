"""Metadata keys of the family: `KEYS`, the one table from GGUF keys to field names, and its reader.

A key is looked up by field name, its type and range are checked, and every key that the table does
not hold is either known to have no influence, refused, or reported in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from offload.errors import GGUFError, UnsupportedError, shown
from offload.metadata import (
    checked_flag,
    checked_integer,
    checked_real,
    described,
    flag,
    positive,
    text,
)
from offload.models import ARCHITECTURES

log = logging.getLogger(__name__)

# Near relatives, so that the error can say why the file does not run.
NEIGHBOURS: Final[dict[str, str]] = {
    "deepseek": "DeepSeek V1, without latent attention",
    "deepseek32": "DeepSeek V3.2, with sparse attention",
    "deepseek4": "DeepSeek V4",
    "deepseek2-ocr": "DeepSeek-OCR, a vision model with plain attention",
    "glm-dsa": "a GLM with sparse attention",
    "kimi-linear": "Kimi Linear, with linear attention",
    "kimi-k3": "Kimi K3 (2.8T-A50B), with linear and latent attention and latent experts",
    "clip": "an image encoder (mmproj); give the language model's file instead",
}


class Key(NamedTuple):
    """One metadata key: where it is, what it may hold. `default` None means required."""

    key: str
    kind: type[int] | type[float] | type[bool]
    low: float
    high: float
    default: float | None


_WIDTH: Final = 2**24
_LISTED: Final = 8  # unknown keys in the log
KEYS: Final[dict[str, Key]] = {
    # field: key without the architecture prefix, type, allowed range, default
    "num_layers": Key("block_count", int, 1, 10_000, None),
    "num_mtp_layers": Key("nextn_predict_layers", int, 0, 10_000, 0),
    "first_k_dense": Key("leading_dense_block_count", int, 0, 10_000, 0),
    "hidden_size": Key("embedding_length", int, 1, _WIDTH, None),
    "num_heads": Key("attention.head_count", int, 1, 65_536, None),
    "q_lora_rank": Key("attention.q_lora_rank", int, 0, _WIDTH, 0),
    "kv_lora_rank": Key("attention.kv_lora_rank", int, 1, _WIDTH, None),
    "key_length": Key("attention.key_length", int, 0, _WIDTH, 0),
    "value_length": Key("attention.value_length", int, 0, _WIDTH, 0),
    "key_length_mla": Key("attention.key_length_mla", int, 0, _WIDTH, 0),
    "value_length_mla": Key("attention.value_length_mla", int, 0, _WIDTH, 0),
    "qk_rope_head_dim": Key("rope.dimension_count", int, 2, _WIDTH, None),
    "n_routed_experts": Key("expert_count", int, 0, 65_536, 0),
    "num_experts_per_tok": Key("expert_used_count", int, 0, 65_536, 0),
    "n_shared_experts": Key("expert_shared_count", int, 0, 1_024, 0),
    "moe_intermediate_size": Key("expert_feed_forward_length", int, 0, _WIDTH, 0),
    "intermediate_size": Key("feed_forward_length", int, 0, _WIDTH, 0),
    "routed_scaling_factor": Key("expert_weights_scale", float, 0, 1e6, 0.0),
    "norm_topk_prob": Key("expert_weights_norm", bool, 0, 1, False),
    "gating": Key("expert_gating_func", int, 0, 255, 0),
    "n_group": Key("expert_group_count", int, 0, 65_536, 0),
    "topk_group": Key("expert_group_used_count", int, 0, 65_536, 0),
    "rms_norm_eps": Key("attention.layer_norm_rms_epsilon", float, 1e-13, 1, None),
    "vocab_size": Key("vocab_size", int, 0, _WIDTH, 0),
    "context_length": Key("context_length", int, 1, 2**31, None),
    "theta": Key("rope.freq_base", float, 1e-3, 1e15, 10_000.0),
    "factor": Key("rope.scaling.factor", float, 0, 1e6, 0.0),
    "factor_old": Key("rope.scale_linear", float, 0, 1e6, 0.0),  # the key's name in early files
    "original_context_length": Key("rope.scaling.original_context_length", int, 0, 2**31, 0),
    "log_multiplier": Key("rope.scaling.yarn_log_multiplier", float, 0, 1e3, 0.0),
    "attn_factor": Key("rope.scaling.attn_factor", float, 0, 1e3, 1.0),
    "beta_fast": Key("rope.scaling.yarn_beta_fast", float, 1e-3, 1e6, 32.0),
    "beta_slow": Key("rope.scaling.yarn_beta_slow", float, 1e-3, 1e6, 1.0),
    "ext_factor": Key("rope.scaling.yarn_ext_factor", float, -1e3, 1e3, -1.0),
}
# Per-layer arrays are allowed for these; all layers that use the value must agree.
_PER_LAYER: Final = ("num_heads", "moe_intermediate_size", "intermediate_size")

# Known and without influence on the forward pass of this family.
_IGNORED: Final = frozenset({
    "attention.head_count_kv",  # 1 or num_heads, whichever form the converter chose
    "rope.scaling.type",
    "rope.scaling.finetuned",
    "attention.causal",
})  # fmt: skip

# Keys that change the forward pass in ways this version does not do, unless 0 or false; a key that
# ends in a dot stands for all that begin so.
_REFUSED: Final[dict[str, str]] = {
    "attention.temperature_scale": "attention temperature by position, as in Mistral Large 3",
    "attention.temperature_length": "attention temperature by position, as in Mistral Large 3",
    "attention.sliding_window": "sliding-window attention",
    "attention.sliding_window_pattern": "sliding-window attention",
    "attention.shared_kv_layers": "layers that share one cache",
    "attention.clamp_kqv": "clamped attention inputs",
    "attention.max_alibi_bias": "positions by a bias on attention",
    "attention.scale": "an attention scale of its own",
    "attention.output_scale": "scaled attention outputs",
    "attn_logit_softcapping": "soft-capped attention logits",
    "router_logit_softcapping": "soft-capped router logits",
    "final_logit_softcapping": "soft-capped output logits",
    "logit_scale": "scaled output logits",
    "embedding_scale": "scaled embeddings",
    "residual_scale": "scaled residuals",
    "expert_group_scale": "scaled expert groups",
    "moe_latent_size": "experts on a latent vector",
    "moe_every_n_layers": "experts in some layers only",
    "interleave_moe_layer_step": "experts in some layers only",
    "swiglu_clamp_exp": "clamped expert activations",
    "swiglu_clamp_shexp": "clamped expert activations",
    "rope.scaling.alpha": "NTK-scaled rotation",
    "rope.scaling.yarn_attn_factor": "a second YaRN attention factor",
    "rope.dimension_sections": "positions in several dimensions",
    "use_parallel_residual": "parallel residuals",
    "attention.indexer.": "sparse attention with an indexer",
    "hyper_connection.": "hyper-connections",
    "kda.": "linear attention",
    "ssm.": "state-space layers",
}
_FACTORS: Final = (  # 1 leaves these without effect, too
    "attention.output_scale", "logit_scale", "embedding_scale", "residual_scale",
    "expert_group_scale", "moe_every_n_layers", "interleave_moe_layer_step",
    "rope.scaling.yarn_attn_factor",
)  # fmt: skip


def supported_architecture(metadata: Mapping[str, Any]) -> str:
    """general.architecture, if this program runs it; otherwise UnsupportedError that explains."""
    architecture = text(metadata, "general.architecture")
    if not architecture:
        raise GGUFError(
            "the file has no general.architecture; it is not a language model's file, or its "
            "first part is missing"
        )
    kind = text(metadata, "general.type")
    if architecture not in ARCHITECTURES:
        what = f" ({NEIGHBOURS[architecture]})" if architecture in NEIGHBOURS else ""
        raise UnsupportedError(
            f"the architecture is {described(architecture)}{what}; this program runs "
            f"{', '.join(ARCHITECTURES)} (Kimi K2.5 and K2, Moonlight, DeepSeek V2 to R1)"
        )
    if kind not in (None, "model"):
        raise UnsupportedError(
            f"the file is of type {described(kind)}, not a model; give the model's file"
        )
    return architecture


class Reader:
    """Typed, range-checked access to one architecture's keys."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.prefix = f"{architecture}."

    def integer(self, field: str, layers: slice | None = None) -> int:
        """A whole number; `layers` are the entries that count if it is stored per layer."""
        spec, name, value = self._stored(field, int)
        if value is None:
            return int(spec.default or 0)
        if isinstance(value, np.ndarray) and field in _PER_LAYER:
            value = self._agreed(name, value, layers or slice(None))
        return checked_integer(name, value, spec.low, spec.high)

    def real(self, field: str) -> float:
        """A finite number, or the table's default."""
        spec, name, value = self._stored(field, float)
        if value is None:
            return float(spec.default or 0.0)
        return checked_real(name, value, spec.low, spec.high)

    def flag(self, field: str) -> bool:
        """True or false, or the table's default."""
        spec, name, value = self._stored(field, bool)
        return bool(spec.default) if value is None else checked_flag(name, value)

    def _stored(self, field: str, kind: type) -> tuple[Key, str, Any]:
        """(the table's row, the key's full name, its value); None as value: take the default."""
        spec = KEYS[field]
        assert spec.kind is kind, field
        name = self.prefix + spec.key
        value = self.metadata.get(name)
        if value is None and spec.default is None:
            raise GGUFError(
                f"the metadata key {name} is missing; the file was converted incompletely"
            )
        return spec, name, value

    def _agreed(self, name: str, values: npt.NDArray[Any], layers: slice) -> Any:
        """The value that all of `layers` share, as a Python number; 0 for no layers."""
        count = positive(self.metadata, f"{self.prefix}block_count")
        if len(values) != count:
            raise GGUFError(
                f"{name} has {len(values):,} entries for {count:,} layers (block_count); the file "
                "was converted wrongly"
            )
        used = values[layers]
        if used.size == 0:
            return 0
        if used.dtype.kind in "iu" and not bool((used == used[0]).all()):
            raise UnsupportedError(
                f"{name} differs between layers ({used.min()} to {used.max()}); this version needs "
                "one value for all"
            )
        return used[0].item()


def _is_neutral(key: str, value: object) -> bool:
    if isinstance(value, np.ndarray):
        return not value.any()
    if not isinstance(value, (bool, int, float)):
        return False
    return value == 0 or (key in _FACTORS and value == 1 and value is not True)


def _reason(key: str) -> str | None:
    """Why a key cannot be run, if it is one of those."""
    if key in _REFUSED:
        return _REFUSED[key]
    return next((why for k, why in _REFUSED.items() if k[-1] == "." and key.startswith(k)), None)


def check_keys(read: Reader) -> None:
    """Check type and range of every key of the family, also of those that this file does not use.

    Refuses keys that would change the forward pass; logs those that nobody here knows.
    """
    readers = {int: read.integer, float: read.real, bool: read.flag}
    for field, spec in KEYS.items():
        if field not in _PER_LAYER:
            readers[spec.kind](field)
    if flag(read.metadata, f"{read.prefix}attention.causal") is False:
        raise UnsupportedError(
            f"{read.prefix}attention.causal is False: tokens that see later ones, which this "
            "version cannot run"
        )
    flag(read.metadata, f"{read.prefix}rope.scaling.finetuned")
    _check_other_keys(read)


def _check_other_keys(read: Reader) -> None:
    known = {spec.key for spec in KEYS.values()} | _IGNORED
    unknown = []
    for name, value in read.metadata.items():
        key = name.removeprefix(read.prefix)
        if key == name or key in known:
            continue
        reason = _reason(key)
        if reason is None:
            unknown.append(f"{shown(name)} = {described(value)}")
        elif not _is_neutral(key, value):
            raise UnsupportedError(
                f"{shown(name)} is {described(value)}: {reason}, which this version cannot run"
            )
    for line in unknown[:_LISTED]:
        log.warning("ignoring the metadata key %s", line)
    if len(unknown) > _LISTED:
        log.warning("ignoring %s more metadata keys", f"{len(unknown) - _LISTED:,}")
