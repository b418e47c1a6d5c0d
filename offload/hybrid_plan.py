"""The GPU's part of a plan that shares a model between a GPU and the CPU. Pure.

Routed experts are the CPU's, copies of hot ones lie in VRAM; all else but the embedding is the
GPU's as far as it fits. VRAM is given in this order: the reserve, weights, the KV cache, room for
the smallest step; then larger steps of prompts and the ring through which their experts pass, at
the cost of a part of the rest; the rest has slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.gpu_plan import CPU_INSTEAD, LEAST_CONTEXT, LackError, NoGpuError, lack, wanted_kv
from offload.gpu_share import Budget, Leaving, Share, shares, taken
from offload.hot_slots import SlotRoom, hot_slots
from offload.layer_set import Layers
from offload.plan import BlockName, ExpertSlots, KVSpec, VramSpec
from offload.plan_options import CHUNK, PlanOptions
from offload.tensor_census import ExpertSize
from offload.vram import RING_EXPERTS, table_bytes

CHUNKS: Final = (8192, 4096, 2048, 1024, 512)  # prompt tokens in a step, the best first
PART: Final = 3  # one of so many of the room for slots, at most, is for larger steps and the ring
LEAST_PART: Final = 4  # of what every token reads, where the device is left to us: one of so many
APART: Final = "in no layer the GPU has both the router and the shared expert"
FLOATS: Final = "they are floats in all layers, and CPU and GPU round these differently"

Make = Callable[..., VramSpec]


class Left(NamedTuple):
    """Why a block is the CPU's in these layers (None: as a whole, outside of layers)."""

    layers: Layers | None
    why: str


class Step(NamedTuple):
    """Of a prompt: tokens at most, and the ring that its experts pass through."""

    chunk: int
    ring_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSide:
    """share: what is the GPU's. left: what would be if VRAM were larger.

    kv: with the bytes of both sides; kv_in_ram: of these.
    """

    share: Share
    left: Mapping[BlockName, Left]
    kv: KVSpec
    kv_in_ram: int
    vram: VramSpec
    hot: ExpertSlots
    chunk: int
    remarks: tuple[str, ...]


def gpu_side(budget: Budget, options: PlanOptions, *, most: int | None) -> GpuSide:
    """What the GPU has; NoGpuError if not one block fits, PlanError.

    most: prompt tokens of a step where experts are read from the disk and not streamed; or None.
    """
    config = budget.config
    if not config.n_routed_experts:
        raise NoGpuError("it has no routed experts that could stay in RAM", CPU_INSTEAD)
    smallest = options.chunk or CHUNK
    whole, _ = next(shares(budget.tensors))
    kv, _ = wanted_kv(config, options, partial(budget.spec, whole, chunk=smallest), LEAST_CONTEXT)
    make = partial(budget.spec, context=kv.context, tokens=kv.tokens)
    share, left = _fitting(budget, partial(make, chunk=smallest), kv.tokens)
    here, all_of_it = budget.weights(share), budget.weights(whole)
    if options.device == "auto" and here < all_of_it / LEAST_PART:
        raise NoGpuError(
            f"VRAM has room for {binary_amount(here)} of the {binary_amount(all_of_it)} that every "
            "token reads, which is not worth it",
            CPU_INSTEAD,
        )
    layers = budget.experts(share)
    make = partial(make, share)
    if layers:
        stage = 0 if options.tiers.cache == "off" else max(size.stage for size in layers.values())
        step, remark = _step(make, options, kv.context, most, stage)
        vram, hot = _with_slots(
            partial(make, **step._asdict()), options, config, layers, kv.context
        )
    else:
        why = APART if budget.tensors.experts else FLOATS
        step, remark = Step(smallest, 0), f"prompts: the CPU computes their experts: {why}"
        vram, hot = make(chunk=smallest), ExpertSlots(why=f"off: {why}")
    in_ram = budget.kv_in_ram(share, kv.tokens)
    return GpuSide(
        share=share,
        left=left,
        kv=replace(kv, n_bytes=vram.kv + in_ram),
        kv_in_ram=in_ram,
        vram=vram,
        hot=hot,
        chunk=step.chunk,
        remarks=(
            *(f"{_named(block, why.layers)} on the CPU: {why.why}" for block, why in left.items()),
            budget.described(share),
            remark,
        ),
    )


def _named(block: BlockName, layers: Layers | None) -> str:
    return block if layers is None else f"{block} of layers {layers}"


def _fitting(budget: Budget, make: Make, tokens: int) -> tuple[Share, dict[BlockName, Left]]:
    """The first share that fits; LackError with the numbers of the last that does not."""
    left: dict[BlockName, Left] = {}
    why, before, known = "", 0, set[Leaving]()
    for share, gone in shares(budget.tensors):
        if not share:
            break
        vram = make(share)
        for leaving in gone:
            if leaving not in known:
                known.add(leaving)
                told = (
                    f"VRAM is short: with {'it' if leaving.layers is None else 'one layer more'} "
                    f"{binary_amount(before)} are needed, {binary_amount(vram.limit)} may be taken"
                )
                left[leaving.block] = Left(leaving.layers, told)
        before = taken(vram)
        if (lacking := lack(vram, tokens)) is None:
            return share, left
        why = f"of what every token reads not one block fits: {lacking}"
    raise LackError(why, CPU_INSTEAD)


def _step(
    make: Make, options: PlanOptions, context: int, most: int | None, stage: int
) -> tuple[Step, str]:
    """The largest step of prompts that leaves slots enough, with a ring if experts can come.

    stage: bytes for slots that the KV cache cannot lend.
    """
    smallest = Step(options.chunk or CHUNK, 0)
    base = make(chunk=smallest.chunk)
    there = base.limit - taken(base)
    room = there + base.kv - table_bytes(context)
    slots = options.tiers.cache
    if isinstance(slots, int):
        allowed = max(0, room - slots)
        limit = f"--expert-cache leaves {binary_amount(allowed)}"
    elif slots == "off":
        allowed, limit = there, f"{binary_amount(there)} are left"
    else:
        allowed = room // PART
        limit = f"a third of the {binary_amount(room)} that slots could have is for them"
    chunks = [n for n in CHUNKS if n <= max(context if most is None else most, CHUNKS[-1])]
    if options.chunk is not None:
        chunks = [options.chunk]
    cost = 0
    for chunk in chunks:
        step = Step(chunk, 0 if most is not None else RING_EXPERTS)
        cost = taken(make(**step._asdict(), has_slots=slots != "off")) - taken(base)
        if cost <= min(allowed, there - stage):
            how = (
                "their experts are read from the disk, for the CPU"
                if most is not None
                else f"their experts are streamed through a ring of {RING_EXPERTS} in VRAM"
            )
            return step, (
                f"prompts: {how}, in steps of {chunk:,} tokens: {binary_amount(cost)} of VRAM more"
                f" than {smallest.chunk:,} without; {limit}"
            )
    return smallest, (
        f"prompts: the CPU computes their experts: VRAM is short, {binary_amount(cost)} more are "
        f"needed to stream them; {limit}"
    )


def _with_slots(
    make: Make,
    options: PlanOptions,
    config: ModelConfig,
    layers: Mapping[int, ExpertSize],
    context: int,
) -> tuple[VramSpec, ExpertSlots]:
    vram = make(has_slots=True)
    hot = hot_slots(options.tiers, SlotRoom.in_vram(config, layers, vram, context))
    if not hot.n_bytes:
        return make(), hot
    return replace(vram, slots=hot.n_bytes - hot.lent), hot
