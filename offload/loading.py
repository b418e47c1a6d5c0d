"""From a path to everything an Engine is made of: file, config, tokenizer, plan, compiled model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike

import numpy as np

from offload.checks import check_model
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.devices import open_ops
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.hub import local_path
from offload.kv_cache import KVCache
from offload.models import ARCHITECTURES
from offload.models.deepseek2 import DeepSeek2
from offload.placing import Weights
from offload.plan import KVType, Plan
from offload.planning import Wish, plan_model
from offload.stats import LoadProgress
from offload.tokenizer import Tokenizer
from offload.topology import OtherWork
from offload.weights import WeightStore

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]


def open_model(
    path: str | PathLike[str] | None, wish: Wish, report: Report
) -> tuple[GGUFFile, ModelConfig, Tokenizer, Plan, DeepSeek2]:
    """The parts of an Engine; the file is closed again if any of them cannot be made.

    Planning ends before the device is opened; from there on the plan is executed as it is.
    """
    neighbours = OtherWork()
    file = GGUFFile.open(embedded_model() if path is None else local_path(path, report))
    try:
        config, tokenizer = check_model(file)
        hardware = probe()
        others = neighbours.share(hardware.cpu.cores)
        plan = plan_model(file, config, wish, hardware, report, others)
        if plan.kv.context > config.context_length:
            log.warning(
                "a context of %d tokens is beyond the %d that the model was trained on",
                plan.kv.context,
                config.context_length,
            )
        ops = open_ops(plan.devices[0], plan.threads, plan.workers.cpu_sets)
        try:
            store = WeightStore(file, config)
            weights = Weights(file, store, config, plan, hardware.cpu.topology.nodes)
            plan = replace(plan, outcome=weights.place(ops.pool, report))
            model = ARCHITECTURES[config.architecture](config, store, ops)
            compile_kernels(model, plan.kv.context, plan.kv.kv_type, report)
        except BaseException:
            ops.close()
            raise
    except BaseException:
        file.close()
        raise
    return file, config, tokenizer, plan, model


def compile_kernels(model: DeepSeek2, context: int, kv_type: KVType, report: Report) -> None:
    """Compile, or load from the cache, every kernel that the model needs in this context."""
    steps = model.ops.compile_steps(context)
    # then drivers and small operations, by running one token and several
    steps += [partial(_try_out, model, n_tokens, kv_type) for n_tokens in (1, 2)]
    for i, step in enumerate(steps):
        report(LoadProgress(phase="compile", done_bytes=i, total_bytes=len(steps)))
        step()
    report(LoadProgress(phase="compile", done_bytes=len(steps), total_bytes=len(steps)))


def _try_out(model: DeepSeek2, n_tokens: int, kv_type: KVType) -> None:
    model.forward(np.zeros(n_tokens, np.int64), KVCache(model.config, n_tokens, kv_type))
