"""The plan for a GPU: which one, and what lies where in its memory. Pure.

A model runs on one GPU as a whole, or on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.errors import DeviceError, OffloadError, PlanError
from offload.plan import KVSpec, Placement, Plan, Prediction, VramSpec, Workers
from offload.plan_options import CHUNK, DEFAULT_CONTEXT, PlanOptions
from offload.tensor_census import Census
from offload.vram import (
    PAGE,
    kv_bytes,
    kv_pages,
    obstacle,
    reserve_bytes,
    step_rows,
    workspace_bytes,
)

if TYPE_CHECKING:
    from offload.gpu.probe import GpuFacts

LEAST_CONTEXT: Final = 4096  # that a GPU is worth having for, where the device is left to us
LEAST_TOKENS: Final = 4096  # of all sequences, if they fit: each takes whole pages
CPU_INSTEAD: Final = "leave --device out or give --device cpu"
IN_VRAM: Final = "in the GPU's memory, re-arranged"
WORKERS: Final = Workers(
    threads=1, why="the GPU computes", cpus_why="not pinned: the only thread is the caller's"
)


Gpus = Sequence["GpuFacts"] | str  # or why there is none, in one clause


class NoGpuError(Exception):
    """Why it is not a GPU, in one clause; `told` is the same for somebody who wants one."""

    def __init__(self, why: str, way_out: str, kind: type[OffloadError] = PlanError) -> None:
        super().__init__(why)
        self.why = why
        self._way_out = way_out
        self._kind = kind

    def told(self, wish: str) -> OffloadError:
        """PlanError or DeviceError with the way out."""
        return self._kind(f"{wish}: {self.why}; {self._way_out}")


def plan_on_gpu(
    config: ModelConfig, tensors: Census, options: PlanOptions, index: int | None, gpus: Gpus
) -> Plan:
    """A plan for the GPU of this number, or any; NoGpuError."""
    is_asked = options.device != "auto"
    gpu = chosen(gpus, index)
    if not is_asked and options.wants_cpu is not None:
        raise NoGpuError(f"{options.wants_cpu} is for the CPU", CPU_INSTEAD)
    if (why := obstacle(config)) is not None:
        raise NoGpuError(why, CPU_INSTEAD)
    chunk = options.chunk or CHUNK
    limit = None if options.vram is None else int(options.vram)
    make = partial(vram_spec, config, tensors, gpu, chunk=chunk, limit=limit)
    kv = _kv(config, options, make, PAGE if is_asked else LEAST_CONTEXT)
    vram = make(context=kv.context)
    device = f"cuda:{gpu.index}"
    why = "as asked" if is_asked else "the whole model fits into its memory"
    remarks = [f"device {device}: {gpu.name}, {why}"]
    if len(gpus) > 1:
        one = "the one with the most free memory" if index is None else "the one asked for"
        remarks.append(f"{len(gpus)} GPUs: one is used, {one}; --device cuda:N takes another")
    if limit is not None:
        why = "as asked" if limit <= vram.limit else f"what is free of {binary_amount(limit)}"
        remarks.append(f"VRAM: {binary_amount(vram.limit)} at most, {why}")
    if options.of_the_cpu:
        remarks.append(f"without effect on a GPU: {', '.join(options.of_the_cpu)}")
    return Plan(
        placements={
            block: Placement(device=device, tier="vram", n_bytes=n_bytes, why=IN_VRAM)
            for block, n_bytes in tensors.block_bytes.items()
        },
        kv=kv,
        vram=vram,
        workers=WORKERS,
        chunk=chunk,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        remarks=tuple(remarks),
    )


def chosen(gpus: Gpus, index: int | None) -> GpuFacts:
    """The GPU of this number, or the one with the most free memory; NoGpuError."""
    if isinstance(gpus, str):
        raise NoGpuError(gpus, CPU_INSTEAD, DeviceError)
    if not gpus:
        raise NoGpuError("there is no GPU", CPU_INSTEAD, DeviceError)
    if index is None:
        return max(gpus, key=lambda gpu: gpu.free)
    for gpu in gpus:
        if gpu.index == index:
            return gpu
    there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
    raise NoGpuError(f"no GPU has the number {index}", f"there are {there}", DeviceError)


def vram_spec(
    config: ModelConfig,
    tensors: Census,
    gpu: GpuFacts,
    context: int,
    chunk: int,
    limit: int | None,
) -> VramSpec:
    """What the model takes in this GPU's memory; limit: bytes at most, None: what there is."""
    left = reserve_bytes(gpu.total)
    room = max(0, gpu.free - left)
    return VramSpec(
        gpu=gpu.name,
        total=gpu.total,
        free=gpu.free,
        reserve=left,
        limit=room if limit is None else min(room, limit),
        weights=tensors.vram_bytes,
        workspace=workspace_bytes(config, context, chunk),
        rows=step_rows(chunk),
    )


