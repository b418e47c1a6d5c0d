"""From a model's file and a wish to the final Plan: made, refined, or read and checked.

After this nothing is decided any more: loading.py and placing.py execute the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike

from offload.arguments import check_type, path_argument
from offload.config import ModelConfig
from offload.cpu_plan import within
from offload.devices import resolve
from offload.errors import PlanError, shown
from offload.expert_layout import Packable, Speeds, packable_layers
from offload.gguf import GGUFFile
from offload.gpu_plan import Gpus
from offload.gpu_plan_check import without_packed
from offload.hardware import HardwareProfile
from offload.hardware import gpus as found_gpus
from offload.packing import measure
from offload.plan import Plan, Workers
from offload.plan_check import checked_plan
from offload.plan_json import read_plan
from offload.plan_options import PlanOptions
from offload.planner import make_plan, refine
from offload.stats import LoadProgress
from offload.tensor_census import census
from offload.weights import WeightStore
from quant.run.pool import Pool

Report = Callable[[LoadProgress], None]
Wish = PlanOptions | Plan | str | PathLike[str]


def plan_model(
    file: GGUFFile,
    config: ModelConfig,
    wish: Wish,
    hardware: HardwareProfile,
    report: Report = lambda progress: None,
    others: float | None = None,
    gpus: Gpus | None = None,
) -> Plan:
    """The plan that `load` executes: as PlanOptions ask for, or a given one (a Plan, its file).

    Measures for 0.2 s where the layout of large experts is left to us; places nothing. others:
    share of the cores that other programs use, if known. gpus: None: looks for them, unless it is
    the CPU that is asked for. PlanError, DeviceError.
    """
    check_type("file", file, GGUFFile)
    check_type("config", config, ModelConfig)
    check_type("hardware", hardware, HardwareProfile)
    if isinstance(wish, PlanOptions):
        hardware = within(hardware, wish.ram)
    tensors = census(file, config)
    layers = packable_layers(WeightStore(file, config), config)
    if isinstance(wish, PlanOptions):
        if gpus is None and wish.device != "cpu":
            resolve(wish.device)
            gpus = found_gpus()
        plan = make_plan(config, tensors, hardware, wish, others, gpus if gpus is not None else ())
        speeds = partial(_measured, layers, plan.workers, report)
        plan = refine(plan, wish.layout, layers, hardware, speeds)
        if plan.has_copies and plan.packed.layers:  # the GPU takes none of these
            return without_packed(plan, config, tensors, gpus or ())
        return plan
    with _named("plan" if isinstance(wish, Plan) else _file_name(wish)):
        given = wish if isinstance(wish, Plan) else read_plan(wish)
        return checked_plan(given, config, tensors, hardware, layers, gpus or found_gpus)


def _measured(layers: list[Packable], workers: Workers, report: Report) -> Speeds:
    """With threads as the plan has them, for as long as it takes."""
    pool = Pool(workers.threads, workers.cpu_sets)
    try:
        return measure(layers, pool, report)
    finally:
        pool.close()


def _file_name(path: object) -> str:
    return shown(path_argument("plan", path, PlanError).name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a plan begin with its name."""
    try:
        yield
    except PlanError as exc:
        raise PlanError(f"{name}: {exc}") from exc
