"""A model on the devices of a plan, ready to run: blocks made, kernels compiled.

the CPU      a stand-in compiles its kernels: not one byte of the file is read
a GPU        blocks take their weights as they are made; the model itself is tried out
both         blocks of the GPU as above; the CPU's part by a stand-in, then one row is tried out
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

from offload.config import ModelConfig
from offload.devices.base import Maker
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.hardware import HardwareProfile
from offload.models import architecture
from offload.opening import Opened
from offload.plan import BlockName, Plan
from offload.stats import LoadProgress
from offload.streaming import stream_prompts
from offload.tensor_census import Census, census
from offload.try_out import ROWS, Seen, stand_in, try_out
from offload.weights import WeightStore

Report = Callable[[LoadProgress], None]


def ready_model(
    file: GGUFFile, config: ModelConfig, plan: Plan, opened: Opened, store: WeightStore,
    hardware: HardwareProfile, report: Report,
) -> tuple[Model, Plan]:  # fmt: skip
    """The model, and the plan with what came of it."""
    seen = Seen(store)
    weights = cast("WeightStore", seen)
    tensors = census(file, config)
    on = opened.maker if plan.vram is None else told(plan, opened, tensors, report)
    blocks = architecture(config.architecture).blocks(config, weights, on)
    model = Model(config, blocks, store)
    if plan.vram is None:
        with closing(stand_in(model, seen, plan)) as trial:
            compile_kernels(model, trial, report)
        return model, plan
    total = plan.weight_bytes
    report(LoadProgress(phase="copy", done_bytes=total, total_bytes=total))
    for mapped in file.mapped:
        mapped.check_unchanged()
    if opened.hybrid is None:
        compile_kernels(model, model, report)
    else:
        notes = stream_prompts(opened.hybrid, config, tensors, plan, hardware, report)
        plan = replace(plan, outcome=(*plan.outcome, *notes))
        with closing(stand_in(model, seen, plan.on_cpu)) as trial:
            compile_kernels(model, trial, report)
        if plan.reads_ahead:  # else the trial would read from the disk
            try_out(model, 1)
    stats = model.expert_stats
    for layers in (stats.layers, {} if stats.hot is None else stats.hot.layers):
        for layer in layers.values():
            layer.uses[:] = 0  # the trial's choices are nobody's
    return model, plan


def told(
    plan: Plan, opened: Opened, tensors: Census, report: Report
) -> Callable[[BlockName, int], Maker]:
    """Where blocks are made, one after the other; reports the bytes of those before."""
    left, done = dict(tensors.blocks), 0

    def on(block: BlockName, layer: int) -> Maker:
        nonlocal done
        report(LoadProgress(phase="copy", done_bytes=done, total_bytes=plan.weight_bytes))
        done += left.pop((block, None if layer < 0 else layer), 0)
        return opened.maker(block, layer)

    return on


def compile_kernels(model: Model, trial: Model, report: Report) -> None:
    """Compile, or load from the cache, every kernel that the model needs in its context.

    trial: runs one row, a few and many; drivers and small operations are compiled so. A GPU has no
    room for a second model: the model itself does.
    """
    steps: Sequence[Callable[[], object]] = model.compile_steps()
    steps = [*steps, *(partial(try_out, trial, rows) for rows in ROWS)]
    for i, step in enumerate(steps):
        report(LoadProgress(phase="compile", done_bytes=i, total_bytes=len(steps)))
        step()
    report(LoadProgress(phase="compile", done_bytes=len(steps), total_bytes=len(steps)))
