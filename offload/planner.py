"""make_plan(), refine(): decide where everything lives; the two steps of planning.

The first looks at nothing but its arguments. The second chooses the layout of the routed experts,
where that is left to us by a measurement that it is given. What they return is executed as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from offload.amounts import binary_amount
from offload.arguments import check_type
from offload.config import ModelConfig
from offload.cpu_plan import RESERVE, CpuSide, cpu_side, kv_in_ram, within, workers
from offload.devices import resolve
from offload.errors import PlanError, RequestError
from offload.expert_layout import LayoutOptions, Packable, Speeds, choose
from offload.gpu_plan import (
    CPU_INSTEAD,
    IN_VRAM,
    Gpus,
    LackError,
    NoGpuError,
    budget_of,
    chosen,
    gpu_remarks,
    plan_on_gpu,
)
from offload.hardware import HardwareProfile
from offload.hybrid_plan import GpuSide, gpu_side
from offload.layer_set import Layers
from offload.plan import BlockName, Packed, Placement, Plan, Prediction
from offload.plan_options import CHUNK, PlanOptions
from offload.tensor_census import Census
from offload.tiering import TierOptions, passing_bytes
from offload.vram import obstacle


def make_plan(
    config: ModelConfig,
    tensors: Census,
    hardware: HardwareProfile,
    options: PlanOptions,
    others: float | None = None,
    gpus: Gpus = "GPUs were not looked for",
) -> Plan:
    """A plan that fits this machine, every choice with its reason; PlanError if there is none.

    tensors: of the same model, made with its config. others: share of the cores that other
    programs use, if known. gpus: those that can be used, or why there is none. The routed experts'
    layout is left to `refine`: native so far.
    """
    check_type("config", config, ModelConfig)
    check_type("tensors", tensors, Census)
    check_type("hardware", hardware, HardwareProfile)
    check_type("options", options, PlanOptions)
    if not tensors.blocks:
        raise RequestError("a plan needs census(file, config), not census(file)")
    if options.chunk is not None and options.chunk < 1:
        raise PlanError(f"--chunk {options.chunk}: at least 1 token is read in one step")
    hardware = within(hardware, options.ram)
    kind, index = resolve(options.device)
    why = "as asked"
    if kind != "cpu":
        try:
            plan = _with_gpu(config, tensors, hardware, options, others, gpus)
        except NoGpuError as exc:
            if kind != "auto":
                raise exc.told(f"--device {options.device}") from exc
            why = f"{exc.why}: runs on the CPU"
        else:
            return replace(plan, remarks=(*plan.remarks, *_left_out(config, tensors)))
    return _plan_on_cpu(config, tensors, hardware, options, others, why)


def _with_gpu(
    config: ModelConfig,
    tensors: Census,
    hardware: HardwareProfile,
    options: PlanOptions,
    others: float | None,
    gpus: Gpus,
) -> Plan:
    """On a GPU as a whole if that can be, or shared with the CPU; NoGpuError."""
    kind, index = resolve(options.device)
    why = "as asked"
    if kind != "hybrid":
        try:
            return plan_on_gpu(config, tensors, options, index, gpus)
        except LackError as exc:
            if not config.n_routed_experts:
                raise
            why = exc.why
    gpu = chosen(gpus, index)
    if (why_not := obstacle(config)) is not None:
        raise NoGpuError(why_not, CPU_INSTEAD)
    budget = budget_of(config, tensors, options, gpu)
    side = gpu_side(budget, options, most=None)
    cpu = _beside(side, config, tensors, hardware, options, None)
    if cpu.tiering.tier == "disk":
        side = gpu_side(budget, options, most=cpu.tiering.chunk)
        cpu = _beside(side, config, tensors, hardware, options, side.chunk)
    device = f"cuda:{gpu.index}"
    first = f"device {device} and cpu: {gpu.name}, routed experts on the CPU: {why}"
    return Plan(
        placements=_placements(side, cpu, device, tensors),
        overrides=_overrides(side, cpu),
        cache=cpu.tiering.cache,
        hot=side.hot,
        kv=side.kv,
        vram=side.vram,
        workers=workers(hardware, options, others),
        is_locked=options.memory == "resident",
        reads_ahead=cpu.reads_ahead,
        chunk=side.chunk,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        remarks=(
            first,
            *gpu_remarks(options, index, gpus, side.vram),
            *_ram(options, hardware),
            *side.remarks,
            *cpu.remarks,
        ),
    )


def _beside(
    side: GpuSide,
    config: ModelConfig,
    tensors: Census,
    hardware: HardwareProfile,
    options: PlanOptions,
    chunk: int | None,
) -> CpuSide:
    """What is the CPU's; its slots in RAM are never asked for: those in VRAM are."""
    blocks = {key: n for key, n in tensors.blocks.items() if key not in side.share}
    asked = replace(options, tiers=TierOptions(home=options.tiers.home))
    scratch = max(0, side.chunk - CHUNK) * passing_bytes(config)
    return cpu_side(
        config, blocks, hardware, asked, side.kv_in_ram, chunk or options.chunk, scratch
    )


