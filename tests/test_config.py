from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import family
import gguf_bytes as gb
import numpy as np
import pytest
from family import LITE, Sizes, Tensors
from gguf_bytes import write_model

from offload.config import ModelConfig, RopeConfig
from offload.errors import GGUFError, OffloadError, UnsupportedError
from offload.gguf import GGUFFile
from offload.models.deepseek2_tensors import _NOT_WEIGHTS, expected_tensors, has_legacy_kv_b
from offload.rope import inverse_frequencies, magnitudes
from offload.tensor_census import census
from quant.ggml import BLOCK
from quant.registry import QUANT_TYPES

TOY = Sizes()


def config_of(
    tmp_path: Path, metadata: dict[str, Any], tensors: Tensors | None = None
) -> ModelConfig:
    path = write_model(tmp_path / "m.gguf", metadata, tensors or family.tensors(TOY))
    with GGUFFile.open(path) as f:
        return ModelConfig.from_gguf(f)


def toy(tmp_path: Path, **changes: Any) -> ModelConfig:
    return config_of(tmp_path, family.metadata(TOY, **changes))


def test_kimi_k25(tmp_path: Path) -> None:
    meta = family.metadata(
        family.K25,
        context_length=262_144,
        rope__scaling__type="yarn",
        rope__scaling__factor=64.0,
        rope__scaling__original_context_length=4096,
        rope__scaling__yarn_log_multiplier=0.1,
        expert_group_count=1,
        expert_group_used_count=1,
    )
    tensors = family.tensors(family.K25, weight=family.Q4_K, experts=family.IQ1_S)
    config = config_of(tmp_path, meta, tensors)
    assert config.routed_scaling_factor == pytest.approx(2.827)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.rope.log_multiplier == pytest.approx(0.1)
    assert config == ModelConfig(
        architecture="deepseek2",
        name="toy",
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
        routed_scaling_factor=config.routed_scaling_factor,
        norm_topk_prob=True,
        scoring_func="sigmoid",
        n_group=1,
        topk_group=1,
        rms_norm_eps=config.rms_norm_eps,
        rope=RopeConfig(
            theta=50_000.0,
            dim=64,
            scaling="yarn",
            factor=64.0,
            original_context_length=4096,
            log_multiplier=config.rope.log_multiplier,
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
    assert config.qk_head_dim == 192
    assert config.latent_dim == 576
    assert config.num_moe_layers == 60
    assert [config.is_moe_layer(i) for i in (0, 1)] == [False, True]


def test_deepseek_v2_lite_legacy_form_with_a_q_lora_key(tmp_path: Path) -> None:
    """No attn_q_a in the file: the key is not believed. Absent gating means softmax."""
    meta = family.metadata(
        LITE,
        legacy=True,
        attention__q_lora_rank=1536,
        expert_gating_func=None,
        expert_weights_norm=None,
        expert_weights_scale=None,
        rope__freq_base=None,
    )
    tensors = family.tensors(LITE, legacy=True, bias=False, weight=family.Q8_0, experts=8)
    config = config_of(tmp_path, meta, tensors)
    assert config.q_lora_rank is None
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim) == (128, 64, 128)
    assert config.scoring_func == "softmax"
    assert config.norm_topk_prob is False
    assert config.routed_scaling_factor == 1.0
    assert config.rope.theta == 10_000.0
    assert config.rope.scaling == "none"
    assert config.n_shared_experts == 2


def test_every_number_is_a_plain_python_value(tmp_path: Path) -> None:
    per_layer = np.array([0, 256, 256], np.int32)
    config = toy(
        tmp_path,
        expert_feed_forward_length=per_layer,
        feed_forward_length=np.array([512, 0, 0], np.int32),
        attention__head_count=np.array([4, 4, 4], np.int32),
    )
    assert (config.moe_intermediate_size, config.intermediate_size, config.num_heads) == (
        256,
        512,
        4,
    )
    for record in (config, config.rope):
        for field in record.__dataclass_fields__:
            value = getattr(record, field)
            assert type(value) in (int, float, bool, str, type(None), RopeConfig), field


@pytest.mark.parametrize("legacy", [False, True], ids=["latent keys", "plain keys"])
@pytest.mark.parametrize("unsplit", [False, True], ids=["k_b and v_b", "kv_b"])
def test_key_form_and_tensor_form_are_independent(
    tmp_path: Path, legacy: bool, unsplit: bool
) -> None:
    tensors = family.tensors(TOY, legacy=unsplit)
    config = config_of(tmp_path, family.metadata(TOY, legacy=legacy), tensors)
    assert (config.qk_head_dim, config.v_head_dim) == (48, 32)
    assert has_legacy_kv_b("blk.1.", tensors) is unsplit


def test_forms_of_tensors(tmp_path: Path) -> None:
    meta = family.metadata(TOY)
    assert config_of(tmp_path, meta, family.tensors(TOY, tied=True)).tie_word_embeddings
    assert not config_of(tmp_path, meta, family.tensors(TOY)).tie_word_embeddings
    config_of(tmp_path, meta, family.tensors(TOY, fused=True))
    config_of(tmp_path, meta, family.tensors(TOY, bias=False))
    both = family.tensors(TOY) | {
        name: value
        for name, value in family.tensors(TOY, legacy=True).items()
        if name.endswith("attn_kv_b.weight")
    }
    config = config_of(tmp_path, meta, both)
    assert not any("kv_b" in name for name in expected_tensors(config, both))


def test_without_shared_experts_and_without_experts(tmp_path: Path) -> None:
    bare = Sizes(shared=0)
    assert config_of(tmp_path, family.metadata(bare), family.tensors(bare)).n_shared_experts == 0
    dense = Sizes(dense=3)
    config = config_of(tmp_path, family.metadata(dense), family.tensors(dense))
    assert config.num_moe_layers == 0
    assert config.n_routed_experts == 0
    keys = {k: v for k, v in family.metadata(dense).items() if "expert" not in k}
    assert config_of(tmp_path, keys, family.tensors(dense)).num_moe_layers == 0


def test_prediction_layers_are_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Sizes(layers=4)
    tensors = family.tensors(whole) | {"blk.3.nextn.eh_proj.weight": ((256, 512), 0)}
    meta = family.metadata(whole, nextn_predict_layers=1)
    config = config_of(tmp_path, meta, tensors)
    assert (config.num_layers, config.num_mtp_layers) == (3, 1)
    assert set(expected_tensors(config, tensors)) == set(family.tensors(TOY))
    # also when a tool has stripped them
    assert config_of(tmp_path, meta, family.tensors(TOY)).num_layers == 3
    # whatever they hold
    more = tensors | {"blk.3.nextn.new.weight": ((4,), 0), "blk.3.indexer.k.scale": ((4,), 0)}
    assert config_of(tmp_path, meta, more).num_layers == 3
    # but a layer of the trunk is not taken for one without a word
    with caplog.at_level(logging.WARNING, logger="offload"):
        assert not caplog.records
        config_of(tmp_path, meta | {"deepseek2.nextn_predict_layers": 2}, tensors)
    assert "blk.2 is left out, as nextn_predict_layers is 2, but" in caplog.text
    without = {k: v for k, v in meta.items() if "nextn" not in k}
    with pytest.raises(UnsupportedError, match="does not know what blk.3.nextn.eh_proj.weight is"):
        config_of(tmp_path, without, tensors)
    with pytest.raises(GGUFError, match="block_count counts 4 layers, but 4"):
        config_of(tmp_path, meta | {"deepseek2.nextn_predict_layers": 4}, tensors)


@pytest.mark.parametrize(
    ("code", "vocab", "layers", "expected"),
    [
        (None, 320, 3, "softmax"),
        (0, 320, 3, "softmax"),
        (1, 320, 3, "softmax"),
        (2, 320, 3, "sigmoid"),
        (None, 154_880, 47, "sigmoid"),
        (None, 154_880, 46, "softmax"),
        (1, 154_880, 47, "softmax"),
    ],
)
def test_gating(tmp_path: Path, code: int | None, vocab: int, layers: int, expected: str) -> None:
    s = Sizes(V=vocab, layers=layers)
    config = config_of(tmp_path, family.metadata(s, expert_gating_func=code), family.tensors(s))
    assert config.scoring_func == expected


def test_groups(tmp_path: Path) -> None:
    config = toy(tmp_path, expert_group_count=4, expert_group_used_count=2)
    assert (config.n_group, config.topk_group) == (4, 2)
    config = toy(tmp_path, expert_group_count=0, expert_group_used_count=0)
    assert (config.n_group, config.topk_group) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "scaling", "factor", "ext"),
    [
        ({}, "none", 1.0, 0.0),
        ({"type": "none", "factor": 8.0}, "none", 1.0, 0.0),
        ({"type": "linear", "factor": 4.0}, "linear", 4.0, 0.0),
        ({"factor": 4.0}, "linear", 4.0, 0.0),
        ({"type": "yarn", "factor": 40.0}, "yarn", 40.0, 1.0),
        ({"type": "yarn", "factor": 40.0, "yarn_ext_factor": 0.5}, "yarn", 40.0, 0.5),
        ({"type": "yarn", "factor": 0.0}, "yarn", 1.0, 1.0),
    ],
)
def test_rope_scaling(
    tmp_path: Path, changes: dict[str, Any], scaling: str, factor: float, ext: float
) -> None:
    rope = toy(tmp_path, **{f"rope__scaling__{k}": v for k, v in changes.items()}).rope
    assert (rope.scaling, rope.factor, rope.ext_factor) == (scaling, factor, ext)
    assert rope.original_context_length == 4096
    assert rope.log_multiplier is None


