"""What a hybrid's passes of few rows took, on each side, and how much of the shorter was hidden.

meter = Meter(device)
... some passes ...
figures = meter.figures(passes, seconds, gpu_seconds(model, batch))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from offload.batch import Batch
from offload.devices.block_times import KINDS
from offload.devices.hybrid import HybridDevice
from offload.devices.hybrid_segment import HybridSegment
from offload.forward import Model, segments

GPU_TIMES = 3  # that the GPU's part is run by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFigures:
    """Of a pass; seconds and bytes.

    cpu: experts that the CPU computed; gpu: the GPU's work, by itself; waited: of the CPU for the
    GPU; launching: of the host, to start the GPU's work. hits: share of the experts asked for that
    lay in VRAM. gpu_read, cpu_read: weights that each side read; copied: into slots.
    """

    total: float
    cpu: float
    gpu: float
    waited: float
    launching: float
    hits: float
    gpu_read: float
    cpu_read: float
    copied: float

    @property
    def overlap(self) -> float:
        """How much of the shorter side was hidden behind the other, 0 .. 1."""
        shorter = min(self.cpu, self.gpu)
        if not shorter:
            return 1.0
        return min(1.0, max(0.0, self.cpu + self.gpu - self.total) / shorter)

    @property
    def launching_share(self) -> float:
        """Of the pass."""
        return self.launching / self.total if self.total else 0.0

    @property
    def over(self) -> float:
        """What the pass took beyond the longer side, as a share of the CPU's part."""
        beyond = self.total - max(self.cpu, self.gpu)
        return beyond / self.cpu if self.cpu else 0.0


class _Counts(NamedTuple):
    """So far."""

    cpu: float
    waited: float
    launching: float
    hits: int
    misses: int
    gpu_read: int
    cpu_read: int
    copied: int


class Meter:
    """Counts from now on."""

    def __init__(self, device: HybridDevice) -> None:
        self._device = device
        self._before = _counts(device)

    def figures(self, passes: int, seconds: float, gpu: float) -> SplitFigures:
        """Of `passes` passes since then, which took `seconds`; gpu: as `gpu_seconds` found it."""
        now = _counts(self._device)
        since = _Counts._make(b - a for a, b in zip(self._before, now, strict=True))
        return SplitFigures(
            total=seconds / passes,
            cpu=since.cpu / passes,
            gpu=gpu,
            waited=since.waited / passes,
            launching=since.launching / passes,
            hits=since.hits / max(1, since.hits + since.misses),
            gpu_read=since.gpu_read / passes,
            cpu_read=since.cpu_read / passes,
            copied=since.copied / passes,
        )


def _counts(device: HybridDevice) -> _Counts:
    times, hot = device.times, device.hot
    stats = None if hot is None else hot.stats
    layers = [] if stats is None else list(stats.layers.values())
    in_slots = 0 if stats is None else stats.bytes.get("vram", 0)
    return _Counts(
        cpu=times.seconds()[KINDS.index("experts")],
        waited=times.waited,
        launching=times.starting,
        hits=sum(layer.hits for layer in layers),
        misses=sum(layer.misses for layer in layers),
        gpu_read=device.gpu.traffic.read + in_slots,
        cpu_read=device.cpu.traffic.read,
        copied=0 if stats is None else stats.bytes_copied,
    )


def hybrid_of(model: Model) -> HybridDevice | None:
    """The device of a model that CPU and GPU share."""
    found: Iterator[HybridDevice] = (d for d in model.devices if isinstance(d, HybridDevice))
    return next(found, None)


def gpu_seconds(model: Model, batch: Batch) -> float:
    """The GPU's work for a batch of few rows by itself, without the CPU's; its results are void."""
    total = 0.0
    for device, segment in segments(model.blocks):
        if not isinstance(device, HybridDevice) or not isinstance(segment, HybridSegment):
            continue
        device.begin(batch)
        gpu = device.gpu.gpu
        parts = segment.tape().parts
        gpu.wait()
        for part in parts:
            gpu.seconds(part, 1)
            total += gpu.seconds(part, GPU_TIMES) / GPU_TIMES
    return total
