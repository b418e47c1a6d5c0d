"""The embedded model on the CPU and on the GPU: the same tokens, experts and results.

No tokenizer: prompts are token ids. Experts must have the CPU's bits from the CPU's activations;
norms and attention may round otherwise, so that through the whole model the tokens count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import cast

import numpy as np

from offload.batch import Batch, Span
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.devices.base import Activations, WholeDevice
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row, near, same_bits
from offload.models import architecture
from offload.plan import KVSpec
from offload.weights import WeightStore

Array = np.ndarray
CONTEXT = 128
EXACT = ("embedding", "experts")
TOLERANCE = 2e-5  # norms and attention may round otherwise, and rounding to records follows
LOGITS_TOLERANCE = 1e-2  # what rounding to records costs the CPU against an exact model


def text(bench: Bench) -> Iterator[Row]:
    """Blocks, logits of a prompt, then greedy tokens."""
    with GGUFFile.open(bench.setup.model or embedded_model()) as file:
        config = ModelConfig.from_gguf(file)
        store = WeightStore(file, config)
        kv = KVSpec(context=CONTEXT, tokens=2 * CONTEXT, kv_type="f32")
        threads = max(1, min(8, (os.cpu_count() or 2) // 2))
        with (
            closing(CpuDevice(config, kv, threads)) as cpu,
            closing(CudaDevice(config, kv, gpu=bench.gpu)) as cuda,
        ):
            here = _model(config, store, cast("WholeDevice", cpu))
            there = _model(config, store, cast("WholeDevice", cuda))
            count = bench.setup.text_tokens
            ids = np.random.default_rng(3).integers(0, config.vocab_size, count)
            for step in there.compile_steps():
                step()
            for device in (cpu, cuda):
                device.kv.open(0)
            yield from _blocks(here, there, ids)
            yield _logits(here, there, ids)
            first, second = (_greedy(model, ids[:5], count) for model in (here, there))
            yield same_bits("tokens, the likeliest each time", second, first)


def _model(config: ModelConfig, store: WeightStore, device: WholeDevice) -> Model:
    blocks = architecture(config.architecture).blocks(config, store, lambda block, layer: device)
    return Model(config, blocks, store)


def _batch(ids: Sequence[int] | Array, first: int = 0, wanted: Sequence[int] = ()) -> Batch:
    span = Span(slot=0, first=first, count=len(ids))
    return Batch(spans=(span,), ids=np.asarray(ids, np.int64), wanted=np.asarray(wanted, np.int64))


def _blocks(here: Model, there: Model, ids: Array) -> Iterator[Row]:
    """Each block is given on both sides what the CPU's last one left; a line for each kind."""
    cpu, cuda = here.devices[0], there.devices[0]
    batch = _batch(ids)
    left: dict[str, list[tuple[Array, Array]]] = {}
    for device in (cpu, cuda):
        device.begin(batch)
    for i, (mine, other) in enumerate(zip(here.blocks[:-1], there.blocks[:-1], strict=True)):
        for block in (mine, other):
            block.device.segment([block]).run(lambda: None)
        exact, found = cpu.leave(here.blocks[i + 1]), cuda.leave(there.blocks[i + 1])
        left.setdefault(mine.kind, []).extend(_parts(found, exact))
        cuda.enter(exact, there.blocks[i + 1])
    for kind, pairs in left.items():
        found_all, exact_all = (
            np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1)
        )
        if kind in EXACT:
            yield same_bits(kind, found_all, exact_all)
        else:
            yield near(kind, found_all, exact_all, TOLERANCE)


def _parts(found: Activations, exact: Activations) -> Iterator[tuple[Array, Array]]:
    """What a block has made: x; a router h, the experts it chose and their weights."""
    if exact.h is None or exact.routing is None or found.h is None or found.routing is None:
        yield found.x, exact.x
        return
    yield found.h, exact.h
    yield found.routing.weights, exact.routing.weights
    chosen = found.routing.expert_ids, exact.routing.expert_ids
    yield chosen[0].astype(np.float32), chosen[1].astype(np.float32)


def _logits(here: Model, there: Model, ids: Array) -> Row:
    """Of all positions of a prompt."""
    batch = _batch(ids, wanted=range(len(ids)))
    exact, found = here.forward(batch), there.forward(batch)
    return near("logits of a prompt", found, exact, LOGITS_TOLERANCE)


def _greedy(model: Model, prompt: Array, count: int) -> Array:
    """Tokens that follow a prompt, the likeliest each time."""
    tokens: list[int] = []
    logits = model.forward(_batch(prompt, wanted=[len(prompt) - 1]))
    for position in range(len(prompt), len(prompt) + count):
        tokens.append(int(logits[0].argmax()))
        logits = model.forward(_batch(tokens[-1:], position, [0]))
    return np.array(tokens)
