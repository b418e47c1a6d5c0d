"""The memory of a GPU as a device divides it: weights, KV pages, workspace; or all as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from offload.gpu.base import Gpu
from offload.gpu.slab import Part, Slab
from offload.plan import KVSpec, VramSpec
from offload.vram import table_bytes

Array = np.ndarray


class Space(Protocol):
    """Where memory is given out."""

    def alloc(self, n_bytes: int) -> int:
        """Address, a multiple of 256; PlanError if there is no room."""

    def free(self, address: int) -> None:
        """Give it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spaces:
    """One for each purpose. kv: of pages, all of a size, so that a gap has room for one."""

    weights: Space
    kv: Space
    tables: Space
    workspace: Space


def spaces(gpu: Gpu, kv: KVSpec, vram: VramSpec | None) -> Spaces:
    """Parts of one slab, as planned; without a plan they share what there is."""
    if vram is None:
        return Spaces(weights=gpu, kv=gpu, tables=gpu, workspace=gpu)
    tables = table_bytes(kv.context)
    slab = Slab(gpu, vram.weights + kv.n_bytes + vram.workspace)
    parts: list[Part] = [
        slab.part(name, n_bytes)
        for name, n_bytes in (
            ("the weights", vram.weights),
            ("the KV cache", kv.n_bytes - tables),
            ("tables of the KV cache", tables),
            ("activations", vram.workspace),
        )
    ]
    return Spaces(weights=parts[0], kv=parts[1], tables=parts[2], workspace=parts[3])