@pytest.mark.parametrize(("stored", "read"), [(None, None), (0.0, None), (0.125, 0.125)])
def test_log_multiplier(tmp_path: Path, stored: float | None, read: float | None) -> None:
    assert toy(tmp_path, rope__scaling__yarn_log_multiplier=stored).rope.log_multiplier == read


def test_early_name_of_the_rope_factor(tmp_path: Path) -> None:
    assert toy(tmp_path, rope__scale_linear=2.0).rope.factor == 2.0


def test_vocabulary_size(tmp_path: Path) -> None:
    assert toy(tmp_path, vocab_size=None).vocab_size == 320
    listed = family.metadata(TOY, vocab_size=None)
    listed["tokenizer.ggml.tokens"] = [f"t{i}" for i in range(320)]
    assert config_of(tmp_path, listed).vocab_size == 320
    listed["deepseek2.vocab_size"] = 321
    with pytest.raises(GGUFError, match="vocab_size is 321, but the file lists 320 tokens"):
        config_of(tmp_path, listed)


REFUSED: dict[str, tuple[dict[str, Any], type[OffloadError], str]] = {
    "no layers": ({"block_count": None}, GGUFError, "deepseek2.block_count is missing"),
    "zero layers": ({"block_count": 0}, GGUFError, "block_count is 0; 1 to 10,000"),
    "float layers": (
        {"block_count": 3.0},
        GGUFError,
        "block_count is 3.0; a whole number is expected",
    ),
    "bool layers": ({"block_count": True}, GGUFError, "is True; a whole number is expected"),
    "text layers": ({"block_count": "many"}, GGUFError, "is 'many'; a whole number is"),
    "array layers": (
        {"block_count": np.ones(3, np.int32)},
        GGUFError,
        "is an array of 3 numbers; a whole",
    ),
    "more layers": ({"block_count": 4}, GGUFError, r"missing: blk.3.attn_norm.weight"),
    "fewer layers": ({"block_count": 2}, UnsupportedError, "does not know what blk.2.attn_norm"),
    "no hidden": ({"embedding_length": None}, GGUFError, "embedding_length is missing"),
    "hidden": (
        {"embedding_length": 128},
        GGUFError,
        r"token_embd.weight has shape \(320, 256\), but the metadata says \(320, 128\)",
    ),
    "heads": ({"attention__head_count": 2}, GGUFError, "has shape"),
    "heads differ": (
        {"attention__head_count": np.array([4, 4, 2], np.int32)},
        UnsupportedError,
        r"head_count differs between layers \(2 to 4\)",
    ),
    "kv_lora": ({"attention__kv_lora_rank": 0}, GGUFError, "kv_lora_rank is 0"),
    "q_lora": ({"attention__q_lora_rank": 32}, GGUFError, "attn_q_a.weight has shape"),
    "half of mla": (
        {"attention__value_length_mla": None},
        GGUFError,
        "key_length_mla and value_length_mla are both needed; they are 48 and missing",
    ),
    "no mla": (
        {"attention__value_length_mla": None, "attention__key_length_mla": None},
        GGUFError,
        "key_length 144 is the size of the cached latent",
    ),
    "all rope": ({"attention__key_length_mla": 16}, GGUFError, "some must stay unrotated"),
    "odd rope": ({"rope__dimension_count": 15}, GGUFError, "is 15; pairs"),
    "no rope": ({"rope__dimension_count": None}, GGUFError, "dimension_count is missing"),
    "theta 0": ({"rope__freq_base": 0.0}, GGUFError, "freq_base is 0.0"),
    "theta nan": ({"rope__freq_base": float("nan")}, GGUFError, "freq_base is nan"),
    "eps inf": (
        {"attention__layer_norm_rms_epsilon": float("inf")},
        GGUFError,
        "epsilon is inf; 1e-13 to 1",
    ),
    "scaling": ({"rope__scaling__type": "longrope"}, UnsupportedError, "'longrope'; none, linear"),
    "scaling type": ({"rope__scaling__type": 3}, GGUFError, "is 3; a text is expected"),
    "top-k": ({"expert_used_count": 9}, GGUFError, "expert_used_count is 9 of expert_count 8"),
    "top-0": ({"expert_used_count": None}, GGUFError, "expert_used_count is 0"),
    "experts": ({"expert_count": 16}, GGUFError, r"has shape \(8, 256\).* \(16, 256\)"),
    "groups": ({"expert_group_count": 3}, GGUFError, "3 does not divide 8 experts"),
    "group of one": ({"expert_group_count": 8}, GGUFError, "groups of at least 2"),
    "few groups": (
        {"expert_group_count": 4, "expert_group_used_count": 1, "expert_used_count": 3},
        GGUFError,
        "3 experts cannot be chosen from 1 of 4 groups of 2",
    ),
    "many groups": (
        {"expert_group_count": 2, "expert_group_used_count": 3},
        GGUFError,
        "from 3 of 2 groups",
    ),
    "gating": ({"expert_gating_func": 3}, UnsupportedError, "expert_gating_func is 3; 1 "),
    "no width": ({"expert_feed_forward_length": None}, GGUFError, "is missing or 0"),
    "widths differ": (
        {"expert_feed_forward_length": np.array([1, 256, 128], np.int32)},
        UnsupportedError,
        r"differs between layers \(128 to 256\)",
    ),
    "shared": ({"expert_shared_count": 2}, GGUFError, "shexp.weight has shape"),
    "temperature": (
        {"attention__temperature_scale": 0.1},
        UnsupportedError,
        "temperature by position, as in Mistral Large 3",
    ),
    "temperature length": (
        {"attention__temperature_length": 8192},
        UnsupportedError,
        "temperature_length is 8192",
    ),
    "window": ({"attention__sliding_window": 512}, UnsupportedError, "sliding-window"),
    "vocabulary": ({"vocab_size": 300}, GGUFError, r"token_embd.weight has shape \(320, 256\)"),
    "context": ({"context_length": 0}, GGUFError, "context_length is 0"),
    # no value is taken for another
    "flag as number": ({"expert_weights_norm": 1}, GGUFError, "is 1; true or false is expected"),
    "flag as text": ({"expert_weights_norm": "no"}, GGUFError, "is 'no'; true or false"),
    "real as text": ({"rope__freq_base": "50000"}, GGUFError, "'50000'; a number is expected"),
    "real as flag": ({"expert_weights_scale": True}, GGUFError, "True; a number is expected"),
    "width as reals": (
        {"expert_feed_forward_length": np.array([256.0] * 3, np.float32)},
        GGUFError,
        "is 256.0; a whole number is expected",
    ),
    "heads as flags": (
        {"attention__head_count": np.array([True] * 3)},
        GGUFError,
        "is True; a whole number is expected",
    ),
    "nan heads": (
        {"attention__head_count": np.array([np.nan] * 3, np.float32)},
        GGUFError,
        "is nan; a whole number is expected",
    ),
    "heads of too few layers": (
        {"attention__head_count": np.array([4, 4], np.int32)},
        GGUFError,
        "has 2 entries for 3 layers",
    ),
    "no heads at all": (
        {"attention__head_count": np.array([], np.int32)},
        GGUFError,
        "has 0 entries for 3 layers",
    ),
    "words": ({"block_count": ["3"]}, GGUFError, "is an array of 1 strings; a whole number"),
    # nor where this file does not need the key
    "unused length": ({"attention__value_length": "wide"}, GGUFError, "'wide'; a whole number"),
    "unused factor": (
        {"rope__scaling__factor": 4.0, "rope__scale_linear": float("nan")},
        GGUFError,
        "scale_linear is nan; 0 to 1",
    ),
    "finetuned": ({"rope__scaling__finetuned": "yes"}, GGUFError, "'yes'; true or false"),
    # numbers that no rotation or norm can be computed with
    "theta 1 with YaRN": (
        {"rope__freq_base": 1.0, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
        GGUFError,
        "freq_base is 1.0; YaRN divides by its logarithm and needs more than 1",
    ),
    "theta below 1 with YaRN": (
        {"rope__freq_base": 0.5, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
        GGUFError,
        "needs more than 1",
    ),
    "eps 0": ({"attention__layer_norm_rms_epsilon": 0.0}, GGUFError, "epsilon is 0.0; 1e-13 to 1"),
    "beta": ({"rope__scaling__yarn_beta_fast": 0.0}, GGUFError, "beta_fast is 0.0; 0.001 to"),
    # a newer model under this name
    "two-sided": ({"attention__causal": False}, UnsupportedError, "causal is False: tokens that"),
    "indexer": (
        {"attention__indexer__key_length": 128},
        UnsupportedError,
        "indexer.key_length is 128: sparse attention with an indexer",
    ),
    "latent experts": ({"moe_latent_size": 1024}, UnsupportedError, "experts on a latent vector"),
    "clamped": (
        {"swiglu_clamp_exp": np.array([0, 7, 7], np.float32)},
        UnsupportedError,
        "swiglu_clamp_exp is an array of 3 numbers: clamped",
    ),
    "second factor": (
        {"rope__scaling__yarn_attn_factor": 1.25},
        UnsupportedError,
        "a second YaRN attention factor",
    ),
}


def test_names_and_token_lists_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    sound = family.metadata(TOY)
    for key, value, message in (
        ("general.architecture", 5, "general.architecture is 5; a text is expected"),
        ("general.type", ["model"], "general.type is an array of 1 strings; a text"),
        ("general.name", np.zeros(9, np.int32), "general.name is an array of 9 numbers; a text"),
        ("tokenizer.ggml.tokens", "abc", "tokens is 'abc'; an array of strings is expected"),
        ("tokenizer.ggml.tokens", np.zeros(320, np.int32), "an array of 320 numbers; an array of"),
    ):
        with pytest.raises(GGUFError, match=message):
            config_of(tmp_path, sound | {key: value})


def test_factors_of_one_and_empty_lists_change_nothing(tmp_path: Path) -> None:
    toy(
        tmp_path,
        residual_scale=1.0,
        logit_scale=1,
        rope__scaling__yarn_attn_factor=1.0,
        swiglu_clamp_exp=np.zeros(3, np.float32),
        attention__indexer__top_k=0,
    )


def test_names_from_the_file_are_shown_escaped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "\x1b[31m\n\u202e"
    meta = family.metadata(TOY) | {"general.name": f"toy{bad}", f"deepseek2.new{bad}": bad}
    with caplog.at_level(logging.WARNING, logger="offload"):
        assert config_of(tmp_path, meta).name == r"toy\x1b[31m\n\u202e"
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    for changes, tensors in (
        ({"general.architecture": bad * 50}, {}),
        ({"deepseek2.rope.scaling.type": bad}, {}),
        ({}, {f"blk.0.{bad}": ((4,), 0)}),
    ):
        with pytest.raises(OffloadError) as caught:
            config_of(tmp_path, meta | changes, family.tensors(TOY) | tensors)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_many_unknown_keys_are_a_few_lines_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = family.metadata(TOY) | {f"deepseek2.k{i}": i for i in range(1000)}
    with caplog.at_level(logging.WARNING, logger="offload"):
        config_of(tmp_path, meta)
    assert len(caplog.records) == 9
    assert caplog.records[-1].getMessage() == "ignoring 992 more metadata keys"


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_cannot_be_run_is_refused(case: str, tmp_path: Path) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        toy(tmp_path, **changes)


TENSORS_REFUSED: dict[str, tuple[Tensors, type[OffloadError], str]] = {
    "missing": (
        {k: v for k, v in family.tensors(TOY).items() if k != "blk.1.attn_k_b.weight"},
        GGUFError,
        r"1 of \d+ tensors are missing: blk.1.attn_k_b.weight; the file is incomplete",
    ),
    "many missing": (
        {k: v for k, v in family.tensors(TOY).items() if "blk.2" not in k},
        GGUFError,
        "blk.2.attn_norm.weight, .* and 1[0-9] more",
    ),
    "transposed": (
        family.tensors(TOY) | {"blk.1.attn_k_b.weight": ((4, 32, 128), 0)},
        GGUFError,
        r"blk.1.attn_k_b.weight has shape \(4, 32, 128\), but the metadata says \(4, 128, 32\)",
    ),
    "flat": (
        family.tensors(TOY) | {"output_norm.weight": ((1, 256), 0)},
        GGUFError,
        "output_norm.weight has shape",
    ),
    "bias of a projection": (
        family.tensors(TOY) | {"blk.0.attn_output.bias": ((256,), 0)},
        UnsupportedError,
        "does not know what blk.0.attn_output.bias is for",
    ),
    "scale of a tensor": (
        family.tensors(TOY) | {"blk.1.ffn_up_exps.scale": ((8,), 0)},
        UnsupportedError,
        "ffn_up_exps.scale",
    ),
    "scale of an input": (
        family.tensors(TOY) | {"blk.1.attn_output.input_scale": ((1,), 0)},
        UnsupportedError,
        "attn_output.input_scale",
    ),
    "indexer": (
        family.tensors(TOY) | {"blk.0.indexer.attn_k.weight": ((32, 256), 0)},
        UnsupportedError,
        "blk.0.indexer.attn_k.weight",
    ),
    "sinks": (
        family.tensors(TOY) | {"blk.2.attn_sinks.weight": ((4,), 0)},
        UnsupportedError,
        "blk.2.attn_sinks.weight",
    ),
    "bias of the head": (
        family.tensors(TOY) | {"output.bias": ((320,), 0)},
        UnsupportedError,
        "output.bias",
    ),
    "outside of layers": (
        family.tensors(TOY) | {"rope_freqs.weight": ((8,), 0), "hc_head.weight": ((4,), 0)},
        UnsupportedError,
        "does not know what rope_freqs.weight, hc_head.weight is for",
    ),
    "number with a zero": (
        family.tensors(TOY) | {"blk.01.attn_kv_b.weight": ((256, 128), 0)},
        UnsupportedError,
        "blk.01.attn_kv_b.weight",
    ),
    "kv_b outside": (
        family.tensors(TOY) | {"blk.9.attn_kv_b.weight": ((256, 128), 0)},
        UnsupportedError,
        "blk.9.attn_kv_b.weight",
    ),
    "no weights": (
        family.tensors(TOY) | {"extra": ((4,), 0)},
        UnsupportedError,
        "does not know what extra is for",
    ),
    "layer outside": (
        family.tensors(TOY) | {"blk.7.attn_norm.weight": ((256,), 0)},
        UnsupportedError,
        "blk.7.attn_norm.weight",
    ),
}


def test_types_without_kernels_are_refused_before_anything_runs() -> None:
    assert set(BLOCK) - set(QUANT_TYPES) == _NOT_WEIGHTS


@pytest.mark.parametrize("case", TENSORS_REFUSED)
def test_tensors_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    tensors, kind, message = TENSORS_REFUSED[case]
    with pytest.raises(kind, match=message):
        config_of(tmp_path, family.metadata(TOY), tensors)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("llama", r"'llama'; this program runs deepseek2 \(Kimi K2.5"),
        ("deepseek32", "'deepseek32' .DeepSeek V3.2, with sparse attention.; this program"),
        ("kimi-k3", r"Kimi K3 \(2.8T-A50B\)"),
        ("clip", "mmproj"),
        ("deepseek2-ocr", "DeepSeek-OCR"),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, architecture: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        config_of(tmp_path, family.metadata(TOY) | {"general.architecture": architecture})


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="no general.architecture"):
        config_of(tmp_path, {"general.name": "x"})
    with pytest.raises(UnsupportedError, match="type 'adapter', not a model"):
        config_of(tmp_path, family.metadata(TOY) | {"general.type": "adapter"})
    path = write_model(tmp_path / "vocab.gguf", family.metadata(TOY), {})
    with (
        GGUFFile.open(path) as f,
        pytest.raises(UnsupportedError, match="vocab.gguf holds no tensors"),
    ):
        ModelConfig.from_gguf(f)


def test_keys_without_influence_pass_and_unknown_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="offload"):
        toy(tmp_path, attention__temperature_scale=0.0, rope__scaling__finetuned=True)
        assert not caplog.records
        toy(tmp_path, some_new_knob=5)
    assert [r.getMessage() for r in caplog.records] == [
        "ignoring the metadata key deepseek2.some_new_knob = 5"
    ]


