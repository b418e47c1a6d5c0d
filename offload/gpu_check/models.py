"""Models as the check loads them: with the real planner and loader, on the CPU, a GPU, or both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from offload.batch import Batch
from offload.cgroups import read_limits
from offload.config import ModelConfig
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.gpu.probe import GpuFacts
from offload.gpu_check.bench import Bench
from offload.hardware import CpuInfo, HardwareProfile, probe
from offload.plan import Plan
from offload.plan_options import PlanOptions
from offload.planner import make_plan
from offload.tensor_census import Census, census
from quant.compiler import isa

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that is open, and what is in it."""

    file: GGUFFile
    config: ModelConfig
    tensors: Census

    @staticmethod
    def of(file: GGUFFile) -> Source:
        """Its config and census."""
        config = ModelConfig.from_gguf(file)
        return Source(file=file, config=config, tensors=census(file, config))


@contextmanager
def loaded(bench: Bench, source: Source, options: PlanOptions) -> Iterator[tuple[Model, Plan]]:
    """A model on this machine, and its plan; closed at the end. PlanError, DeviceError."""
    free, total = bench.gpu.memory()
    card = GpuFacts(
        index=0, name=bench.gpu.name, architecture=bench.gpu.architecture, cuda=0, free=free,
        total=total,
    )  # fmt: skip
    hardware = machine()
    plan = make_plan(source.config, source.tensors, hardware, options, gpus=[card])
    plan, model, ahead = bench.setup.execute(
        source.file, source.config, plan, hardware, lambda progress: None
    )
    try:
        ahead.wait()
        yield model, plan
    finally:
        ahead.close()
        model.close()


def machine() -> HardwareProfile:
    """This one; without psutil as far as the system tells it."""
    try:
        return probe()
    except ImportError:
        count = len(os.sched_getaffinity(0))
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (page * os.sysconf(f"SC_{name}_PAGES") for name in ("AVPHYS", "PHYS"))
        limits = read_limits()
        if limits.memory is not None and limits.memory_free is not None:
            free, total = min(free, limits.memory_free), min(total, limits.memory)
        cpu = CpuInfo(
            name="", cores=count, threads=count, usable=count, ram_total=total, ram_free=free,
            simd=isa.NAME,
        )  # fmt: skip
        return HardwareProfile(cpu=cpu)


def greedy(model: Model, prompt: Array, count: int) -> tuple[Array, Array]:
    """(tokens that follow a prompt, the likeliest each time; the logits of all steps)."""
    tokens: list[int] = []
    model.kv.open(0)
    steps = [model.forward(Batch.of(prompt))]
    for position in range(len(prompt), len(prompt) + count):
        tokens.append(int(steps[-1][0].argmax()))
        steps.append(model.forward(Batch.of(tokens[-1:], first=position)))
    model.kv.close(0)
    return np.array(tokens), np.concatenate(steps)