def lack(vram: VramSpec, kv_size: int, tokens: int) -> str | None:
    """Why it does not fit, with the numbers; None if it does."""
    need = vram.parts_but_kv + kv_size
    if need <= vram.limit:
        return None
    room = vram.free - vram.reserve
    allowed = f", --vram allows {binary_amount(vram.limit)}" if vram.limit < room else ""
    return (
        f"the model needs {binary_amount(need)} of VRAM ({binary_amount(vram.weights)} for "
        f"weights, {binary_amount(kv_size)} for {tokens:,} tokens of KV cache, "
        f"{binary_amount(vram.workspace)} to compute in), {binary_amount(max(0, room))} are free "
        f"beside {binary_amount(vram.reserve)} for display and driver{allowed}"
    )


def fitting_tokens(
    config: ModelConfig, options: PlanOptions, make: Callable[..., VramSpec], most: int
) -> int:
    """Tokens of KV cache, whole pages, that fit beside all else; `most` at most."""
    low, high = 0, kv_pages(most)
    while low < high:
        middle = (low + high + 1) // 2
        n = middle * PAGE
        vram = make(context=n)
        if vram.parts_but_kv + kv_bytes(config, options.kv_type, n, n) <= vram.limit:
            low = middle
        else:
            high = middle - 1
    return low * PAGE


def _kv(
    config: ModelConfig, options: PlanOptions, make: Callable[..., VramSpec], least: int
) -> KVSpec:
    """least: tokens of a context that is left to us, if the model was trained on as many."""
    if options.context is not None:
        context, why = options.context, "as asked"
        if context < 1:
            raise PlanError(f"--context {context}: at least 1 token is needed")
        if context > config.context_length:
            why += f", beyond the {config.context_length:,} tokens the model was trained on"
    else:
        context = min(config.context_length, DEFAULT_CONTEXT)
        why = f"the default; the model was trained on {config.context_length:,}"
    fits = fitting_tokens(config, options, make, max(context, LEAST_TOKENS))
    if options.context is None and min(context, least) <= fits < context:
        context, why = fits, "what fits into the GPU's memory"
    tokens = options.kv_tokens or max(context, min(LEAST_TOKENS, fits))
    if tokens < context:
        raise PlanError(
            f"--kv-tokens {options.kv_tokens}: all answers together need {context:,} tokens, the "
            "context of one, at least"
        )
    shown = context if options.context is not None else min(context, least)
    if context > fits:  # of a context that is left to us, the least is told
        context = shown
        tokens = max(context, options.kv_tokens or 0)
    n_bytes = kv_bytes(config, options.kv_type, context, tokens)
    if (why_not := lack(make(context=context), n_bytes, tokens)) is not None:
        smaller = f"give --context {fits} or less, or " if fits else ""
        raise NoGpuError(why_not, f"{smaller}{CPU_INSTEAD}")
    return KVSpec(context=context, tokens=tokens, kv_type=options.kv_type, n_bytes=n_bytes, why=why)
