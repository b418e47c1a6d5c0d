"""A plan for a GPU that somebody edited, or made elsewhere: see plan_check.py, which asks this."""

from __future__ import annotations

from dataclasses import replace

from offload.config import ModelConfig
from offload.devices import resolve
from offload.errors import PlanError, shown
from offload.gpu_plan import WORKERS, Gpus, NoGpuError, chosen, lack, vram_spec
from offload.plan import Plan, Prediction
from offload.tensor_census import Census
from offload.vram import kv_bytes, obstacle


def gpu_plan_checked(plan: Plan, config: ModelConfig, tensors: Census, gpus: Gpus) -> Plan:
    """The plan with the numbers of this machine; PlanError, DeviceError."""
    (path, placement), *others = plan.every_placement()
    path, first = f"{path}.device", placement.device
    for at, placement in others:
        if placement.device != first:
            raise PlanError(
                f'{at}.device: "{shown(placement.device)}": this version runs a model on the CPU '
                f'or on one GPU as a whole, and {path} is "{shown(first)}"'
            )
    if plan.packed.layers:
        raise PlanError(f"packed.layers: {plan.packed.layers}: packed experts are the CPU's")
    if plan.cache.n_bytes:
        raise PlanError(f"cache.n_bytes: {plan.cache.n_bytes:,}: the expert cache is the CPU's")
    kv = plan.kv
    if kv.context < 1 or kv.tokens < kv.context:
        raise PlanError(
            f"kv.context: {kv.context:,}, kv.tokens: {kv.tokens:,}: at least 1 token is needed, "
            "and all together as many as one sequence may have"
        )
    limit = None if plan.vram is None else plan.vram.limit
    try:
        gpu = chosen(gpus, resolve(first)[1])
    except NoGpuError as exc:
        raise exc.told(f'{path}: "{shown(first)}"') from exc
    vram = vram_spec(config, tensors, gpu, kv.context, plan.chunk, limit)
    kv = replace(kv, n_bytes=kv_bytes(config, kv.kv_type, kv.context, kv.tokens))
    if (why := obstacle(config)) is not None:
        raise PlanError(f"{path}: {why}")
    if (why := lack(vram, kv.n_bytes, kv.tokens)) is not None:
        raise PlanError(f"kv.tokens: {why}: take fewer, a larger vram.limit, or the device cpu")
    device = f"cuda:{gpu.index}"
    return replace(
        plan,
        placements={b: replace(p, device=device) for b, p in plan.placements.items()},
        overrides={
            block: {layers: replace(p, device=device) for layers, p in by_layers.items()}
            for block, by_layers in plan.overrides.items()
        },
        packed=replace(plan.packed, n_bytes=0) if plan.packed.n_bytes else plan.packed,
        kv=kv,
        vram=vram,
        workers=WORKERS,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        outcome=(),
    )
