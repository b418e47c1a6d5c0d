"""A device `cuda` that computes on the CPU, and GPUs that are not there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from offload.config import ModelConfig
from offload.devices.cpu import CpuDevice
from offload.devices.null import Mishap, NullDevice
from offload.errors import OffloadError
from offload.gpu.probe import GpuFacts
from offload.plan import KVSpec, VramSpec

GIB = 2**30


def gpu(free: float = 20.0, index: int = 0, total: float = 24.0) -> GpuFacts:
    """free, total: GiB."""
    return GpuFacts(
        index=index, name=f"RTX {index}", architecture=89, cuda=12080,
        free=round(free * GIB), total=round(total * GIB),
    )  # fmt: skip


class FakeCuda(NullDevice):
    """troubles: of each device that is opened, in turn: what it does, or why it does not open."""

    troubles: Sequence[Sequence[Mishap] | OffloadError] = ()
    made: Sequence[FakeCuda] = ()

    def __init__(
        self,
        config: ModelConfig,
        kv: KVSpec,
        threads: int,
        cpus: Sequence[frozenset[int]] | None = None,
        *,
        index: int,
        vram: VramSpec,
    ) -> None:
        del threads, cpus
        number = len(FakeCuda.made)
        trouble = FakeCuda.troubles[number] if number < len(FakeCuda.troubles) else ()
        FakeCuda.made = [*FakeCuda.made, self]
        self.is_closed = False
        if isinstance(trouble, OffloadError):
            raise trouble
        super().__init__(config, kv, inner=CpuDevice(config, kv, 1), mishaps=trouble)
        self.name, self.vram = f"cuda:{index}", vram

    def close(self) -> None:
        """See Device; a second time is an error of the caller."""
        assert not self.is_closed
        self.is_closed = True
        super().close()


def install(
    monkeypatch: pytest.MonkeyPatch,
    *troubles: Sequence[Mishap] | OffloadError,
    gpus: Sequence[GpuFacts] | str | None = None,
) -> None:
    """The machine has these GPUs (None: one), and `FakeCuda` is their device."""
    module = ModuleType("offload.devices.cuda")
    module.CudaDevice = FakeCuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "offload.devices.cuda", module)
    found = [gpu()] if gpus is None else gpus
    monkeypatch.setattr("offload.planning.found_gpus", lambda: found)
    monkeypatch.setattr(FakeCuda, "troubles", troubles)
    monkeypatch.setattr(FakeCuda, "made", ())
