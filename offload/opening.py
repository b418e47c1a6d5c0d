"""The devices of a plan, opened, and which of them makes a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from offload.config import ModelConfig
from offload.devices import is_gpu, open_device, resolve
from offload.devices.base import Device, Maker
from offload.expert_tier import ExpertTier
from offload.plan import BlockName, Plan

if TYPE_CHECKING:
    from offload.devices.hybrid import HybridDevice


class Opened:
    """What a plan runs on: one device, or a GPU and the CPU as one (`hybrid`).

    splits: layers whose routed experts are of both.
    """

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        self._plan = plan
        self.hybrid: HybridDevice | None = None
        self.splits: frozenset[int] = frozenset()
        workers = plan.threads, plan.workers.cpu_sets
        if len(plan.devices) == 1:
            (name,) = plan.devices
            one = open_device(name, config, plan.kv, *workers, plan.vram)
            self.device: Device = one
            self._only: Maker = one
            return
        from offload.devices.hybrid import open_hybrid

        (gpu,) = filter(is_gpu, plan.devices)
        self.hybrid = self.device = open_hybrid(
            resolve(gpu)[1] or 0, config, plan.kv, *workers, plan.vram, plan.hot
        )
        self.splits = frozenset(filter(plan.splits, range(config.num_layers)))

    def maker(self, block: BlockName, layer: int) -> Maker:
        """Who makes a block of a layer, -1: of none."""
        both = self.hybrid
        if both is None:
            return self._only
        if block in ("routed", "shared") and layer in self.splits:
            return both.on_both
        on_gpu = is_gpu(self._plan.place(block, layer if layer >= 0 else None).device)
        return both.on_gpu if on_gpu else both.on_cpu

    def set_tiers(self, below: ExpertTier | None) -> None:
        """Slots for routed experts, before blocks are made; below: those in RAM, None: none."""
        if self.hybrid is None:
            if below is not None:
                from offload.devices.cpu import CpuDevice

                cast("CpuDevice", self.device).tier = below
            return
        self.hybrid.cpu.tier = below
        if self._plan.hot.n_bytes:
            self.hybrid.set_hot(self._plan.hot, self._plan.place("routed").tier)

    def close(self) -> None:
        """Give all back."""
        self.device.close()
