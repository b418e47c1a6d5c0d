"""Weights that are infinite or not a number: named, by prompts and decoding alike."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner
from small_models import opened, piece
from tiny_gguf import TinyModel

import offload
from cli import kimi_offload
from offload.faults import scan
from offload.gguf import GGUFFile
from quant.ggml import BLOCK
from quant.ggml import GGMLType as G
from quant.run.activations import quantize, record_values

MODEL = TinyModel(
    heads=2, q_lora=256, kv_lora=256, experts=4, top_k=3, layers=2, dense_width=256, seed=5,
    types={"attn": G.Q8_0, "down_exps": G.TQ1_0, "_exps": G.Q2_K, "output": G.Q8_0, "ffn": G.Q8_0},
)  # fmt: skip
IDS = np.arange(12) + 40
FAULTS = {"nan": b"\xff\xff", "inf": b"\x00\x7c", "-inf": b"\x00\xfc"}  # float16


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("faults") / "sound.gguf", MODEL)


def float_at(kind: G) -> int:
    """Where a block's scale is (its first float, or float32 weight)."""
    return {G.Q2_K: 80, G.TQ1_0: 52}.get(kind, 0)


def damaged(sound: Path, tmp_path: Path, name: str, fault: str, row: int) -> Path:
    """A copy whose tensor has one bad scale in row `row`."""
    path = tmp_path / "damaged.gguf"
    shutil.copy(sound, path)
    with GGUFFile.open(sound) as file:
        info = file.tensors[name]
    block = BLOCK[info.ggml_type]
    at = info.offset + row * info.shape[-1] // block.size * block.n_bytes
    value = FAULTS[fault]
    if info.ggml_type == G.F32:
        value = np.float32(fault).tobytes()
    with path.open("r+b") as f:
        f.seek(at + float_at(info.ggml_type))
        f.write(value)
    return path


def run_in(path: Path, steps: list[int]) -> None:
    """Run IDS, in pieces of these lengths."""
    with opened(path) as model:
        model.kv.open(0)
        ends = np.cumsum(steps)
        for first, end in zip(ends - steps, ends, strict=True):
            model.check_logits(piece(model, IDS, int(first), int(end)))


ROWS = {  # of each tensor that the forward pass reads, one that these tokens use
    "token_embd.weight": 45, "output_norm.weight": 0, "output.weight": 7,
    "blk.0.attn_norm.weight": 0, "blk.0.attn_q_a.weight": 3, "blk.0.attn_q_a_norm.weight": 0,
    "blk.0.attn_q_b.weight": 40, "blk.0.attn_kv_a_mqa.weight": 5, "blk.1.attn_kv_a_mqa.weight": 260,
    "blk.0.attn_kv_a_norm.weight": 0, "blk.1.attn_k_b.weight": 9, "blk.1.attn_v_b.weight": 33,
    "blk.1.attn_output.weight": 200, "blk.0.ffn_norm.weight": 0, "blk.0.ffn_gate.weight": 17,
    "blk.0.ffn_up.weight": 18, "blk.0.ffn_down.weight": 19, "blk.1.ffn_gate_inp.weight": 2,
    "blk.1.exp_probs_b.bias": 0, "blk.1.ffn_gate_exps.weight": 300, "blk.1.ffn_up_exps.weight": 301,
    "blk.1.ffn_down_exps.weight": 302, "blk.1.ffn_gate_shexp.weight": 8,
    "blk.1.ffn_up_shexp.weight": 9, "blk.1.ffn_down_shexp.weight": 10,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ROWS)
def test_bad_scale_anywhere_is_named(sound: Path, tmp_path: Path, name: str, fault: str) -> None:
    path = damaged(sound, tmp_path, name, fault, ROWS[name])
    for steps in ([12], [1] * 12, [4] * 3):
        with pytest.raises(offload.GGUFError, match=name.replace(".", r"\.")) as caught:
            run_in(path, steps)
        assert "damaged" in str(caught.value)


def test_sound_model_runs(sound: Path) -> None:
    run_in(sound, [5, 1, 6])


def test_rows_of_the_test_cover_the_forward_pass(sound: Path) -> None:
    with GGUFFile.open(sound) as file:
        kinds = {name.partition("blk.")[2].partition(".")[2] or name for name in file.tensors}
    assert kinds == {name.partition("blk.")[2].partition(".")[2] or name for name in ROWS}


def test_scan_tells_matrix_and_row(sound: Path, tmp_path: Path) -> None:
    path = damaged(sound, tmp_path, "blk.1.ffn_down_exps.weight", "nan", 302)
    with GGUFFile.open(path) as file:
        found = [f for f, _ in scan(file, file.tensors["blk.1.ffn_down_exps.weight"])]
    assert str(found[-1]) == (
        "blk.1.ffn_down_exps.weight, row 46 of matrix 1 holds a value that is not a number"
    )


def test_values_beyond_the_cache_type_are_told_from_damage(tmp_path: Path) -> None:
    huge = replace(MODEL, types={}, layers=1, dense=1)
    values = tiny_gguf.tensors(huge)
    values["blk.0.attn_kv_a_norm.weight"] *= 1e30
    patch = pytest.MonkeyPatch()
    patch.setattr(tiny_gguf, "tensors", lambda m: values)
    path = tiny_gguf.write(tmp_path / "huge.gguf", huge)
    patch.undo()
    with pytest.raises(offload.OffloadError, match="--kv-type f32"), offload.load(path) as engine:
        list(engine.generate([1, 2, 3], max_tokens=2))


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 9, 17, 31])
def test_activation_that_is_not_finite_takes_its_group_along(
    planes: int, value: float, column: int
) -> None:
    x = np.linspace(-1, 1, 96, dtype=np.float32)
    x[32 + column] = value
    _, scales = record_values(quantize(x[None], planes), 96, planes)
    assert np.isnan(scales[0]).tolist() == [False, True, False]


def test_inspect_reads_all_weights_when_asked(sound: Path, tmp_path: Path) -> None:
    path = damaged(sound, tmp_path, "blk.1.ffn_down_exps.weight", "inf", 302)
    for model, code, words in (
        (sound, 0, "all weights are finite numbers"),
        (
            path,
            1,
            "damaged: blk.1.ffn_down_exps.weight, row 46 of matrix 1 holds",
        ),
    ):
        done = CliRunner().invoke(kimi_offload.kimi_offload, ["inspect", "--check", str(model)])
        assert (done.exit_code, words in done.stdout) == (code, True)
