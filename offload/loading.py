"""From a path to everything an Engine is made of: file, config, tokenizer, plan, compiled model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import cast

from offload.checks import check_model
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.devices.base import Maker
from offload.errors import DeviceError, GGUFError, OffloadError, PlanError
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.hardware import HardwareProfile, probe
from offload.hub import local_path
from offload.memory import keep_freed_memory
from offload.models import architecture
from offload.opening import Opened
from offload.placing import Weights
from offload.plan import BlockName, Plan
from offload.plan_options import PlanOptions
from offload.planning import Wish, plan_model
from offload.read_ahead import ReadAhead
from offload.stats import LoadProgress
from offload.tensor_census import Census, census
from offload.tiers import open_tier
from offload.tokenizer import Tokenizer
from offload.topology import OtherWork
from offload.try_out import ROWS, Seen, stand_in, try_out
from offload.weights import WeightStore
from quant.run.pool import Pool

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]


def open_model(
    path: str | PathLike[str] | None, wish: Wish, report: Report
) -> tuple[GGUFFile, ModelConfig, Tokenizer, Plan, Model, ReadAhead]:
    """The parts of an Engine; the file is closed again if any of them cannot be made.

    Planning ends before the device is opened; from there on the plan is executed as it is. Weights
    that stay mapped are still being read when this returns.
    """
    keep_freed_memory()
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
        try:
            plan, model, ahead = execute(file, config, plan, hardware, report)
        except (DeviceError, PlanError) as exc:
            if plan.vram is None or not isinstance(wish, PlanOptions) or wish.device != "auto":
                raise
            plan = plan_model(file, config, replace(wish, device="cpu"), hardware, report, others)
            plan = because(plan, f"{exc}: runs on the CPU")
            plan, model, ahead = execute(file, config, plan, hardware, report)
    except BaseException as exc:
        faults = [part.fault() for part in file.mapped] if isinstance(exc, OffloadError) else []
        file.close()
        for fault in filter(None, faults):  # what was read of it was not what is there
            raise GGUFError(fault) from exc
        raise
    return file, config, tokenizer, plan, model, ahead


def because(plan: Plan, why: str) -> Plan:
    """The plan with another reason for its device."""
    return replace(plan, remarks=(f"device {plan.devices[0]}: {why}", *plan.remarks[1:]))


def execute(
    file: GGUFFile, config: ModelConfig, plan: Plan, hardware: HardwareProfile, report: Report
) -> tuple[Plan, Model, ReadAhead]:
    """The plan, with what came of it, and the model on its devices; they are closed on errors."""
    ahead: ReadAhead | None = None
    opened = Opened(plan, config)
    try:
        store = WeightStore(file, config)
        weights = Weights(file, store, config, plan, hardware.cpu.topology.nodes)
        with closing(Pool(plan.threads, plan.workers.cpu_sets)) as pool:
            plan = replace(plan, outcome=weights.place(pool, report))
        if (tier := open_tier(file, store, config, plan)) is not None:
            plan = replace(plan, outcome=(*plan.outcome, tier.stats.decision))
        opened.set_tiers(tier)
        if plan.vram is None:
            model = cpu_model(config, plan, opened, store, report)
            return plan, model, ReadAhead(weights.ahead)
        ahead = ReadAhead(weights.ahead)
        return plan, gpu_model(file, config, plan, opened, store, report), ahead
    except BaseException:
        if ahead is not None:
            ahead.close()
        opened.close()
        raise


def cpu_model(
    config: ModelConfig, plan: Plan, opened: Opened, store: WeightStore, report: Report
) -> Model:
    """Its kernels are compiled by a stand-in: not one byte of the file is read."""
    seen = Seen(store)
    weights = cast("WeightStore", seen)
    blocks = architecture(config.architecture).blocks(config, weights, opened.maker)
    model = Model(config, blocks, store)
    with closing(stand_in(model, seen, plan)) as trial:
        compile_kernels(model, trial, report)
    return model


def gpu_model(
    file: GGUFFile,
    config: ModelConfig,
    plan: Plan,
    opened: Opened,
    store: WeightStore,
    report: Report,
) -> Model:
    """Blocks take their weights as they are made; then the model itself is tried out.

    What of it the CPU computes is compiled by a stand-in, as `cpu_model` does; a trial of one row
    is left.
    """
    total = plan.weight_bytes
    on = told(plan, opened, census(file, config), report)
    seen = Seen(store)
    weights = store if opened.hybrid is None else cast("WeightStore", seen)
    model = Model(config, architecture(config.architecture).blocks(config, weights, on), store)
    report(LoadProgress(phase="copy", done_bytes=total, total_bytes=total))
    for mapped in file.mapped:
        mapped.check_unchanged()
    if opened.hybrid is None:
        compile_kernels(model, model, report)
    else:
        with closing(stand_in(model, seen, plan.on_cpu)) as trial:
            compile_kernels(model, trial, report)
        if plan.reads_ahead:  # else the trial would read from the disk
            try_out(model, 1)
    for layer in model.expert_stats.layers.values():
        layer.uses[:] = 0  # the trial's choices are nobody's
    return model


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
    steps = model.compile_steps()
    steps += [partial(try_out, trial, rows) for rows in ROWS]
    for i, step in enumerate(steps):
        report(LoadProgress(phase="compile", done_bytes=i, total_bytes=len(steps)))
        step()
    report(LoadProgress(phase="compile", done_bytes=len(steps), total_bytes=len(steps)))