def _placements(
    side: GpuSide, cpu: CpuSide, device: str, tensors: Census
) -> dict[BlockName, Placement]:
    here = {block for block, _ in side.share}
    made = {}
    for block, n_bytes in tensors.block_bytes.items():
        if block in here:
            made[block] = Placement(device=device, tier="vram", n_bytes=n_bytes, why=IN_VRAM)
        elif block in side.left:
            made[block] = replace(cpu.placements[block], why=side.left[block].why)
        else:
            made[block] = cpu.placements[block]
    return made


def _overrides(side: GpuSide, cpu: CpuSide) -> dict[BlockName, dict[Layers, Placement]]:
    here = {block for block, _ in side.share}
    return {
        block: {left.layers: replace(cpu.placements[block], why=left.why)}
        for block, left in side.left.items()
        if block in here and left.layers is not None
    }


def _ram(options: PlanOptions, hardware: HardwareProfile) -> list[str]:
    if options.ram is None:
        return []
    return [f"RAM: {binary_amount(hardware.cpu.ram_free)}, as asked"]


def _plan_on_cpu(
    config: ModelConfig,
    tensors: Census,
    hardware: HardwareProfile,
    options: PlanOptions,
    others: float | None,
    why: str,
) -> Plan:
    """why: it is the CPU."""
    remarks = [f"device cpu: {why}"]
    if options.vram is not None:
        remarks.append("--vram: without effect on the CPU")
    kv = kv_in_ram(config, tensors, hardware, options)
    side = cpu_side(config, tensors.blocks, hardware, options, kv.n_bytes, options.chunk)
    return Plan(
        placements=side.placements,
        cache=side.tiering.cache,
        kv=kv,
        workers=workers(hardware, options, others),
        is_locked=options.memory == "resident",
        reads_ahead=side.reads_ahead,
        chunk=options.chunk or side.tiering.chunk or CHUNK,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        remarks=(
            *remarks,
            *_ram(options, hardware),
            *side.remarks,
            *_left_out(config, tensors),
        ),
    )


def _left_out(config: ModelConfig, tensors: Census) -> list[str]:
    if any(family.name == "mtp" for family in tensors.families):
        return [f"{config.num_mtp_layers} multi-token-prediction layers are skipped"]
    return []


def refine(
    plan: Plan,
    layout: LayoutOptions,
    layers: Sequence[Packable],
    hardware: HardwareProfile,
    speeds: Callable[[], Speeds],
) -> Plan:
    """The plan with the layout of the routed experts: the last step before it is executed.

    layers: those that can be packed; speeds: measures, and is called where it decides.
    """
    native_tier = plan.placements["routed"].tier if "routed" in plan.placements else "mmap"
    if native_tier == "vram" or (plan.vram is not None and "routed" not in plan.placements):
        return replace(plan, packed=Packed(why="packed layouts are the CPU's"))
    if native_tier == "disk":
        return replace(
            plan, packed=Packed(why="experts on the disk are computed as they lie there")
        )
    if plan.has_copies and layout.layout == "auto":
        return replace(
            plan, packed=Packed(why="the GPU takes copies of experts as the file has them")
        )
    choice = choose(
        layout,
        layers,
        room=max(0, hardware.cpu.ram_free - RESERVE - plan.kv_in_ram),
        total=plan.cpu_bytes,
        resident=native_tier != "mmap",
        speeds=speeds,
    )
    cache = None if layout.cache is None else os.path.abspath(layout.cache)
    tier = "ram" if native_tier == "mmap" and cache is None else native_tier
    return replace(plan, packed=choice.packed(tier, cache, layout.budget))
