"""The plan for a GPU that holds a model as a whole: which one, what lies where in its memory. Pure.

hybrid_plan.py is for models that are larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.errors import DeviceError, OffloadError, PlanError
from offload.gpu_share import Budget, all_of
from offload.plan import KVSpec, Placement, Plan, Prediction, VramSpec, Workers
from offload.plan_options import CHUNK, DEFAULT_CONTEXT, PlanOptions
from offload.tensor_census import Census
from offload.vram import PAGE, kv_pages, obstacle

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


class LackError(NoGpuError):
    """The model does not fit."""


def plan_on_gpu(
    config: ModelConfig, tensors: Census, options: PlanOptions, index: int | None, gpus: Gpus
) -> Plan:
    """A plan for the GPU of this number, or any; NoGpuError."""
    is_asked = options.device != "auto"
    gpu = chosen(gpus, index)
    if (why := obstacle(config)) is not None:
        raise NoGpuError(why, CPU_INSTEAD)
    chunk = options.chunk or CHUNK
    budget = budget_of(config, tensors, options, gpu)
    make = partial(budget.spec, all_of(tensors), chunk=chunk)
    kv, fits = wanted_kv(config, options, make, PAGE if is_asked else LEAST_CONTEXT)
    vram = make(context=kv.context, tokens=kv.tokens)
    if (why := lack(vram, kv.tokens)) is not None:
        smaller = f"give --context {fits} or less, or " if fits else ""
        raise LackError(why, f"{smaller}{CPU_INSTEAD}")
    if not is_asked and options.wants_cpu is not None:
        raise NoGpuError(f"{options.wants_cpu} is for the CPU", CPU_INSTEAD)
    device = f"cuda:{gpu.index}"
    why = "as asked" if is_asked else "the whole model fits into its memory"
    remarks = [f"device {device}: {gpu.name}, {why}", *gpu_remarks(options, index, gpus, vram)]
    if options.of_the_cpu:
        remarks.append(f"without effect on a GPU: {', '.join(options.of_the_cpu)}")
    return Plan(
        placements={
            block: Placement(device=device, tier="vram", n_bytes=n_bytes, why=IN_VRAM)
            for block, n_bytes in tensors.block_bytes.items()
        },
        kv=replace(kv, n_bytes=vram.kv),
        vram=vram,
        workers=WORKERS,
        chunk=chunk,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token),
        remarks=tuple(remarks),
    )


def budget_of(config: ModelConfig, tensors: Census, options: PlanOptions, gpu: GpuFacts) -> Budget:
    """Of its memory, as asked for."""
    limit = None if options.vram is None else int(options.vram)
    return Budget(config=config, tensors=tensors, gpu=gpu, kv_type=options.kv_type, limit=limit)


def gpu_remarks(
    options: PlanOptions, index: int | None, gpus: Gpus, vram: VramSpec
) -> tuple[str, ...]:
    """On the choice among several GPUs, and on a limit."""
    remarks = []
    if len(gpus) > 1:
        one = "the one with the most free memory" if index is None else "the one asked for"
        remarks.append(f"{len(gpus)} GPUs: one is used, {one}; --device cuda:N takes another")
    if options.vram is not None:
        limit = int(options.vram)
        why = "as asked" if limit <= vram.limit else f"what is free of {binary_amount(limit)}"
        remarks.append(f"VRAM: {binary_amount(vram.limit)} at most, {why}")
    return tuple(remarks)


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


def lack(vram: VramSpec, tokens: int) -> str | None:
    """Why it does not fit, with the numbers; None if it does."""
    need = vram.parts_but_kv + vram.kv
    if need <= vram.limit:
        return None
    return (
        f"the model needs {binary_amount(need)} of VRAM ({binary_amount(vram.weights)} for "
        f"weights, {binary_amount(vram.kv)} for {tokens:,} tokens of KV cache, "
        f"{binary_amount(vram.workspace)} to compute in), {room(vram)}"
    )


def room(vram: VramSpec) -> str:
    """What is free, in words."""
    there = vram.free - vram.reserve
    allowed = f", --vram allows {binary_amount(vram.limit)}" if vram.limit < there else ""
    return (
        f"{binary_amount(max(0, there))} are free "
        f"beside {binary_amount(vram.reserve)} for display and driver{allowed}"
    )


def fitting_tokens(make: Callable[..., VramSpec], most: int) -> int:
    """Tokens of KV cache, whole pages, that fit beside all else; `most` at most."""
    low, high = 0, kv_pages(most)
    while low < high:
        middle = (low + high + 1) // 2
        vram = make(context=middle * PAGE, tokens=middle * PAGE)
        if vram.parts_but_kv + vram.kv <= vram.limit:
            low = middle
        else:
            high = middle - 1
    return low * PAGE


def wanted_kv(
    config: ModelConfig, options: PlanOptions, make: Callable[..., VramSpec], least: int
) -> tuple[KVSpec, int]:
    """(without its bytes: what is asked for, or fits; the tokens that fit).

    least: tokens of a context that is left to us, if the model was trained on as many; if they do
    not fit, that many all the same. PlanError.
    """
    if options.context is not None:
        context, why = options.context, "as asked"
        if context < 1:
            raise PlanError(f"--context {context}: at least 1 token is needed")
        if context > config.context_length:
            why += f", beyond the {config.context_length:,} tokens the model was trained on"
    else:
        context = min(config.context_length, DEFAULT_CONTEXT)
        why = f"the default; the model was trained on {config.context_length:,}"
    fits = fitting_tokens(make, max(context, LEAST_TOKENS))
    if options.context is None and min(context, least) <= fits < context:
        context, why = fits, "what fits into the GPU's memory"
    tokens = options.kv_tokens or max(context, min(LEAST_TOKENS, fits))
    if tokens < context:
        raise PlanError(
            f"--kv-tokens {options.kv_tokens}: all answers together need {context:,} tokens, the "
            "context of one, at least"
        )
    if context > fits:
        if options.context is None:
            context, why = min(context, least), "the least that is worth it; VRAM is short"
        tokens = max(context, options.kv_tokens or 0)
    return KVSpec(context=context, tokens=tokens, kv_type=options.kv_type, why=why), fits
