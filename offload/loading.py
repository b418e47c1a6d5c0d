"""From a path to everything an Engine is made of: file, config, tokenizer, plan, compiled model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike

import numpy as np

from offload.batch import Batch
from offload.checks import check_model
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.devices import open_device
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.hub import local_path
from offload.models import architecture
from offload.placing import Weights
from offload.plan import Plan
from offload.planner import PlanOptions, make_plan, used_bytes
from offload.stats import LoadProgress
from offload.tensor_census import census
from offload.tokenizer import Tokenizer
from offload.topology import OtherWork
from offload.weights import WeightStore

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]


def open_model(
    path: str | PathLike[str] | None, options: PlanOptions, report: Report
) -> tuple[GGUFFile, ModelConfig, Tokenizer, Plan, Model]:
    """The parts of an Engine; the file is closed again if any of them cannot be made."""
    neighbours = OtherWork()
    file = GGUFFile.open(embedded_model() if path is None else local_path(path, report))
    try:
        config, tokenizer = check_model(file)
        hardware = probe()
        tensors = census(file, config)
        plan = make_plan(config, tensors, hardware, options)
        if plan.kv.context > config.context_length:
            log.warning(
                "a context of %d tokens is beyond the %d that the model was trained on",
                plan.kv.context,
                config.context_length,
            )
        others = neighbours.share(hardware.cpu.cores)
        cpus, why = hardware.pinning(plan.threads, options.pin, others)
        plan = replace(plan, notes=(*plan.notes, f"threads: {why}"))
        device = open_device(options.device, config, plan.kv, plan.threads, cpus)
        try:
            store = WeightStore(file, config)
            weights = Weights(file, store, config, hardware, options)
            plan = weights.place(plan, used_bytes(tensors), device.pool, report)
            blocks = architecture(config.architecture).blocks
            model = Model(config, blocks(config, store, lambda *_: device), store)
            compile_kernels(model, report)
        except BaseException:
            device.close()
            raise
    except BaseException:
        file.close()
        raise
    return file, config, tokenizer, plan, model


def compile_kernels(model: Model, report: Report) -> None:
    """Compile, or load from the cache, every kernel that the model needs in its context."""
    steps = model.compile_steps()
    # then drivers and small operations, by running one row, a few and many
    steps += [partial(_try_out, model, rows) for rows in (1, 2, 9) if rows <= model.kv.context]
    for i, step in enumerate(steps):
        report(LoadProgress(phase="compile", done_bytes=i, total_bytes=len(steps)))
        step()
    report(LoadProgress(phase="compile", done_bytes=len(steps), total_bytes=len(steps)))


def _try_out(model: Model, n_tokens: int) -> None:
    model.kv.open(0)
    try:
        model.forward(Batch.of(np.zeros(n_tokens, np.int64)))
    finally:
        model.kv.close(0)
