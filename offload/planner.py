"""make_plan(), refine(): decide where everything lives; the two steps of planning.

The first looks at nothing but its arguments. The second chooses the layout of the routed experts,
where that is left to us by a measurement that it is given. What they return is executed as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from offload.amounts import binary_amount
from offload.arguments import check_type
from offload.config import ModelConfig
from offload.devices import resolve
from offload.errors import PlanError, RequestError
from offload.expert_layout import LayoutOptions, Packable, Speeds, choose
from offload.gpu_plan import Gpus, NoGpuError, plan_on_gpu
from offload.hardware import HardwareProfile
from offload.kv_cache import cache_bytes
from offload.memory import MemoryMode
from offload.plan import (
    BlockName,
    KVSpec,
    MemoryTier,
    Packed,
    Placement,
    Plan,
    Prediction,
    Workers,
)
from offload.plan_options import CHUNK, DEFAULT_CONTEXT, PlanOptions
from offload.tensor_census import Census
from offload.tiering import amount_argument, decide

RESERVE = 512 << 20  # bytes left to the system and to scratch buffers
TIERS: Final[Mapping[MemoryMode, MemoryTier]] = {
    "mmap": "mmap",
    "resident": "ram",
    "hugepages": "hugepages",
}
_WHERE: Final[Mapping[MemoryTier, str]] = {
    "mmap": "read where it lies in the mapped file",
    "ram": "copied into RAM",
    "hugepages": "copied into huge pages",
}


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
    kind, index = resolve(options.device)
    why = "as asked"
    if kind != "cpu":
        try:
            plan = plan_on_gpu(config, tensors, options, index, gpus)
        except NoGpuError as exc:
            if kind != "auto":
                raise exc.told(f"--device {options.device}") from exc
            why = f"{exc.why}: runs on the CPU"
        else:
            return replace(plan, remarks=(*plan.remarks, *_left_out(config, tensors)))
    return _plan_on_cpu(config, tensors, hardware, options, others, why)


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
    hardware = within(hardware, options.ram)
    if options.ram is not None:
        remarks.append(f"RAM: {binary_amount(hardware.cpu.ram_free)}, as asked")
    kv = _kv(config, tensors, hardware, options)
    free, used = hardware.cpu.ram_free, used_bytes(tensors)
    tier = TIERS[options.memory]
    tiering = decide(
        options.tiers,
        config,
        tensors.blocks,
        tier=tier,
        free=free - kv.n_bytes - RESERVE,
        kv_bytes=kv.n_bytes,
        chunk=options.chunk,
    )
    on_disk = tiering.tier == "disk"
    if on_disk and options.layout.layout == "packed":
        raise PlanError(
            f"--experts-layout packed: packed experts lie in RAM, but {tiering.why}: leave it out"
        )
    in_ram = used - tensors_of(tensors, "routed") if on_disk else used
    if tier != "mmap":
        _check_resident(options.memory, in_ram, free, kv)
    elif in_ram > free:
        remarks.append(
            f"the weights ({used / 2**30:.1f} GiB) exceed free RAM ({free / 2**30:.1f} GiB): parts "
            "are read from disk again and again, expect disk speed"
        )
    remarks.append(f"NUMA: {hardware.numa()}")
    remarks += _left_out(config, tensors)
    placements = {
        block: Placement(device="cpu", tier=tier, n_bytes=n_bytes, why=_WHERE[tier])
        for block, n_bytes in tensors.block_bytes.items()
    }
    if on_disk:
        placements["routed"] = Placement(
            device="cpu",
            tier="disk",
            n_bytes=placements["routed"].n_bytes,
            why=f"read from the file as they are needed: {tiering.why}",
        )
        gib = 2**30
        why = (
            f"the weights ({used / gib:.1f} GiB) exceed free RAM ({free / gib:.1f} GiB)"
            if used > free
            else tiering.why
        )
        remarks.append(f"routed experts are read from the disk as they are needed: {why}")
    remarks += tiering.remarks
    return Plan(
        placements=placements,
        cache=tiering.cache,
        kv=kv,
        workers=_workers(hardware, options, others),
        is_locked=options.memory == "resident",
        reads_ahead=in_ram <= free,
        chunk=options.chunk or tiering.chunk or CHUNK,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        remarks=tuple(remarks),
    )


def _left_out(config: ModelConfig, tensors: Census) -> list[str]:
    if any(family.name == "mtp" for family in tensors.families):
        return [f"{config.num_mtp_layers} multi-token-prediction layers are skipped"]
    return []


def within(hardware: HardwareProfile, ram: int | str | None) -> HardwareProfile:
    """The machine with at most so much free RAM."""
    if ram is None:
        return hardware
    free = min(hardware.cpu.ram_free, amount_argument("--ram", ram))
    return replace(hardware, cpu=replace(hardware.cpu, ram_free=free))


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
    if plan.vram is not None or native_tier == "vram":
        return replace(plan, packed=Packed(why="packed layouts are the CPU's"))
    if native_tier == "disk":
        return replace(
            plan, packed=Packed(why="experts on the disk are computed as they lie there")
        )
    choice = choose(
        layout,
        layers,
        room=max(0, hardware.cpu.ram_free - RESERVE - plan.kv.n_bytes),
        total=plan.weight_bytes,
        resident=native_tier != "mmap",
        speeds=speeds,
    )
    cache = None if layout.cache is None else os.path.abspath(layout.cache)
    tier = "ram" if native_tier == "mmap" and cache is None else native_tier
    return replace(plan, packed=choice.packed(tier, cache, layout.budget))


def used_bytes(tensors: Census) -> int:
    """Bytes of the tensors that the forward pass reads."""
    return sum(tensors.blocks.values())


def tensors_of(tensors: Census, block: BlockName) -> int:
    """Bytes of a block in all layers."""
    return sum(n for (name, _), n in tensors.blocks.items() if name == block)


def _check_resident(mode: MemoryMode, need: int, free: int, kv: KVSpec) -> None:
    gib = 2**30
    if need + kv.n_bytes + RESERVE > free:
        raise PlanError(
            f"--memory {mode} copies {need / gib:.1f} GiB of weights; with {kv.n_bytes / gib:.1f} "
            f"GiB of KV cache and {RESERVE / gib:.1f} GiB for the system that is more than the "
            f"{free / gib:.1f} GiB of free RAM: use --memory mmap, or a smaller --context"
        )


def _workers(hardware: HardwareProfile, options: PlanOptions, others: float | None) -> Workers:
    usable, threads, why = hardware.cpu.usable, options.threads, "as asked"
    if threads is None:
        threads, why = hardware.default_threads()
    elif not 1 <= threads <= usable:
        raise PlanError(f"--threads {threads}: this process may use 1 to {usable} logical cores")
    sets, cpus_why = hardware.pinning(threads, options.pin, others)
    cpus = None if sets is None else tuple(tuple(sorted(cores)) for cores in sets)
    return Workers(threads=threads, why=why, cpus=cpus, cpus_why=cpus_why)


def _kv(
    config: ModelConfig, tensors: Census, hardware: HardwareProfile, options: PlanOptions
) -> KVSpec:
    free = hardware.cpu.ram_free
    per_token = cache_bytes(config, 1, options.kv_type)
    fits = max(0, free - RESERVE) // per_token
    if fits < 1:
        raise PlanError(
            f"{free / 2**20:.0f} MiB of RAM are free, too little for any KV cache; close other "
            "programs"
        )
    if options.context is not None:
        context, reason = options.context, "as asked"
        if context < 1:
            raise PlanError(f"--context {context}: at least 1 token is needed")
        if context > fits:
            raise PlanError(
                f"a context of {context:,} tokens needs {context * per_token / 2**30:.1f} GiB for "
                f"its KV cache ({options.kv_type}), but {free / 2**30:.1f} GiB of RAM are free; "
                f"at most {fits:,} tokens fit: give --context {fits} or less"
            )
        if context > config.context_length:
            reason += f", beyond the {config.context_length:,} tokens the model was trained on"
    else:
        beside = max(0, free - RESERVE - tensors.n_bytes) // per_token
        gives_way = options.memory == "mmap"  # a mapped file makes room for the cache
        room = max(beside, fits // 8 if gives_way else 1)
        context = min(config.context_length, DEFAULT_CONTEXT, max(1, room))
        reason = f"the default; the model was trained on {config.context_length:,}"
        if context == room:
            reason = "what fits in free RAM"
    tokens = options.kv_tokens or context
    if not context <= tokens <= max(context, fits):
        raise PlanError(
            f"--kv-tokens {options.kv_tokens}: all answers together need {context:,} tokens (the "
            f"context of one) to {max(context, fits):,} (what fits in free RAM)"
        )
    return KVSpec(
        context=context,
        tokens=tokens,
        kv_type=options.kv_type,
        n_bytes=tokens * per_token,
        why=reason,
    )
