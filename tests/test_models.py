"""The forward pass against llama.cpp and a plain numpy twin, on small random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import llama_logits
import numpy as np
import pytest
import reference
import tiny_gguf
from small_models import (
    FLOATS,
    IDS,
    MIXED,
    NARROW,
    NO_SHARED,
    ODD,
    PUBLISHED,
    QUANTISED,
    SMALL,
    Files,
    N,
    opened,
    piece,
    run,
)
from tiny_gguf import TinyModel

from offload import batch
from offload.gguf import GGUFFile
from offload.plan import KVType
from quant.ggml import GGMLType as G


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


def ours(path: Path, ids: np.ndarray, kv: KVType = "f32", step: int | None = None) -> np.ndarray:
    with opened(path, kv) as model:
        return run(model, ids, step)


def error(x: np.ndarray, exact: np.ndarray) -> float:
    """Relative L2 distance."""
    exact = exact.astype(np.float64)
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


# --- float files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOATS)
def test_float_model_agrees_with_llama_cpp(name: str, write: Files) -> None:
    path = write(FLOATS[name])
    assert error(ours(path, IDS), llama_logits.logits(path, IDS)) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_agree_with_llama_cpp(name: str, write: Files) -> None:
    m = PUBLISHED[name]
    path, ids = write(m), IDS[:20]
    with opened(path) as model:
        got = run(model, ids)
        assert (model.config.num_layers, model.config.num_mtp_layers) == (m.layers, m.mtp)
        if m.experts:
            assert model.config.scoring_func == "sigmoid"
        np.testing.assert_array_equal(run(model, ids, 7), got)
    assert error(got, llama_logits.logits(path, ids)) < 1e-5


@pytest.mark.parametrize("m", [*FLOATS.values(), NO_SHARED], ids=[*FLOATS, "no shared expert"])
def test_float_model_agrees_with_float64_numpy(m: TinyModel, write: Files) -> None:
    exact = reference.forward(m, tiny_gguf.stored_values(m), IDS[:40])
    assert error(ours(write(m), IDS[:40]), exact) < 1e-5


def test_multi_token_prediction_layers_change_nothing(write: Files) -> None:
    with_tail, without = write(FLOATS["MTP"]), write(SMALL)
    with opened(with_tail) as model:
        assert sum(block.kind == "attention" for block in model.blocks) == SMALL.layers
        got = run(model, IDS)
    # the random numbers of the tail come last, so both files have the same trunk
    np.testing.assert_array_equal(got, ours(without, IDS))


def test_long_float_prompt_agrees_with_llama_cpp(write: Files) -> None:
    m = replace(SMALL, layers=2, yarn=(8.0, 512, 0.1))
    path = write(m)
    ids = np.random.default_rng(8).integers(0, 256, 4096)
    exact = llama_logits.logits(path, ids)
    with opened(path, context=4096) as model:
        assert error(run(model, ids, 512), exact) < 1e-5
        last = piece(model, ids, 4095, 4096)  # alone, in the slot's last row
    assert error(last[0], exact[-1]) < 1e-5


def test_half_cache_is_as_near_as_llama_cpps(write: Files) -> None:
    path = write(FLOATS["yarn"])
    exact = llama_logits.logits(path, IDS)
    theirs = error(llama_logits.logits(path, IDS, "f16"), exact)
    assert error(ours(path, IDS, kv="f16"), exact) <= 1.05 * theirs


def test_q8_0_cache_is_nearer_than_llama_cpps(write: Files) -> None:
    """All experts work on every token: a flipped one would hide what the cache's rounding does."""
    path = write(replace(FLOATS["yarn"], rope=32, top_k=16))  # llama.cpp wants rows of whole blocks
    exact = llama_logits.logits(path, IDS)
    theirs = error(llama_logits.logits(path, IDS, "q8_0"), exact)
    assert error(ours(path, IDS, kv="q8_0"), exact) <= 0.9 * theirs


# --- expanded attention -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "m",
    [FLOATS["default"], ODD, FLOATS["legacy kv_b, tied"]],
    ids=["default", "odd sizes", "legacy"],
)
def test_expanded_attention_agrees_with_absorbed(
    m: TinyModel, write: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(m)
    absorbed = ours(path, IDS)
    monkeypatch.setattr(batch, "EXACT_CONTEXT", 0)
    for kv, tolerance in (("f32", 1e-5), ("f16", 5e-3)):  # f16: rounding of the cache
        with opened(path, kv) as model:
            got = run(model, IDS, 23, expanded=((0, N),))
            assert error(got, absorbed) < tolerance
            assert not np.array_equal(got, absorbed)


# --- quantised files --------------------------------------------------------------------------


ROUTED = (G.Q4_K, G.IQ2_XXS, G.TQ1_0, G.Q2_K)
SEEDS = range(4)


def random_model(seed: int) -> TinyModel:
    """Mixed types and shapes; what llama.cpp does well and badly alike."""
    return TinyModel(
        types={"_exps": ROUTED[seed % 4]} | MIXED,
        seed=seed,
        layers=(3, 4)[seed % 2],
        experts=(16, 32, 24)[seed % 3],
        top_k=(4, 6, 8)[seed % 3],
        groups=((1, 1), (4, 2))[seed % 2],
        yarn=(None, (40.0, 64, 0.1))[seed // 2 % 2],
        sigmoid=seed % 4 != 3,
    )


def test_quantised_error_is_at_most_llama_cpps(write: Files) -> None:
    """Both against the same weights as float32; a flipped expert makes single models noisy."""
    ratios = {"f32": [], "f16": []}
    for seed in SEEDS:
        m = random_model(seed)
        ids = np.random.default_rng(seed).integers(0, 256, 64)
        path = write(m)
        exact = llama_logits.logits(write(m, dequantized=True), ids)
        for kv, list_ in ratios.items():
            theirs = error(llama_logits.logits(path, ids, kv), exact)
            list_.append(error(ours(path, ids, kv=kv), exact) / theirs)
    for kv, list_ in ratios.items():
        assert np.median(list_) <= 0.8, (kv, list_)
        assert max(list_) <= 1.05, (kv, list_)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "MTP" not in name])
def test_quantised_published_shapes_are_within_the_bar(name: str, write: Files) -> None:
    """All experts work on every token: dozens of layers would amplify a single flipped one."""
    m = PUBLISHED[name]
    m = replace(m, types=NARROW, top_k=m.experts, fillers=0, gating_key=bool(m.experts))
    ids = IDS[:32]
    exact = llama_logits.logits(write(m, dequantized=True), ids)
    path = write(m)
    assert error(ours(path, ids), exact) <= 0.8 * error(llama_logits.logits(path, ids), exact)


# --- how tensors lie in the file --------------------------------------------------------------


@pytest.mark.parametrize("m", [ODD, QUANTISED["mixed"]], ids=["odd sizes", "mixed"])
def test_unaligned_tensors_give_the_same_logits(m: TinyModel, write: Files) -> None:
    expected = ours(write(m), IDS)
    path = write(replace(m, alignment=1))
    with GGUFFile.open(path) as file:
        assert any(file.raw(name).ctypes.data % 4 for name in file.tensors)
    np.testing.assert_array_equal(ours(path, IDS), expected)