def test_name_falls_back_to_the_file(tmp_path: Path) -> None:
    meta = family.metadata(TOY)
    del meta["general.name"]
    assert config_of(tmp_path, meta).name == "m"


ODD: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**32 - 1,
    gb.u32(gb.U64) + gb.u64(2**64 - 1),
    gb.u32(gb.I64) + gb.scalar(gb.I64, -(2**63)),
    0.0,
    1.0,
    -1.5,
    1e-30,
    float("nan"),
    float("inf"),
    gb.u32(gb.F64) + gb.scalar(gb.F64, 1e300),
    True,
    "",
    "no",
    "yarn",
    "\x1b[31m\u202e" * 1000,
    ["a", "b"],
    np.array([], np.int32),
    np.array([1, 2, 3], np.int32),
    np.array([2, 2, 2], np.float32),
    np.array([np.nan, np.nan, np.nan], np.float32),
    np.array([True, False], np.bool_),
    gb.u32(gb.ARRAY) + gb.u32(gb.ARRAY) + gb.u64(1) + gb.array(gb.U8, [1]),
)


def test_no_value_of_any_key_escapes(tmp_path: Path) -> None:
    """Whatever a key holds: a configuration with a finite rotation, or one line of words."""
    sound = family.metadata(
        TOY,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=64,
        rope__scaling__yarn_log_multiplier=0.1,
        rope__scaling__attn_factor=1.0,
        rope__scaling__yarn_beta_fast=32.0,
        rope__scaling__yarn_beta_slow=1.0,
        rope__scaling__yarn_ext_factor=1.0,
        rope__scaling__finetuned=True,
        expert_group_count=2,
        expert_group_used_count=1,
        nextn_predict_layers=0,
        attention__temperature_scale=0.0,
    )
    sound |= {"general.type": "model", "tokenizer.ggml.tokens": ["t"] * 320, "split.count": 1}
    rows, size = gb.layout(family.tensors(TOY))
    path = tmp_path / "m.gguf"
    refused = []
    for key in sound:
        others = [gb.auto_kv(k, v) for k, v in sound.items() if k != key]
        for value in ODD:
            odd = gb.string(key) + value if isinstance(value, bytes) else gb.auto_kv(key, value)
            with path.open("wb") as file:
                file.write(gb.gguf([odd, *others], rows))
                file.truncate(file.tell() + size)
            try:
                with GGUFFile.open(path) as f:
                    census(f)
                    config = ModelConfig.from_gguf(f)
                    census(f, config)
                assert np.isfinite(inverse_frequencies(config.rope)).all()
                assert np.isfinite(magnitudes(config)).all()
            except (GGUFError, UnsupportedError) as exc:
                refused.append(str(exc))
    assert len(refused) > len(sound) * len(ODD) // 2
    assert all(message.isprintable() and len(message) < 600 for message in refused)
