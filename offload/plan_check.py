"""A plan that somebody edited, or made on another machine: is it of this model, does it fit here?

Every PlanError begins with the path of the value that is wrong, as in the plan's JSON. Sizes that
follow from other lines (bytes of the KV cache, of overrides, of packed experts; the prediction) are
computed anew, and a reason that was given for other numbers goes. The bytes of `placements` tell
one model from another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from offload.amounts import binary_amount
from offload.arguments import quoted
from offload.config import ModelConfig
from offload.cpu_plan import RESERVE
from offload.devices import is_gpu
from offload.errors import PlanError, shown
from offload.expert_layout import Packable
from offload.gpu_plan import Gpus
from offload.gpu_plan_check import EDITED, gpu_plan_checked
from offload.hardware import HardwareProfile
from offload.kv_cache import cache_bytes
from offload.layer_set import Layers
from offload.plan import BlockName, KVSpec, Packed, Placement, Plan, Prediction, Workers
from offload.policies import POLICIES
from offload.tensor_census import Census


def checked_plan(
    plan: Plan,
    config: ModelConfig,
    tensors: Census,
    hardware: HardwareProfile,
    packable: Sequence[Packable],
    gpus: Gpus | Callable[[], Gpus],
) -> Plan:
    """The plan, ready to be executed on this machine with this model; PlanError if it cannot be.

    packable: the layers whose routed experts have a packed layout. gpus: or what finds them.
    """
    try:
        plan = Plan.from_json(plan.to_json())  # made in Python: the same rules as in a file
    except (TypeError, ValueError, AttributeError) as exc:
        raise PlanError(f"the plan holds a value of a wrong type: {shown(exc)}") from exc
    _check_placements(plan.placements, tensors.block_bytes)
    overrides = {
        block: {
            layers: _override(block, layers, placement, config, tensors)
            for layers, placement in by_layers.items()
        }
        for block, by_layers in plan.overrides.items()
    }
    _check_apart(overrides)
    for path, placement in plan.every_placement():
        if placement.device != "cpu" and not is_gpu(placement.device):
            raise PlanError(
                f'{path}.device: "{shown(placement.device)}": there are cpu, cuda and cuda:N (a '
                "GPU by its number)"
            )
        if placement.tier == "disk" and ".routed" not in path:
            raise PlanError(
                f'{path}.tier: "disk": only routed experts can be read as they are needed'
            )
        if (placement.tier == "vram") != is_gpu(placement.device):
            raise PlanError(
                f'{path}.tier: "{placement.tier}": on a GPU it is "vram", and nowhere else'
            )
    for name, cache in (("cache", plan.cache), ("hot", plan.hot)):
        if cache.policy not in POLICIES:
            raise PlanError(f'{name}.policy: "{shown(cache.policy)}": {", ".join(POLICIES)}')
        if min(cache.n_bytes, cache.copies, cache.lent) < 0:
            raise PlanError(f"{name}: n_bytes, copies and lent are at least 0")
    if plan.chunk < 1:
        raise PlanError(f"chunk: {plan.chunk}: at least 1 token is read in one step")
    plan = replace(plan, overrides=overrides)
    if any(map(is_gpu, plan.devices)):
        if plan.is_hybrid:
            _check_hybrid(plan)
            plan = replace(plan, packed=_packed(plan.packed, packable, config))
        plan = gpu_plan_checked(plan, config, tensors, gpus() if callable(gpus) else gpus)
        if not plan.is_hybrid:
            return plan
    elif plan.hot.n_bytes:
        raise PlanError(f"hot.n_bytes: {plan.hot.n_bytes:,}: there is no GPU in this plan")
    else:
        plan = replace(
            plan,
            vram=None,
            packed=_packed(plan.packed, packable, config),
            kv=_kv(plan.kv, config, hardware),
        )
    plan = replace(
        plan,
        workers=_workers(plan.workers, hardware),
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        outcome=(),
    )
    _check_room(plan, tensors, hardware, packable)
    return plan


def _check_hybrid(plan: Plan) -> None:
    """What a GPU and the CPU cannot share."""
    if plan.cache.n_bytes and not any(p.tier == "disk" for _, p in plan.every_placement()):
        raise PlanError(
            f"cache.n_bytes: {plan.cache.n_bytes:,}: beside a GPU, slots in RAM are for experts on "
            "the disk; those in VRAM are hot.n_bytes"
        )
    for layer in plan.packed.layers:
        if "routed" in plan.placements and plan.place("routed", layer).tier == "vram":
            raise PlanError(
                f"packed.layers: {layer}: its experts are the GPU's, packed ones are the CPU's"
            )


def _check_placements(
    placements: Mapping[BlockName, Placement], sizes: Mapping[BlockName, int]
) -> None:
    for block, n_bytes in sizes.items():
        if block not in placements:
            raise PlanError(f"placements.{block}: missing; this model has {n_bytes:,} bytes of it")
    for block, placement in placements.items():
        n_bytes = sizes.get(block, 0)
        if placement.n_bytes != n_bytes:
            raise PlanError(
                f"placements.{block}.n_bytes: {placement.n_bytes:,}, but {n_bytes:,} in this "
                "model's file: the plan is of another one; make a plan of this one"
            )


def _override(
    block: BlockName, layers: Layers, placement: Placement, config: ModelConfig, tensors: Census
) -> Placement:
    """The placement with the bytes of these layers."""
    path = f"overrides.{block}.{layers}"
    known = Layers.of(n for name, n in tensors.blocks if name == block and n is not None)
    if not known:
        raise PlanError(f"overrides.{block}: this model has no layers with a block of that name")
    if not layers:
        raise PlanError(f"overrides.{block}: no layers are named")
    _check_known(path, layers, known, config)
    return replace(placement, n_bytes=sum(tensors.blocks[block, layer] for layer in layers))


def _check_known(path: str, layers: Layers, known: Layers, config: ModelConfig) -> None:
    last = layers.spans[-1][1]
    if last >= config.num_layers:
        raise PlanError(
            f"{path}: there is no layer {last}; this model has {config.num_layers}, numbered from 0"
        )
    for layer in layers:
        if layer not in known:
            raise PlanError(f"{path}: not in layer {layer}; the layers that it can be are {known}")


def _check_apart(overrides: Mapping[BlockName, Mapping[Layers, Placement]]) -> None:
    for block, by_layers in overrides.items():
        seen: set[int] = set()
        for layers in by_layers:
            for layer in layers:
                if layer in seen:
                    raise PlanError(f"overrides.{block}.{layers}: layer {layer} is there twice")
                seen.add(layer)


def _packed(packed: Packed, packable: Sequence[Packable], config: ModelConfig) -> Packed:
    """The same with the bytes that its layers take."""
    if not packed.layers:
        return replace(packed, n_bytes=0, why=EDITED if packed.n_bytes else packed.why)
    known = Layers.of(layer.layer for layer in packable)
    if not known:
        raise PlanError(
            f"packed.layers: {packed.layers}: no routed expert of this model has a type with a "
            "packed layout; leave it empty"
        )
    _check_known("packed.layers", packed.layers, known, config)
    if packed.tier == "mmap" and packed.cache is None:
        raise PlanError(
            'packed.tier: "mmap": packed experts are mapped from files of a packed.cache, and '
            "there is none; name a folder there, or take tier ram"
        )
    if (
        packed.cache is not None
        and os.path.exists(packed.cache)
        and not os.path.isdir(packed.cache)
    ):
        raise PlanError(f"packed.cache: {shown(packed.cache)}: this is a file; name a folder")
    n_bytes = sum(layer.packed_bytes for layer in packable if layer.layer in packed.layers)
    if packed.budget is not None and n_bytes > packed.budget:
        raise PlanError(
            f"packed.layers: {packed.layers}: they take {n_bytes:,} bytes, more than packed.budget "
            f"allows: {packed.budget:,}"
        )
    return replace(packed, n_bytes=n_bytes, why=packed.why if n_bytes == packed.n_bytes else EDITED)


def _kv(kv: KVSpec, config: ModelConfig, hardware: HardwareProfile) -> KVSpec:
    """The same with the bytes that it takes."""
    if kv.context < 1:
        raise PlanError(f"kv.context: {kv.context}: at least 1 token is needed")
    if kv.tokens < kv.context:
        raise PlanError(
            f"kv.tokens: {kv.tokens:,}: fewer than one sequence may have, kv.context: "
            f"{kv.context:,}"
        )
    free = hardware.cpu.ram_free
    per_token = cache_bytes(config, 1, kv.kv_type)
    fits = max(0, free - RESERVE) // per_token
    if kv.tokens > fits:
        path = "kv.context" if kv.tokens == kv.context else "kv.tokens"
        raise PlanError(
            f"{path}: {kv.tokens:,} tokens need {binary_amount(kv.tokens * per_token)} in "
            f"{kv.kv_type}, but {binary_amount(free)} of RAM are free; at most {fits:,} tokens fit"
        )
    n_bytes = kv.tokens * per_token
    return replace(kv, n_bytes=n_bytes, why=kv.why if n_bytes == kv.n_bytes else EDITED)


def _workers(workers: Workers, hardware: HardwareProfile) -> Workers:
    """The same, with reasons that hold."""
    threads, cpus, usable = workers.threads, workers.cpus, hardware.cpu.usable
    if not 1 <= threads <= usable:
        raise PlanError(
            f"workers.threads: {threads:,}: this process may use 1 to {usable} logical cores"
        )
    default, why = hardware.default_threads()
    if threads != default and workers.why == why:
        workers = replace(workers, why=EDITED)
    if cpus is None:
        return workers
    possible, why = hardware.pinning(threads, wish=True)
    if possible is None:
        raise PlanError(f"workers.cpus: {why}; write null")
    if len(cpus) != threads:
        raise PlanError(
            f"workers.cpus: cores of {len(cpus)} threads, but workers.threads is {threads}; name "
            "those of each thread, or write null"
        )
    known = Layers.of(cpu for core in hardware.cpu.topology.cores for cpu in core.cpus)
    for i, cores in enumerate(cpus):
        if not cores or any(cpu not in known for cpu in cores):
            raise PlanError(
                f"workers.cpus.{i}: {quoted(list(cores))}: this machine's logical cores are {known}"
            )
    return workers


def _check_room(
    plan: Plan, tensors: Census, hardware: HardwareProfile, packable: Sequence[Packable]
) -> None:
    """PlanError if copies, packed experts and the cache are more than the free RAM."""
    copied = 0
    for (block, layer), n_bytes in tensors.blocks.items():
        if plan.place(block, layer).tier in ("ram", "hugepages"):
            copied += n_bytes
    for candidate in packable:  # packed straight from the file, not copied first
        is_copied = plan.place("routed", candidate.layer).tier in ("ram", "hugepages")
        if is_copied and candidate.layer in plan.packed.layers:
            copied -= candidate.native_bytes
    packed = 0 if plan.packed.tier == "mmap" else plan.packed.n_bytes
    free = hardware.cpu.ram_free
    slots = max(0, plan.cache.n_bytes - plan.cache.lent)
    if copied + packed + slots + plan.kv_in_ram + RESERVE > free:
        parts = {"placements": copied, "cache.n_bytes": slots, "packed.layers": packed}
        path = next((path for path, n_bytes in parts.items() if n_bytes), "kv.tokens")
        raise PlanError(
            f"{path}: {binary_amount(copied)} of weights are copied, slots take "
            f"{binary_amount(slots)}, {binary_amount(packed)} are "
            f"packed; with {binary_amount(plan.kv_in_ram)} of KV cache and "
            f"{binary_amount(RESERVE)} for the system that is more than the {binary_amount(free)} "
            "of free RAM: leave more in tier mmap, pack fewer layers, or take a smaller kv.context"
        )
