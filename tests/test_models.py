"""The forward pass against llama.cpp and a plain numpy twin, on small random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import llama_logits
import numpy as np
import pytest
import reference
import tiny_gguf
from tiny_gguf import TinyModel

from offload.config import ModelConfig
from offload.devices import cpu_attention, open_ops
from offload.gguf import GGUFFile
from offload.kv_cache import KVCache
from offload.models import ARCHITECTURES
from offload.models.deepseek2 import DeepSeek2
from offload.weights import WeightStore
from quant.ggml import GGMLType as G

N = 70  # tokens; more than one of the attention kernels' blocks of 64 positions
CHUNKS = (1, 17)
IDS = np.random.default_rng(7).integers(0, 256, N)

SMALL = TinyModel(
    hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32, dense_width=64
)
# llama.cpp looks for attn_q in models of 27 layers
LITE = replace(
    SMALL, layers=27, q_lora=None, sigmoid=False, bias=False, normalise=False, scale=1.0, shared=2
)
ODD = TinyModel(
    hidden=72, heads=3, q_lora=36, kv_lora=40, nope=20, rope=12, v=28, experts=6, top_k=3,
    width=24, dense_width=40,
)  # fmt: skip
FLOATS = {
    "default": TinyModel(),
    "lite": LITE,
    "groups": TinyModel(groups=(4, 2), seed=1),
    "softmax groups": replace(SMALL, sigmoid=False, groups=(4, 2), scale=16.0, seed=2),
    "legacy kv_b, tied": TinyModel(legacy_kv_b=True, tied=True),
    "legacy, head as long as a cache row": replace(SMALL, legacy_kv_b=True),
    "fused gate and up": TinyModel(fused_gate_up=True),
    "yarn": TinyModel(yarn=(8.0, 16, 0.1)),
    "yarn, V2's multiplier": replace(SMALL, yarn=(40.0, 64, 0.0707), theta=10_000.0),
    "yarn without multiplier": TinyModel(yarn=(8.0, 16, None)),
    "MTP": replace(SMALL, mtp=1),
    "no dense layer, top 1": replace(SMALL, dense=0, top_k=1, scale=0.0),
    "dense only": replace(SMALL, dense=3),
    "every expert": replace(SMALL, layers=2, top_k=8, normalise=False),
    "odd sizes": ODD,
    "odd sizes, legacy, fused": replace(ODD, legacy_kv_b=True, fused_gate_up=True, shared=2),
}
# The shapes of models that people run, at small sizes, with what is peculiar to each.
PUBLISHED = {
    # 20 heads of 192 + 64 and values of 256: a value is wider than the part without rotation; by
    # size of vocabulary and number of layers, sigmoid where the key is missing
    "GLM-4.7-Flash": replace(
        SMALL, layers=47, hidden=32, q_lora=32, kv_lora=32, nope=12, rope=4, v=16, experts=6,
        width=32, dense_width=32, scale=1.8, tied=True, gating_key=False, fillers=154_612,
        theta=1e6,
    ),
    # 26 layers without q_lora, values of 192
    "GigaChat3-10B": replace(
        SMALL, layers=26, q_lora=None, nope=32, v=48, theta=100_000.0, yarn=(40.0, 4096, 0.1)
    ),
    # no experts at all, and the head is the embedding
    "Youtu-LLM-2B": replace(
        SMALL, dense=3, experts=0, top_k=0, shared=0, gating_key=False, tied=True, theta=1.6e6
    ),
    "Moonlight-16B": replace(SMALL, layers=27, q_lora=None, shared=2, scale=2.446),
}  # fmt: skip
PUBLISHED["GLM-4.7-Flash with MTP"] = replace(PUBLISHED["GLM-4.7-Flash"], mtp=1, tied=False)
NO_SHARED = replace(SMALL, shared=0)  # llama.cpp wants a shared expert

MIXED = {
    "attn_k_b": G.Q8_0,
    "attn_v_b": G.Q8_0,
    "attn_kv_b": G.Q8_0,
    "attn": G.Q4_K,
    "down_exps": G.Q4_K,
    "_exps": G.IQ2_XXS,
    "ffn": G.Q4_K,
    "embd": G.Q8_0,
    "output": G.Q8_0,
}
TERNARY = MIXED | {"_exps": G.TQ1_0}
QUANTISED = {
    "mixed": TinyModel(types=MIXED, seed=2, experts=32, top_k=6),
    "ternary, yarn, groups": TinyModel(
        types={"down_exps": G.TQ1_0} | TERNARY, seed=3, yarn=(40.0, 64, 0.1), groups=(4, 2)
    ),
    "legacy, fused, softmax": TinyModel(
        types={"_exps": G.Q2_K} | MIXED, seed=4, legacy_kv_b=True, fused_gate_up=True, sigmoid=False
    ),
}

Write = Callable[..., Path]
Model = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A file per model, written once."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def get(m: TinyModel, **options: bool) -> Path:
        key = f"{m}{options}"
        if key not in made:
            made[key] = tiny_gguf.write(folder / f"{len(made)}.gguf", m, **options)
        return made[key]

    return get


@contextmanager
def opened(path: Path, threads: int = 2) -> Iterator[DeepSeek2]:
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        ops = open_ops("cpu", threads)
        try:
            yield ARCHITECTURES[config.architecture](config, WeightStore(file, config), ops)
        finally:
            ops.close()


def run(model: DeepSeek2, ids: np.ndarray, step: int | None = None, kv: str = "f32") -> np.ndarray:
    """Logits of all positions, `step` tokens per forward pass."""
    cache = KVCache(model.config, len(ids), kv)
    step = step or len(ids)
    parts = [
        model.forward(ids[i : i + step], cache, all_logits=True) for i in range(0, len(ids), step)
    ]
    return np.concatenate(parts)


def ours(path: Path, ids: np.ndarray, *, threads: int = 2, **how: object) -> np.ndarray:
    with opened(path, threads) as model:
        return run(model, ids, **how)


def error(x: np.ndarray, exact: np.ndarray) -> float:
    """Relative L2 distance."""
    exact = exact.astype(np.float64)
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


# --- float files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOATS)
def test_float_model_agrees_with_llama_cpp(name: str, write: Write) -> None:
    path = write(FLOATS[name])
    assert error(ours(path, IDS), llama_logits.logits(path, IDS)) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_agree_with_llama_cpp(name: str, write: Write) -> None:
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
def test_float_model_agrees_with_float64_numpy(m: TinyModel, write: Write) -> None:
    exact = reference.forward(m, tiny_gguf.stored_values(m), IDS[:40])
    assert error(ours(write(m), IDS[:40]), exact) < 1e-5


@pytest.mark.parametrize("m", [FLOATS["default"], ODD], ids=["default", "odd sizes"])
def test_float_model_prefill_equals_single_steps(m: TinyModel, write: Write) -> None:
    with opened(write(m)) as model:
        whole = run(model, IDS)
        for step in CHUNKS:
            np.testing.assert_array_equal(run(model, IDS, step), whole)


def test_multi_token_prediction_layers_change_nothing(write: Write) -> None:
    with_tail, without = write(FLOATS["MTP"]), write(SMALL)
    with opened(with_tail) as model:
        assert len(model._layers) == SMALL.layers
        got = run(model, IDS)
    # the random numbers of the tail come last, so both files have the same trunk
    np.testing.assert_array_equal(got, ours(without, IDS))


def test_long_float_prompt_agrees_with_llama_cpp(write: Write) -> None:
    m = replace(SMALL, layers=2, yarn=(8.0, 512, 0.1))
    path = write(m)
    ids = np.random.default_rng(8).integers(0, 256, 4096)
    exact = llama_logits.logits(path, ids)
    with opened(path) as model:
        assert error(run(model, ids, 512), exact) < 1e-5
        # one token after 4,095, in the cache's last row
        cache = KVCache(model.config, 4096, "f32")
        for i in range(0, 4095, 585):
            model.forward(ids[i : min(i + 585, 4095)], cache)
        last = model.forward(ids[-1:], cache)
        assert cache.length == 4096
    assert error(last[0], exact[-1]) < 1e-5


def test_half_cache_is_as_near_as_llama_cpps(write: Write) -> None:
    path = write(FLOATS["yarn"])
    exact = llama_logits.logits(path, IDS)
    theirs = error(llama_logits.logits(path, IDS, "f16"), exact)
    assert error(ours(path, IDS, kv="f16"), exact) <= 1.05 * theirs


def test_q8_0_cache_is_nearer_than_llama_cpps(write: Write) -> None:
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
    m: TinyModel, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(write(m)) as model:
        absorbed = run(model, IDS)
        monkeypatch.setattr(cpu_attention, "_absorbed", cpu_attention._expanded)
        for step in (1, 23, N):
            assert error(run(model, IDS, step), absorbed) < 1e-5
        assert error(run(model, IDS, 23, "f16"), absorbed) < 5e-3  # f16 rounding of the cache


def test_attention_beyond_the_exact_context_is_expanded(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    whole = cpu_attention._expanded
    monkeypatch.setattr(cpu_attention, "EXACT_CONTEXT", 32)
    monkeypatch.setattr(
        cpu_attention, "_expanded", lambda *a: (called.append(len(a[1])), whole(*a))[1]
    )
    path = write(FLOATS["default"])
    exact = llama_logits.logits(path, IDS)
    assert error(ours(path, IDS, step=5), exact) < 1e-5
    assert not called  # few tokens do not pay for the expansion
    assert error(ours(path, IDS), exact) < 1e-5
    assert called == [N] * 3  # layers


# --- quantised files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_prefill_equals_single_steps_bit_for_bit(name: str, write: Write) -> None:
    with opened(write(QUANTISED[name])) as model:
        for kv in ("f32", "f16", "q8_0"):
            whole = run(model, IDS, None, kv)
            for step in CHUNKS:
                np.testing.assert_array_equal(run(model, IDS, step, kv), whole)


@pytest.mark.parametrize("name", ["mixed", "ternary, yarn, groups"])
def test_results_do_not_depend_on_the_number_of_threads(name: str, write: Write) -> None:
    path = write(QUANTISED[name])
    alone = ours(path, IDS, threads=1, step=17)
    for threads in (2, 3):
        np.testing.assert_array_equal(ours(path, IDS, threads=threads, step=17), alone)


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


def test_quantised_error_is_at_most_llama_cpps(write: Write) -> None:
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


NARROW = {  # rows here are too short for blocks of 256
    "attn_k_b": G.F32,
    "attn": G.Q8_0,
    "_exps": G.Q4_0,
    "ffn": G.Q8_0,
    "embd": G.Q8_0,
    "output": G.Q8_0,
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "MTP" not in name])
def test_quantised_published_shapes_are_within_the_bar(name: str, write: Write) -> None:
    """All experts work on every token: dozens of layers would amplify a single flipped one."""
    m = PUBLISHED[name]
    m = replace(m, types=NARROW, top_k=m.experts, fillers=0, gating_key=bool(m.experts))
    ids = IDS[:32]
    exact = llama_logits.logits(write(m, dequantized=True), ids)
    path = write(m)
    assert error(ours(path, ids), exact) <= 0.8 * error(llama_logits.logits(path, ids), exact)


# --- how tensors lie in the file --------------------------------------------------------------


@pytest.mark.parametrize("m", [ODD, QUANTISED["mixed"]], ids=["odd sizes", "mixed"])
def test_unaligned_tensors_give_the_same_logits(m: TinyModel, write: Write) -> None:
    expected = ours(write(m), IDS)
    path = write(replace(m, alignment=1))
    with GGUFFile.open(path) as file:
        assert any(file.raw(name).ctypes.data % 4 for name in file.tensors)
    np.testing.assert_array_equal(ours(path, IDS), expected)
