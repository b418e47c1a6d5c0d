"""What passes the checks runs, with finite results."""

from __future__ import annotations

from pathlib import Path

import gguf_bytes as gb
import numpy as np
import pytest
import tiny_gguf
from gguf_bytes import F32, F64, U32
from rewriting import rewritten
from tiny_gguf import TinyModel

import offload
from offload import GGUFError

TINY = TinyModel(
    layers=2, hidden=32, heads=2, q_lora=None, kv_lora=32, nope=16, v=16, experts=4, top_k=2,
    width=32, dense_width=32, yarn=(8.0, 64, 0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("checks") / "sound.gguf", TINY)


EXTREMES: dict[str, dict[str, float]] = {
    "eps small": {"attention.layer_norm_rms_epsilon": 1e-12},
    "eps large": {"attention.layer_norm_rms_epsilon": 1.0},
    "theta just above 1": {"rope.freq_base": 1.0000001},
    "theta large": {"rope.freq_base": 1e15},
    "factor small": {"rope.scaling.factor": 1e-30},
    "factor large": {"rope.scaling.factor": 1e6},
    "factor 0": {"rope.scaling.factor": 0.0},
    "betas exchanged": {"rope.scaling.yarn_beta_fast": 1.0, "rope.scaling.yarn_beta_slow": 32.0},
    "betas equal": {"rope.scaling.yarn_beta_fast": 1e6, "rope.scaling.yarn_beta_slow": 1e6},
    "beta small": {"rope.scaling.yarn_beta_slow": 1e-3},
    "no rotation": {"rope.scaling.attn_factor": 0.0},
    "magnitude": {"rope.scaling.attn_factor": 1e3, "rope.scaling.yarn_log_multiplier": 1e3},
    "ramp": {"rope.scaling.yarn_ext_factor": 1e3},
    "experts loud": {"expert_weights_scale": 1e6},
    "context long": {"context_length": 2**31},
    "context one": {"context_length": 1},
    "original context": {"rope.scaling.original_context_length": 1},
    "original context long": {"rope.scaling.original_context_length": 2**31},
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_values_run_with_finite_results(case: str, sound: Path, tmp_path: Path) -> None:
    changes = {
        f"deepseek2.{key}": gb.u32(kind) + gb.scalar(kind, value)
        for key, value in EXTREMES[case].items()
        for kind in [U32 if isinstance(value, int) else F32]
    }
    path = rewritten(sound, tmp_path / "m.gguf", changes)
    with offload.load(path, threads=1, pin=False) as engine:
        ids = [1, 2, 3][: engine.plan.kv.context]
        assert np.isfinite(engine.logits(ids)).all()


def test_a_rotation_beyond_all_numbers_is_refused(sound: Path, tmp_path: Path) -> None:
    tiny = gb.u32(F64) + gb.scalar(F64, 1e-308)
    path = rewritten(sound, tmp_path / "m.gguf", {"deepseek2.rope.scaling.factor": tiny})
    with pytest.raises(GGUFError, match="scaling.factor 1e-308 give angles beyond all numbers"):
        offload.load(path)
