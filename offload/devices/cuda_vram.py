"""The memory of a GPU as a device divides it; without a plan all share what there is.

    weights | tables of KV | KV pages -> .. <- slots of hot experts | ring | workspace

Pages are taken from the low end of their part. Slots may lie in what is left of it, next to their
own part, and go from there as pages need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from offload.amounts import binary_amount
from offload.errors import PlanError
from offload.gpu.base import Gpu
from offload.gpu.slab import ALIGNED, Part, Slab
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.vram import table_bytes

Array = np.ndarray


class Space(Protocol):
    """Where memory is given out."""

    def alloc(self, n_bytes: int) -> int:
        """Address, a multiple of 256; PlanError if there is no room."""

    def free(self, address: int) -> None:
        """Give it back."""


@dataclass(frozen=True, slots=True)
class SlotSpace:
    """Memory start .. end - 1 for slots; what lies below `pages.end` is not theirs.

    short: in words, why it is less than was planned; "" if it is not.
    """

    start: int
    end: int
    pages: Part
    short: str = ""

    @property
    def n_bytes(self) -> int:
        """Of the slots as long as there are no pages."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Spaces:
    """One for each purpose. kv: of pages, all of a size, so that a gap has room for one."""

    weights: Space
    kv: Space
    tables: Space
    workspace: Space
    ring: Space
    slots: SlotSpace | None = None


def spaces(
    gpu: Gpu, kv: KVSpec, vram: VramSpec | None, hot: ExpertSlots | None = None, *,
    is_asked: bool = True,
) -> Spaces:  # fmt: skip
    """Parts of one slab, as planned; PlanError if it cannot be had.

    is_asked: somebody asked for this size of `hot`. Otherwise there are fewer slots where less
    memory is free than it was when the plan was made.
    """
    if vram is None:
        return Spaces(weights=gpu, kv=gpu, tables=gpu, workspace=gpu, ring=gpu)
    tables = table_bytes(kv.context)
    fixed = vram.weights + vram.kv + vram.ring + vram.workspace
    slab, n_slots, short = _slab(gpu, fixed, vram.slots, may_shrink=not is_asked)
    weights, of_tables, pages, slots, ring, workspace = (
        slab.part(name, n_bytes)
        for name, n_bytes in (
            ("the weights", vram.weights),
            ("tables of the KV cache", tables),
            ("the KV cache", vram.kv - tables),
            ("hot experts", n_slots),
            ("experts of prompts", vram.ring),
            ("activations", vram.workspace),
        )
    )
    of_slots = None
    if hot is not None and hot.n_bytes:
        low = slots.start - min(hot.lent, pages.n_bytes)
        of_slots = SlotSpace(low, slots.start + slots.n_bytes, pages, short)
    return Spaces(
        weights=weights, kv=pages, tables=of_tables, workspace=workspace, ring=ring, slots=of_slots
    )


def _slab(gpu: Gpu, fixed: int, slots: int, *, may_shrink: bool) -> tuple[Slab, int, str]:
    """(slab, bytes of it for slots, why they are fewer)."""
    try:
        return Slab(gpu, fixed + slots), slots, ""
    except PlanError:
        if not slots or not may_shrink:
            raise
    free, _ = gpu.memory()
    fewer = max(0, min(slots, free - fixed)) // ALIGNED * ALIGNED
    short = (
        f"{binary_amount(fixed + slots)} of VRAM were planned, {binary_amount(free)} can be had"
        " now: another program has taken some"
    )
    try:
        return Slab(gpu, fixed + fewer), fewer, short
    except PlanError:
        return Slab(gpu, fixed), 0, short
