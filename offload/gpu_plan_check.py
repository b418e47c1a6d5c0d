"""A plan with a GPU that somebody edited, or made elsewhere: see plan_check.py, which asks this."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from offload.config import ModelConfig
from offload.devices import is_gpu, resolve
from offload.errors import PlanError, shown
from offload.gpu_plan import WORKERS, Gpus, NoGpuError, chosen, lack
from offload.gpu_share import Budget, share_of
from offload.hot_slots import SlotRoom, by_layer, fitting, without_slots
from offload.layer_set import Layers
from offload.plan import Plan, Prediction
from offload.tensor_census import Census
from offload.vram import obstacle

if TYPE_CHECKING:
    from offload.gpu.probe import GpuFacts

EDITED = "as the plan says"  # the reason of a number that its own reason was not made for


def gpu_plan_checked(plan: Plan, config: ModelConfig, tensors: Census, gpus: Gpus) -> Plan:
    """The plan with the numbers of this machine's GPU; PlanError, DeviceError.

    What is the CPU's of a plan for both is looked at elsewhere.
    """
    places = [
        (f"{path}.device", p.device) for path, p in plan.every_placement() if is_gpu(p.device)
    ]
    path, first = places[0]
    for at, device in places:
        if device != first:
            raise PlanError(
                f'{at}: "{shown(device)}": this version runs a model on one GPU, on the CPU '
                f'or on both, and {path} is "{shown(first)}"'
            )
    if not plan.is_hybrid:
        _check_whole(plan)
    kv = plan.kv
    if kv.context < 1 or kv.tokens < kv.context:
        raise PlanError(
            f"kv.context: {kv.context:,}, kv.tokens: {kv.tokens:,}: at least 1 token is needed, "
            "and all together as many as one sequence may have"
        )
    try:
        gpu = chosen(gpus, resolve(first)[1])
    except NoGpuError as exc:
        raise exc.told(f'{path}: "{shown(first)}"') from exc
    if (why := obstacle(config)) is not None:
        raise PlanError(f"{path}: {why}")
    device = f"cuda:{gpu.index}"
    plan = replace(
        plan,
        placements={
            b: replace(p, device=device) if is_gpu(p.device) else p
            for b, p in plan.placements.items()
        },
        overrides={
            block: {
                layers: replace(p, device=device) if is_gpu(p.device) else p
                for layers, p in by_layers.items()
            }
            for block, by_layers in plan.overrides.items()
        },
    )
    plan = settled(plan, config, tensors, gpu)
    if plan.is_hybrid:
        return plan
    return replace(
        plan,
        packed=replace(plan.packed, n_bytes=0) if plan.packed.n_bytes else plan.packed,
        workers=WORKERS,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        outcome=(),
    )


def _check_whole(plan: Plan) -> None:
    if plan.packed.layers:
        raise PlanError(f"packed.layers: {plan.packed.layers}: packed experts are the CPU's")
    if plan.cache.n_bytes:
        raise PlanError(f"cache.n_bytes: {plan.cache.n_bytes:,}: the expert cache is the CPU's")
    if plan.hot.n_bytes:
        raise PlanError(
            f"hot.n_bytes: {plan.hot.n_bytes:,}: slots are for experts that lie in RAM or on the "
            "disk, and this plan has all of them on the GPU"
        )


def without_packed(plan: Plan, config: ModelConfig, tensors: Census, gpus: Gpus) -> Plan:
    """The plan, made here, with no copies in VRAM of experts that are packed."""
    gpu = chosen(gpus, resolve(plan.gpu or "")[1])
    said = f"experts of layers {plan.packed.layers} are packed: none of them come to the GPU"
    return replace(
        settled(plan, config, tensors, gpu, "what VRAM has left"), remarks=(*plan.remarks, said)
    )


def settled(
    plan: Plan, config: ModelConfig, tensors: Census, gpu: GpuFacts, why_slots: str = EDITED
) -> Plan:
    """The plan with what follows from its other lines: bytes of VRAM, slots, the ring. PlanError.

    Slots and ring are for layers whose router and shared expert are the GPU's and whose experts lie
    as the file has them; the ring for those in RAM alone.
    """
    kv, limit = plan.kv, None if plan.vram is None else plan.vram.limit
    budget = Budget(config=config, tensors=tensors, gpu=gpu, kv_type=kv.kv_type, limit=limit)
    share = share_of(plan, budget.tensors)
    packed = frozenset(plan.packed.layers)
    ring = 0 if plan.vram is None else plan.vram.ring_experts
    if ring == 1:
        raise PlanError(
            "vram.ring_experts: 1: one half of the ring is computed while the other comes; at least"
            " 2, or 0 for none"
        )
    if any(p.tier == "disk" for _, p in plan.every_placement()):
        ring = 0
    layers = budget.experts(share, packed)
    make = partial(
        budget.spec,
        share,
        context=kv.context,
        tokens=kv.tokens,
        chunk=plan.chunk,
        ring_experts=ring,
        besides=packed,
    )
    vram = make()
    if (why := lack(vram, kv.tokens)) is not None:
        raise PlanError(f"kv.tokens: {why}: take fewer, a larger vram.limit, or the device cpu")
    routed = Layers.of(n for b, n in tensors.blocks if b == "routed" and n is not None)
    without = Layers.of(n for n in routed if n not in layers and ("routed", n) not in share)
    others = _reason(without, packed, frozenset(without) - tensors.experts.keys())
    hot = plan.hot
    if not hot.n_bytes:
        was_edited = hot.slots or hot.lent
        hot = replace(hot, slots=0, lent=0, why=f"off, {EDITED}" if was_edited else hot.why)
    elif not layers:
        hot = without_slots(hot, others)
    else:
        with_slots = make(has_slots=True)
        room = SlotRoom.in_vram(config, layers, with_slots, kv.context)
        hot = fitting(hot, room)
        if hot.n_bytes:
            vram = replace(with_slots, slots=hot.n_bytes - hot.lent)
        if hot.n_bytes and hot != plan.hot:
            short = "" if hot.n_bytes >= plan.hot.n_bytes else ", as far as there is room"
            told = f"{why_slots}{short}; {by_layer(room.division(hot.n_bytes))}"
            hot = replace(hot, why=f"{told}; {others}" if others else told)
    n_bytes = vram.kv + budget.kv_in_ram(share, kv.tokens)
    kv = replace(kv, n_bytes=n_bytes, why=kv.why if n_bytes == kv.n_bytes else EDITED)
    return replace(plan, vram=vram, hot=hot, kv=kv)


def _reason(without: Layers, packed: frozenset[int], floats: frozenset[int]) -> str:
    """Why these layers have no slots."""
    whole = Layers.of(n for n in without if n in packed)
    unlike = Layers.of(n for n in without if n in floats - packed)
    apart = Layers.of(n for n in without if n not in packed | floats)
    parts = []
    if whole:
        parts.append(f"experts of layers {whole} are packed, which is the CPU's")
    if unlike:
        parts.append(f"those of layers {unlike} are floats, which CPU and GPU round differently")
    if apart:
        parts.append(f"in layers {apart} the GPU has not both the router and the shared expert")
    return ", ".join(parts)
