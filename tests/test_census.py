from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import family
import pytest
from family import Sizes
from gguf_bytes import n_bytes, write_model

from offload.config import ModelConfig
from offload.gguf import GGUFFile
from offload.tensor_census import Census, Family, census, family_of
from quant.ggml import GGMLType

TOY = Sizes()


def count(tmp_path: Path, s: Sizes, *, with_config: bool = True, **forms: bool | int) -> Census:
    path = write_model(tmp_path / "m.gguf", family.metadata(s), family.tensors(s, **forms))  # type: ignore[arg-type]
    with GGUFFile.open(path) as f:
        return census(f, ModelConfig.from_gguf(f) if with_config else None)


def by_name(c: Census) -> dict[str, Family]:
    return {row.name: row for row in c.families}


def test_k25_in_numbers(tmp_path: Path) -> None:
    """The totals that the model is known by: 1.026 T weights, about 32 B active."""
    c = count(tmp_path, family.K25, weight=family.Q4_K, experts=family.IQ1_S)
    rows = by_name(c)
    assert c.n_tensors == 1096
    assert c.n_parameters == pytest.approx(1.026e12, rel=1e-3)
    assert c.active_parameters == pytest.approx(32e9, rel=0.05)
    assert rows["routed gate"].n_parameters == 60 * 384 * 2048 * 7168
    assert rows["routed gate"].bits_per_weight == 1.5625
    assert rows["routed down"].bytes_per_token == rows["routed down"].n_bytes // 48
    assert rows["router"].types == {GGMLType.F32: (120, 60 * (384 * 7168 + 384) * 4)}
    assert rows["attention"].types.keys() == {GGMLType.Q4_K, GGMLType.Q8_0}
    assert rows["embedding"].bytes_per_token == 7168 // 256 * 144
    assert rows["head"].bytes_per_token == rows["head"].n_bytes
    assert c.bytes_per_token == sum(row.bytes_per_token for row in c.families)
    assert c.bits_per_weight == pytest.approx(8 * c.n_bytes / c.n_parameters)


def test_nothing_is_counted_twice_or_lost(tmp_path: Path) -> None:
    c = count(tmp_path, TOY)
    tensors = family.tensors(TOY)
    assert c.n_bytes == sum(n_bytes(*value) for value in tensors.values())
    assert sum(row.n_bytes for row in c.families) == c.n_bytes
    assert sum(row.n_tensors for row in c.families) == c.n_tensors == len(tensors)
    assert sum(row.n_parameters for row in c.families) == c.n_parameters
    assert [row.name for row in c.families] == [
        "attention", "shared expert", "routed gate", "routed up", "routed down", "dense ffn",
        "router", "norms", "embedding", "head",
    ]  # fmt: skip
    assert sum(t.n_bytes for t in c.types.values()) == c.n_bytes


def test_without_config_the_metadata_suffice(tmp_path: Path) -> None:
    without = count(tmp_path, TOY, with_config=False)
    assert without == replace(count(tmp_path, TOY), blocks={}, vram_blocks={}, experts={})
    assert not without.blocks


def test_blocks_hold_every_byte_with_norms_where_they_are_applied(tmp_path: Path) -> None:
    c = count(tmp_path, TOY)
    assert sum(c.blocks.values()) == c.n_bytes
    assert {block for block, layer in c.blocks if layer is None} == {"embedding", "head"}
    assert {layer for block, layer in c.blocks if block == "dense"} == {0}
    assert {layer for block, layer in c.blocks if block == "routed"} == {1, 2}
    tensors = family.tensors(TOY)
    for block, names in {
        ("dense", 0): ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
        ("router", 1): ("ffn_norm", "ffn_gate_inp", "exp_probs_b"),
    }.items():
        prefixes = tuple(f"blk.{block[1]}.{name}." for name in names)
        mine = (n_bytes(*t) for name, t in tensors.items() if name.startswith(prefixes))
        assert c.blocks[block] == sum(mine)
    head = (n_bytes(*tensors[name]) for name in ("output.weight", "output_norm.weight"))
    assert c.blocks["head", None] == sum(head)


def test_fused_experts_and_tied_head(tmp_path: Path) -> None:
    plain, fused = count(tmp_path, TOY), count(tmp_path, TOY, fused=True)
    row = by_name(fused)["routed gate+up"]
    assert row.bytes_per_token == row.n_bytes // 4
    assert fused.bytes_per_token == plain.bytes_per_token
    tied = by_name(count(tmp_path, TOY, tied=True))
    assert "head" not in tied
    assert tied["embedding"].bytes_per_token == tied["embedding"].n_bytes


def test_what_the_forward_pass_leaves_aside_is_not_read(tmp_path: Path) -> None:
    whole = Sizes(layers=4)
    tensors = family.tensors(whole) | {
        "blk.3.nextn.eh_proj.weight": ((256, 512), 0),
        "blk.1.attn_kv_b.weight": ((256, 128), 0),
    }
    meta = family.metadata(whole, nextn_predict_layers=1)
    with GGUFFile.open(write_model(tmp_path / "m.gguf", meta, tensors)) as f:
        with_config, without = census(f, ModelConfig.from_gguf(f)), census(f)
    plain = count(tmp_path, TOY)
    assert with_config.bytes_per_token == plain.bytes_per_token
    assert by_name(with_config)["mtp"].bytes_per_token == 0
    assert by_name(with_config)["mtp"] == by_name(without)["mtp"]
    assert with_config.active_parameters == plain.active_parameters


def test_any_other_architecture_can_be_counted(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": ((100, 64), 1),
        "output_norm.weight": ((64,), 0),
        "blk.0.attn_q.weight": ((64, 64), 8),
        "blk.0.ssm_in.weight": ((64, 64), 8),
        "blk.0.ffn_up.weight": ((128, 64), 8),
        "v.patch_embd.weight": ((8, 64), 1),
    }
    with GGUFFile.open(write_model(tmp_path / "m.gguf", {"general.name": "x"}, tensors)) as f:
        c = census(f)
    rows = by_name(c)
    assert set(rows) == {"embedding", "norms", "attention", "dense ffn", "other"}
    assert rows["other"].n_tensors == 2
    assert c.bytes_per_token == c.n_bytes  # tied head: all is read


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with GGUFFile.open(write_model(tmp_path / "m.gguf", {"general.name": "x"}, {})) as f:
        c = census(f)
    assert (c.families, c.n_bytes, c.bits_per_weight) == ((), 0, 0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.0.attn_q_a_norm.weight", "norms"),
        ("blk.0.post_attention_norm.weight", "norms"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_kv_a_mqa.weight", "attention"),
        ("blk.0.ffn_gate.weight", "dense ffn"),
        ("blk.9.ffn_gate_inp.weight", "router"),
        ("blk.9.exp_probs_b.bias", "router"),
        ("blk.9.ffn_gate_up_exps.weight", "routed gate+up"),
        ("blk.9.ffn_down_shexp.weight", "shared expert"),
        ("blk.9.ffn_gate_inp_shexp.weight", "shared expert"),
        ("blk.61.nextn.enorm.weight", "mtp"),
        ("blk.61.attn_norm.weight", "mtp"),
        ("output.weight", "head"),
        ("mm.0.weight", "other"),
    ],
)
def test_families(name: str, expected: str) -> None:
    assert family_of(name, 61) == expected
