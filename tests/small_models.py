"""Small random models for tests: shapes and types, files of them, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny_gguf
from tiny_gguf import TinyModel

from offload.batch import Batch, Runs, Span
from offload.config import ModelConfig
from offload.devices.base import Device
from offload.devices.cpu import CpuDevice
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.models import Place, architecture
from offload.plan import KVSpec, KVType
from offload.weights import WeightStore
from quant.ggml import GGMLType as G

N = 70  # tokens; more than one of the attention kernels' blocks of 64 positions
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

NARROW = {  # rows here are too short for blocks of 256
    "attn_k_b": G.F32,
    "attn": G.Q8_0,
    "_exps": G.Q4_0,
    "ffn": G.Q8_0,
    "embd": G.Q8_0,
    "output": G.Q8_0,
}
MIXES = {
    "halves": TinyModel(types={"_exps": G.F16, "attn": G.BF16, "ffn": G.F16}, seed=5),
    "float gate, quantised up and down": TinyModel(
        types={"up_exps": G.Q4_K, "down_exps": G.Q8_0, "ffn_up": G.Q4_K, "ffn_down": G.F16}, seed=6
    ),
    "quantised gate, float down": TinyModel(
        types={"gate_exps": G.Q2_K, "up_exps": G.TQ1_0, "ffn_gate": G.Q8_0, "attn_q_a": G.Q4_K},
        seed=7,
    ),
    "odd heads": replace(
        ODD,
        types={"ffn": G.Q8_0, "attn_q": G.Q8_0, "attn_kv_a": G.Q8_0},
        hidden=96,
        q_lora=64,
        width=32,
        dense_width=64,
    ),
    "short heads": replace(
        FLOATS["default"], heads=4, v=16, types={"attn_k_b": G.F32, "attn": G.Q8_0}
    ),
    "no shared expert": NO_SHARED,
}
LEFT_OUT = ("lite", "yarn, V2's multiplier", "MTP")  # like others here, but for their tables
# what the bits of all kinds of layers are tested with
MODELS = {k: m for k, m in FLOATS.items() if k not in LEFT_OUT} | QUANTISED | MIXES
MODELS["lite"] = replace(FLOATS["lite"], layers=3)

Open = Callable[[ModelConfig, KVSpec], tuple[list[Device], Place]]


class Files:
    """A file per model in `folder`, written once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def __call__(self, m: TinyModel, **options: bool) -> Path:
        key = f"{m}{options}"
        if key not in self._made:
            path = self._folder / f"{len(self._made)}.gguf"
            self._made[key] = tiny_gguf.write(path, m, **options)
        return self._made[key]


def cpu(threads: int) -> Open:
    """Everything on the CPU."""

    def devices(config: ModelConfig, kv: KVSpec) -> tuple[list[Device], Place]:
        device = CpuDevice(config, kv, threads)
        return [device], lambda *_: device

    return devices


@contextmanager
def opened(
    path: Path, kv: KVType = "f32", devices: Open | None = None, context: int = 128
) -> Iterator[Model]:
    """A model; without `devices` on the CPU's two threads."""
    spec = KVSpec(context=context, tokens=context, kv_type=kv)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        made, on = (devices or cpu(2))(config, spec)
        try:
            store = WeightStore(file, config)
            yield Model(config, architecture(config.architecture).blocks(config, store, on), store)
        finally:
            for device in made:
                device.close()


def run(
    model: Model, ids: np.ndarray, step: int | None = None, slot: int = 0, expanded: Runs = ()
) -> np.ndarray:
    """Logits of all positions, `step` tokens per forward pass, in a new slot that stays open."""
    model.kv.open(slot)
    step = step or len(ids)
    return np.concatenate(
        [
            piece(model, ids, i, min(i + step, len(ids)), slot, expanded)
            for i in range(0, len(ids), step)
        ]
    )


def piece(
    model: Model, ids: np.ndarray, first: int, end: int, slot: int = 0, expanded: Runs = ()
) -> np.ndarray:
    """Logits of positions first .. end - 1."""
    span = Span(slot=slot, first=first, count=end - first, expanded=expanded)
    return model.forward(Batch(spans=(span,), ids=ids[first:end], wanted=np.arange(end - first)))
