"""From a path to everything an Engine is made of: file, config, tokenizer, plan, compiled model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from os import PathLike

from offload.checks import check_model
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.errors import DeviceError, GGUFError, OffloadError, PlanError
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.hardware import HardwareProfile, probe
from offload.hub import local_path
from offload.memory import keep_freed_memory
from offload.opening import Opened
from offload.placing import Weights
from offload.plan import Plan
from offload.plan_options import PlanOptions
from offload.planning import Wish, plan_model
from offload.read_ahead import ReadAhead
from offload.readying import ready_model
from offload.stats import LoadProgress
from offload.tiers import open_tier
from offload.tokenizer import Tokenizer
from offload.topology import OtherWork
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
    return replace(
        plan, remarks=(f"device {' and '.join(reversed(plan.devices))}: {why}", *plan.remarks[1:])
    )


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
        if plan.vram is not None:
            ahead = ReadAhead(weights.ahead)
        model, plan = ready_model(file, config, plan, opened, store, hardware, report)
        return plan, model, ahead or ReadAhead(weights.ahead)
    except BaseException:
        if ahead is not None:
            ahead.close()
        opened.close()
        raise
