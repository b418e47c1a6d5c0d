"""Tensor names and shapes of the deepseek2 family (Kimi K2.5, K2, Moonlight, DeepSeek V2, V3, R1).

H hidden, A heads, V vocabulary, E experts, F expert width; shapes in numpy order.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from offload.errors import GGUFError, UnsupportedError, shown
from quant.ggml import GGMLType

if TYPE_CHECKING:
    from offload.config import ModelConfig
    from offload.gguf import TensorInfo

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

_LAYER: Final = re.compile(r"blk\.(0|[1-9][0-9]*)\.")
# Types without kernels.
_NOT_WEIGHTS: Final = frozenset(
    {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64}
)
_LISTED: Final = 5  # tensor names in one message


def expected_tensors(config: ModelConfig, present: Collection[str]) -> dict[str, Shape]:
    """Every tensor that the forward pass reads, with its shape.

    present: the names in the file; they decide between equivalent forms (split k_b and v_b or one
    kv_b, separate or fused gate and up, bias or none) and nothing else. Layers of the
    multi-token-prediction tail are not listed.
    """
    H, V = config.hidden_size, config.vocab_size
    expected: dict[str, Shape] = {"token_embd.weight": (V, H), "output_norm.weight": (H,)}
    if not config.tie_word_embeddings:
        expected["output.weight"] = (V, H)
    for layer in range(config.num_layers):
        prefix = f"blk.{layer}."
        expected |= _attention(config, prefix, present)
        if config.is_moe_layer(layer):
            expected |= _experts(config, prefix, present)
        else:
            expected |= _feed_forward(prefix, "", H, config.intermediate_size)
    return expected


def _attention(config: ModelConfig, prefix: str, present: Collection[str]) -> dict[str, Shape]:
    H, A = config.hidden_size, config.num_heads
    nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    latent, q_lora = config.kv_lora_rank, config.q_lora_rank
    shapes: dict[str, Shape] = {"attn_norm.weight": (H,)}
    if q_lora is None:
        shapes["attn_q.weight"] = (A * (nope + rope), H)
    else:
        shapes["attn_q_a.weight"] = (q_lora, H)
        shapes["attn_q_a_norm.weight"] = (q_lora,)
        shapes["attn_q_b.weight"] = (A * (nope + rope), q_lora)
    shapes["attn_kv_a_mqa.weight"] = (latent + rope, H)  # latent rows first, then rope
    shapes["attn_kv_a_norm.weight"] = (latent,)
    if has_legacy_kv_b(prefix, present):
        shapes["attn_kv_b.weight"] = (A * (nope + v), latent)  # per head: nope rows, then v rows
    else:
        shapes["attn_k_b.weight"] = (A, latent, nope)  # transposed, ready for absorption
        shapes["attn_v_b.weight"] = (A, v, latent)
    shapes["attn_output.weight"] = (H, A * v)
    shapes["ffn_norm.weight"] = (H,)
    return {prefix + name: shape for name, shape in shapes.items()}


def has_legacy_kv_b(prefix: str, present: Collection[str]) -> bool:
    """Whether a layer ('blk.3.') has only the unsplit attn_kv_b of older files."""
    split = {f"{prefix}attn_k_b.weight", f"{prefix}attn_v_b.weight"}
    return f"{prefix}attn_kv_b.weight" in present and not all(name in present for name in split)


def _feed_forward(prefix: str, suffix: str, H: int, width: int) -> dict[str, Shape]:
    return {
        f"{prefix}ffn_gate{suffix}.weight": (width, H),
        f"{prefix}ffn_up{suffix}.weight": (width, H),
        f"{prefix}ffn_down{suffix}.weight": (H, width),
    }


def _experts(config: ModelConfig, prefix: str, present: Collection[str]) -> dict[str, Shape]:
    H, E, F = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    shapes: dict[str, Shape] = {f"{prefix}ffn_gate_inp.weight": (E, H)}
    if f"{prefix}exp_probs_b.bias" in present:
        shapes[f"{prefix}exp_probs_b.bias"] = (E,)
    if f"{prefix}ffn_gate_up_exps.weight" in present:
        shapes[f"{prefix}ffn_gate_up_exps.weight"] = (E, 2 * F, H)  # gate rows first
    else:
        shapes[f"{prefix}ffn_gate_exps.weight"] = (E, F, H)
        shapes[f"{prefix}ffn_up_exps.weight"] = (E, F, H)
    shapes[f"{prefix}ffn_down_exps.weight"] = (E, H, F)
    if config.n_shared_experts:
        shapes |= _feed_forward(prefix, "_shexp", H, F * config.n_shared_experts)
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise unless the file has every tensor with the shape that the metadata promises.

    GGUFError names missing tensors or both shapes; UnsupportedError names a tensor of the trunk
    that this version would have to leave out (a bias, a scale, an unknown part).
    """
    expected = expected_tensors(config, tensors.keys())
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise GGUFError(
            f"{len(missing)} of {len(expected)} tensors are missing: {_names(missing)}; the file "
            "is incomplete or was converted wrongly"
        )
    for name, shape in expected.items():
        info = tensors[name]
        if info.shape != shape:
            raise GGUFError(
                f"{name} has shape {info.shape}, but the metadata says {shape}; the file was "
                "converted wrongly"
            )
        if info.ggml_type in _NOT_WEIGHTS:
            raise UnsupportedError(f"{name} is stored as {info.ggml_type.name}, not as weights")
    _warn_of_tail(config, tensors)
    unknown = [n for n in tensors if n not in expected and not _may_skip(n, config)]
    if unknown:
        raise UnsupportedError(
            f"this version does not know what {_names(unknown)} is for, and leaving it out would "
            "change the answers"
        )


def _warn_of_tail(config: ModelConfig, names: Collection[str]) -> None:
    """Layers of the tail carry nextn tensors; one without them may be one of the trunk's."""
    end = config.num_layers + config.num_mtp_layers
    layers = {name: int(match[1]) for name in names if (match := _LAYER.match(name))}
    tail = {n for n in layers.values() if config.num_layers <= n < end}
    tail -= {n for name, n in layers.items() if name.startswith(f"blk.{n}.nextn.")}
    if tail:
        log.warning(
            "blk.%d is left out, as nextn_predict_layers is %d, but it has no nextn tensors; if "
            "answers are odd, the metadata and the tensors do not belong together",
            min(tail),
            config.num_mtp_layers,
        )


def _may_skip(name: str, config: ModelConfig) -> bool:
    """What may be left out: all of the MTP layers, and a kv_b beside its own split form.

    Nothing else, not even what other programs leave out (rope_freqs, attn_rot_embd): converters do
    not write those for this family.
    """
    layer = _LAYER.match(name)
    if layer is None:
        return False
    number = int(layer[1])
    if number >= config.num_layers:
        return number < config.num_layers + config.num_mtp_layers
    return name == f"blk.{number}.attn_kv_b.weight"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(map(shown, names[:_LISTED])) + more
